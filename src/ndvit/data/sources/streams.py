"""Streamed rows: blocks are fetched when they are needed, and the newest are kept in memory.

`StreamedRows` has the rows of remote parquet files; those of `shards.py` are the others.
"""

import copy
import math
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

_PARALLEL = 8  # files that are read at the same time
_WINDOW = 1024  # rows that each lane of a shuffled stream mixes at a time, see `shuffled`
LANES = 4
"""Lanes of a shuffled stream: the largest number of worker processes, see `Inputs`."""


class StreamedBlocks(ABC):
    """Rows in blocks, each of which is fetched as a whole.

    The newest blocks are kept in memory, as many as `shuffled` mixes. Each process has its own: pickled copies have
    none.

    Args:
        counts: rows of each block, at least 1.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.starts = np.cumsum([0, *counts])
        self._blocks: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict()}

    def block(self, i: int) -> int:
        """Number of the block of a row."""
        return int(np.searchsorted(self.starts, i, side="right")) - 1

    @abstractmethod
    def fetch(self, block: int) -> Any:
        """Fetch a block."""

    def fetched(self, block: int) -> Any:
        """A block from memory, or fetched."""
        if block not in self._blocks:
            self._blocks[block] = self.fetch(block)
            while len(self._blocks) > self._most():
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _most(self) -> int:
        """Number of blocks to keep: those of the lanes that this process reads."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        lanes = LANES if worker is None else math.ceil(LANES / worker.num_workers)
        return lanes * (window(len(self) / (len(self.starts) - 1)) + 2)


class StreamedRows(StreamedBlocks):
    """Rows of the parquet files of one split. A block is a row group of a file (for pictures, usually 100 rows).

    Args:
        files: addresses of files on the hub, hf://..., or paths.
        progress: show a progress bar while the footers of the files are read.

    Raises:
        ValueError: for files with different columns.
    """

    def __init__(self, files: Sequence[str], progress: bool = False) -> None:
        self.files = list(files)
        self.footers = _map_files(_footer, self.files, "reading footers", progress)
        self.schema = self.footers[0].schema.to_arrow_schema()
        for file, footer in zip(self.files, self.footers, strict=True):
            if footer.schema.to_arrow_schema().names != self.schema.names:
                raise ValueError(f"{file} has other columns than {self.files[0]}")
        groups = [(f, g) for f, footer in enumerate(self.footers) for g in range(footer.num_row_groups)]
        counts = [self.footers[f].row_group(g).num_rows for f, g in groups]
        self.groups = [group for group, count in zip(groups, counts, strict=True) if count]
        super().__init__([count for count in counts if count])
        self.column = ""

    @property
    def column_names(self) -> list[str]:
        """Names of all columns."""
        return list(self.schema.names)

    @property
    def features(self) -> Any:
        """Types of the columns, as in the `datasets` library."""
        import datasets

        return datasets.Features.from_arrow_schema(self.schema)

    def values(self, column: str, progress: bool = False) -> list[Any]:
        """Fetch all values of a column, and nothing else."""

        def read(f: int) -> list[Any]:
            with _opened(self.files[f], self.footers[f]) as file:
                found: list[Any] = file.read(columns=[column])[column].to_pylist()
            return found

        parts = _map_files(read, range(len(self.files)), f"reading the column {column}", progress)
        return [value for part in parts for value in part]

    def pictures(self, column: str) -> "StreamedRows":
        """Return the same rows, reduced to this column of pictures."""
        other = copy.copy(self)
        other.column = column
        return other

    def fetch(self, block: int) -> list[Any]:
        """Fetch the pictures of a row group."""
        f, group = self.groups[block]
        with _opened(self.files[f], self.footers[f]) as file:
            values: list[Any] = file.read_row_group(group, columns=[self.column])[self.column].to_pylist()
        return values

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return a row as {column: {"bytes": ..., "path": ...}}, or {column: None} if it is empty."""
        block = self.block(i)
        value = self.fetched(block)[i - self.starts[block]]
        return {self.column: {"bytes": value, "path": None} if isinstance(value, bytes) else value}


def window(rows: float) -> int:
    """Number of blocks of this many rows that a shuffled stream mixes in each of its lanes."""
    return max(2, math.ceil(_WINDOW / max(rows, 1)))


def shuffled(blocks: np.ndarray, per_batch: float, first: int, random: np.random.Generator) -> np.ndarray:
    """Return a random order of rows that needs few blocks at a time.

    The blocks are in random order, and each row is within a `window` of the place of its block. The order is then dealt
    out to lanes, one batch to each in turn: worker processes also take the batches in turn, and do not fetch the same
    blocks (if their number divides that of the lanes).

    Args:
        blocks: (n,) block of each row.
        per_batch: rows in a batch; a fraction if each row is repeated.
        first: rows of the stream in earlier passes.
        random: random generator.

    Returns:
        (n,) the rows in their order.
    """
    names, place = np.unique(blocks, return_inverse=True)
    turn = random.permutation(len(names))[place] + random.random(len(blocks)) * window(len(blocks) / len(names))
    lane = (first + np.arange(len(blocks))) // per_batch % LANES
    order = np.empty(len(blocks), dtype=np.int64)
    order[np.argsort(lane, kind="stable")] = np.argsort(turn)
    return order


@contextmanager
def _opened(where: str, footer: Any = None) -> Iterator[Any]:
    """The parquet file at a path or on the hub."""
    from huggingface_hub import HfFileSystem
    from pyarrow.parquet import ParquetFile

    # by default, the hub's files are read in steps of 5 MB
    remote = where.startswith("hf://")
    with HfFileSystem().open(where, "rb", cache_type="none") if remote else open(where, "rb") as file:
        yield ParquetFile(file, metadata=footer, pre_buffer=True)


def _footer(where: str) -> Any:
    with _opened(where) as file:
        return file.metadata


def _map_files(read: Any, items: Sequence[Any], what: str, progress: bool) -> list[Any]:
    from tqdm import tqdm

    with ThreadPoolExecutor(min(_PARALLEL, len(items), 2 * (os.cpu_count() or 1))) as pool:
        disable = not (progress and len(items) > _PARALLEL)
        return list(tqdm(pool.map(read, items), what, len(items), leave=False, disable=disable, unit="file"))
