"""Rows of parquet files that lie elsewhere: fetched a block at a time when they are asked for, not kept on the disk."""

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

_AT_ONCE = 8  # files that are asked at the same time
_WINDOW = 1024  # rows that each lane of a shuffled stream mixes at a time, see `shuffled`
LANES = 4  # as many as there are worker processes at most, see `Inputs`


class StreamedRows:
    """Rows of the parquet files of one split, read where they are.

    A block is what the writer of a file put together (a row group; of pictures, 100 rows as a rule). It is fetched as a
    whole, and the newest blocks are kept in memory, as many as `shuffled` mixes. Each process has its own: copies that
    are made by pickle hold none.

    Args:
        files: addresses of files on the hub, hf://..., or paths.
        progress: show a progress bar while their ends are read, where what is in them is written down.

    Raises:
        ValueError: files of different columns, or without rows.
    """

    def __init__(self, files: Sequence[str], progress: bool = False) -> None:
        self.files = list(files)
        self.footers = _of_all(_footer, self.files, "reading what the files hold", progress)
        self.schema = self.footers[0].schema.to_arrow_schema()
        for file, footer in zip(self.files, self.footers, strict=True):
            if footer.schema.to_arrow_schema().names != self.schema.names:
                raise ValueError(f"{file} has other columns than {self.files[0]}")
        groups = [(f, g) for f, footer in enumerate(self.footers) for g in range(footer.num_row_groups)]
        counts = [self.footers[f].row_group(g).num_rows for f, g in groups]
        self.groups = [group for group, count in zip(groups, counts, strict=True) if count]
        self.starts = np.cumsum([0, *(count for count in counts if count)])
        self.column = ""
        self._blocks: OrderedDict[int, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict()}

    @property
    def column_names(self) -> list[str]:
        """Of all columns."""
        return list(self.schema.names)

    @property
    def features(self) -> Any:
        """Types of the columns, as the `datasets` library has them."""
        import datasets

        return datasets.Features.from_arrow_schema(self.schema)

    def values(self, column: str, progress: bool = False) -> list[Any]:
        """All values of a column; of the files, nothing else is fetched."""

        def read(f: int) -> list[Any]:
            with _open(self.files[f]) as file:
                found: list[Any] = _parquet(file, self.footers[f]).read(columns=[column])[column].to_pylist()
            return found

        parts = _of_all(read, range(len(self.files)), f"reading the column {column}", progress)
        return [value for part in parts for value in part]

    def pictures(self, column: str) -> "StreamedRows":
        """The same rows, of which each is its value in this column, a picture."""
        other = object.__new__(StreamedRows)
        other.__dict__ = {**self.__getstate__(), "column": column}
        return other

    def block(self, i: int) -> int:
        """The block that a row is fetched with."""
        return int(np.searchsorted(self.starts, i, side="right")) - 1

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The row as {column: {"bytes": ..., "path": ...}}, or {column: None} where it is empty."""
        block = self.block(i)
        if block not in self._blocks:
            f, group = self.groups[block]
            with _open(self.files[f]) as file:
                table = _parquet(file, self.footers[f]).read_row_group(group, columns=[self.column])
            self._blocks[block] = table[self.column].to_pylist()
            while len(self._blocks) > self._most():
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        value = self._blocks[block][i - self.starts[block]]
        return {self.column: {"bytes": value, "path": None} if isinstance(value, bytes) else value}

    def _most(self) -> int:
        """How many blocks are kept: those that the lanes which this process reads are in."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        lanes = LANES if worker is None else math.ceil(LANES / worker.num_workers)
        return lanes * (window(len(self) / len(self.groups)) + 2)


def window(rows: float) -> int:
    """How many blocks of so many rows a shuffled stream mixes in each of its lanes."""
    return max(2, math.ceil(_WINDOW / max(rows, 1)))


def shuffled(blocks: np.ndarray, per_batch: float, first: int, random: np.random.Generator) -> np.ndarray:
    """A random order of rows that come in blocks, in which few blocks are needed at a time.

    The blocks come in random order, and each row within a `window` of where its block comes. The order is then dealt
    out to lanes, a batch from each in turn: worker processes, which take the batches in turn, too, do not fetch each
    other's blocks (as long as their number divides that of the lanes).

    Args:
        blocks: (n,) the block of each row.
        per_batch: rows in a batch; a fraction where each comes more than once.
        first: rows of the stream that came before, in other passes.
        random: where randomness comes from.

    Returns:
        (n,) the rows in their order.
    """
    names, place = np.unique(blocks, return_inverse=True)
    turn = random.permutation(len(names))[place] + random.random(len(blocks)) * window(len(blocks) / len(names))
    lane = (first + np.arange(len(blocks))) // per_batch % LANES
    order = np.empty(len(blocks), dtype=np.int64)
    order[np.argsort(lane, kind="stable")] = np.argsort(turn)
    return order


def _open(where: str) -> BinaryIO:
    if not where.startswith("hf://"):
        return open(where, "rb")
    from huggingface_hub import HfFileSystem

    file: BinaryIO = HfFileSystem().open(where, "rb", cache_type="none")  # else 5 MB are read beside every few bytes
    return file


def _parquet(file: BinaryIO, footer: Any = None) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file, metadata=footer, pre_buffer=True)


def _footer(where: str) -> Any:
    with _open(where) as file:
        return _parquet(file).metadata


def _of_all(read: Any, items: Sequence[Any], what: str, progress: bool) -> list[Any]:
    from tqdm import tqdm

    with ThreadPoolExecutor(min(_AT_ONCE, len(items), 2 * (os.cpu_count() or 1))) as pool:
        hidden = not (progress and len(items) > _AT_ONCE)
        return list(tqdm(pool.map(read, items), what, len(items), leave=False, disable=hidden, unit="file"))
