"""Shards: the examples of a source in the chunks of litdata, with a manifest beside them; on the disk or remote.

A folder of shards has a manifest, and a folder for each split: litdata's index and chunks, and a table (.npz) with the
target, the name and the shape of each example. The manifest is written last, and has the length and the checksum of
every other file. Nothing in the files is executed: of litdata's formats, only numbers, arrays and files are read.

The order of a training is that of `ShuffledStream`. litdata's own `StreamingDataset` deals whole chunks to processes,
so that its batches depend on the number of processes and of workers, and a run could not continue on another number.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from ndvit.data.examples import EncodedPicture, Kind, Part, Place, Recording, StoredItems, StoredSignal
from ndvit.data.messages import printable
from ndvit.data.sources.remote import Expected, Files, is_remote
from ndvit.data.sources.streams import StreamedBlocks
from ndvit.files import unpacking_fault
from ndvit.tasks.class_names import ClassName

MANIFEST = "ndvit.json"
FORMAT = "ndvit shards 1"
SPLITS = ("train", "val", "test")
Meaning = str
"""What targets are: "classes" (codes of `names`, -1 for none), "labels" (0 and 1 for each name), "numbers", "none"."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}", re.ASCII)
_FORMATS = re.compile(r"file|int|float|numpy|no_header_numpy:\d{1,2}")  # of litdata; above all not pickle
_FIELDS = ("image", "signal", "rate", "target")
_REMEDY = "write the shards again: ndvit shard SOURCE OUT"


class Chunk(NamedTuple):
    """A file of the examples of a split."""

    name: str
    expected: Expected
    examples: int


class Table(NamedTuple):
    """What is known of the examples of a split without fetching them, one row each.

    Attributes:
        targets: (n, ...) codes, numbers, or 0 and 1; (n, 0) without targets.
        names: their names.
        channels: (n,) of signals; 0 for pictures.
        grids: (n, axes) lengths of the axes of signals.
        rates: (n,) in Hz, NaN for arrays.
        groups: names of their groups, or None.
        recordings: names of the recordings that windows are parts of, or None.
        spans: (n, 2) samples where such windows start and stop.
    """

    targets: np.ndarray
    names: "Texts"
    channels: np.ndarray
    grids: np.ndarray
    rates: np.ndarray
    groups: "Texts | None" = None
    recordings: "Texts | None" = None
    spans: np.ndarray | None = None

    def pack(self) -> bytes:
        """The table as the bytes of an .npz."""
        arrays: dict[str, np.ndarray] = {}
        for name, value in self._asdict().items():
            if isinstance(value, Texts):
                arrays |= {f"{name}_text": value.text, f"{name}_ends": value.ends}
            elif value is not None:
                arrays[name] = value
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes, count: int) -> "Table":
        """Read what `pack` wrote for `count` examples.

        Raises:
            ValueError: if something is missing, or has another length or type.
        """
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if fault := unpacking_fault(sum(one.file_size for one in packed.infolist()), len(data)):
                raise ValueError(fault)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values: dict[str, Any] = {}
            for name in cls._fields:
                if name in arrays:
                    values[name] = arrays[name]
                elif f"{name}_ends" in arrays:
                    values[name] = Texts(arrays[f"{name}_text"], arrays[f"{name}_ends"])
        table = cls(**values)
        if wrong := [name for name, value in values.items() if len(value) != count]:
            raise ValueError(f"{', '.join(wrong)} have other lengths than {count:,}")
        if table.channels.dtype.kind not in "iu" or table.grids.dtype.kind not in "iu" or table.grids.ndim != 2:
            raise ValueError("the shapes are no whole numbers")
        return table


class Texts(Sequence[str]):
    """Many texts as one array of bytes, without control characters.

    Args:
        text: (bytes,) uint8, all texts in UTF-8, one after the other.
        ends: (n,) where each of them ends.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        if text.dtype != np.uint8 or ends.dtype.kind not in "iu" or (len(ends) and ends[-1] > len(text)):
            raise ValueError("the texts are damaged")
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Pack texts."""
        encoded = [str(text).encode("utf-8", "backslashreplace") for text in texts]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def take(self, indices: np.ndarray) -> list[str]:
        """The texts at these indices."""
        return [self[int(i)] for i in indices]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        start = int(self.ends[i - 1]) if i else 0
        return printable(self.text[start : int(self.ends[i])].tobytes().decode("utf-8", "replace"))


class ShardedRows(StreamedBlocks):
    """The chunks of one split.

    Args:
        files: where they are.
        folder: name of the split's folder.
        chunks: the chunks in their order.
        fields: the fields of each example and their formats, as litdata calls them.
    """

    def __init__(self, files: Files, folder: str, chunks: Sequence[Chunk], fields: Mapping[str, str]) -> None:
        super().__init__([chunk.examples for chunk in chunks])
        self.files, self.folder, self.chunks, self.fields = files, folder, list(chunks), dict(fields)
        self._loader: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loader": None}

    def fetch(self, block: int) -> tuple[bytes, np.ndarray]:
        """The bytes of a chunk, and where its examples begin and end: (examples + 1,)."""
        chunk = self.chunks[block]
        try:
            data = self.files.read(f"{self.folder}/{chunk.name}", chunk.expected)
        except OSError as error:  # whose message names the chunk, see `describe_fault`
            raise ValueError(str(error)) from error
        head = np.frombuffer(data[: 4 * (chunk.examples + 2)], dtype="<u4").astype(np.int64)
        count, ends = int(head[0]), head[1:]
        if count != chunk.examples or len(ends) != count + 1 or (np.diff(ends) < 0).any() or ends[-1] > len(data):
            raise ValueError(f"{self.files.path(f'{self.folder}/{chunk.name}')}: is no chunk of litdata: {_REMEDY}")
        return data, ends

    def row(self, i: int) -> dict[str, Any]:
        """The fields of an example."""
        block = self.block(i)
        data, ends = self.fetched(block)
        start, stop = ends[i - self.starts[block]], ends[i - self.starts[block] + 1]
        if self._loader is None:
            self._loader = _loader(self.fields)
        values: list[Any] = self._loader.load_item_from_bytes(memoryview(data)[start:stop], block)
        return dict(zip(self.fields, values, strict=True))


def _loader(fields: Mapping[str, str]) -> Any:
    """Reader of litdata's examples, as lists of these formats; it has no serializer that could execute anything."""
    import ndvit._torchvision  # noqa: F401  (litdata imports torchvision)

    # isort: split
    from litdata.streaming.item_loader import PyTreeLoader
    from litdata.streaming.serializers import (
        BytesSerializer,
        FloatSerializer,
        IntegerSerializer,
        NoHeaderNumpySerializer,
        NumpySerializer,
    )
    from litdata.utilities._pytree import tree_flatten

    known = {"file": BytesSerializer(), "int": IntegerSerializer(), "float": FloatSerializer()}
    known |= {"numpy": NumpySerializer(), "no_header_numpy": NoHeaderNumpySerializer()}
    formats = list(fields.values())
    loader = PyTreeLoader()
    loader.setup({"data_format": formats, "data_spec": tree_flatten(list(formats))[1]}, [], known)
    return loader


@dataclass(frozen=True, slots=True)
class ShardedPicture(EncodedPicture):
    """A picture in a shard."""

    rows: ShardedRows
    index: int

    def open(self) -> BinaryIO:
        """Return the bytes of its file."""
        return io.BytesIO(self.rows.row(self.index)["image"])

    def block(self) -> int:
        """Number of its chunk."""
        return self.rows.block(self.index)

    def __str__(self) -> str:
        return f"{self.rows.folder}[{self.index}]"


@dataclass(frozen=True, slots=True)
class ShardedSignal(StoredSignal):
    """An array or a recording in a shard."""

    rows: ShardedRows
    index: int
    channels: int
    grid: tuple[int, ...]
    rate: float | None

    def load(self) -> np.ndarray | Recording:
        """Return the values."""
        values = self.rows.row(self.index)["signal"]
        if values.shape != (self.channels, *self.grid):
            raise ValueError(f"has the shape {values.shape}, expected {(self.channels, *self.grid)}: {_REMEDY}")
        return values if self.rate is None else Recording(values, self.rate)

    def block(self) -> int:
        """Number of its chunk."""
        return self.rows.block(self.index)

    def __str__(self) -> str:
        return f"{self.rows.folder}[{self.index}]"


class ShardedItems(StoredItems):
    """The examples of a split.

    Args:
        kind: what they are.
        rows: their chunks.
        table: what is known of all rows.
        chosen: (n,) the rows that these items are; None for all.
    """

    def __init__(self, kind: Kind, rows: ShardedRows, table: Table, chosen: np.ndarray | None = None) -> None:
        self.kind, self.rows, self.table = kind, rows, table
        self.chosen = np.arange(len(rows)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        row = int(self.chosen[i])
        if self.kind == "image":
            return ShardedPicture(self.rows, row)
        rate, grid = float(self.table.rates[row]), tuple(self.table.grids[row].tolist())
        channels = int(self.table.channels[row])
        return ShardedSignal(self.rows, row, channels, grid, None if math.isnan(rate) else rate)

    def take(self, indices: np.ndarray) -> "ShardedItems":
        """The items at these indices."""
        return ShardedItems(self.kind, self.rows, self.table, self.chosen[indices])

    def blocks(self) -> np.ndarray:
        """(n,) number of the chunk of each item."""
        return np.searchsorted(self.rows.starts, self.chosen, side="right") - 1

    def shapes(self) -> np.ndarray:
        """(n,) integers that items of the same shape share."""
        codes = np.zeros(len(self.table.channels), dtype=np.int64)
        for column in (self.table.channels, *self.table.grids.T, self.table.rates):
            values, own = np.unique(column, return_inverse=True)
            codes = codes * len(values) + own
        return codes[self.chosen]

    def places(self) -> list[Place] | None:
        """The windows that the items are."""
        recordings, spans = self.table.recordings, self.table.spans
        if recordings is None or spans is None:
            return None
        rates = [None if math.isnan(rate) else rate for rate in self.table.rates.tolist()]
        return [Place(recordings[i], int(spans[i, 0]), int(spans[i, 1]), rates[i]) for i in self.chosen.tolist()]


def is_shards(source: str | Path) -> bool:
    """Whether a source is a folder of shards, or the address of one."""
    return is_remote(str(source)) or (Path(source).expanduser() / MANIFEST).is_file()


def read_shards(
    source: str | Path, cache_size: int, *, with_targets: bool = True
) -> tuple[str, dict[str, Part], list[str]]:
    """Read the manifest and the tables of shards; return name, parts and notes. Examples are fetched later.

    Args:
        source: folder or address.
        cache_size: see `Files`.
        with_targets: whether targets are required.

    Raises:
        ValueError: if litdata is not installed, or a file is damaged.
        OSError: if a file cannot be fetched.
    """
    import importlib.util

    where = str(source)
    if importlib.util.find_spec("litdata") is None:
        raise ValueError(f"{where} needs a package that is not installed: pip install 'ndvit[stream]'")
    base = where if is_remote(where) else str(Path(source).expanduser().resolve())
    files = Files(base, cache_size)
    try:
        text = files.read(MANIFEST, patient=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{where}: no shards, there is no {MANIFEST}; `ndvit shard SOURCE OUT` writes them"
        ) from None
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"the format is {values['format']!r}, expected {FORMAT!r}")
        kind, meaning, names = values["kind"], values["targets"]["meaning"], values["targets"]["names"]
        parts: dict[str, Part] = {}
        for split in SPLITS:
            if split in values["splits"]:
                part = _read_split(files, split, kind, meaning, list(map(str, names)), values["splits"][split])
                parts[split] = part._replace(channels=tuple(printable(str(one)) for one in values["channels"]))
        notes = [f"shards of {str(values['source'])[:200]}", *(str(note)[:2000] for note in values["notes"])]
        name = str(values["name"])[:200]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, zipfile.BadZipFile) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{printable(where)}: the shards cannot be read ({printable(reason[:300])}): {_REMEDY}"
        ) from error
    if not parts or (with_targets and meaning == "none"):
        lack = "labels" if parts else "examples"
        raise ValueError(f"{where}: these shards have no {lack}; use them with ndvit pretrain or predict")
    return name, parts, notes


def _read_split(files: Files, split: str, kind: Kind, meaning: Meaning, names: list[str], values: Any) -> Part:
    if kind not in ("image", "signal"):
        raise ValueError(f"examples of kind {kind!r}")
    fields = {str(key): str(value) for key, value in values["fields"].items()}
    if wrong := [f"{k}: {v}" for k, v in fields.items() if k not in _FIELDS or not _FORMATS.fullmatch(v)]:
        raise ValueError(f"fields that are not read, {', '.join(wrong)}")
    if kind not in fields:
        raise ValueError(f"the examples have no {kind}")
    chunks = [Chunk(_plain(name), Expected(int(size), int(crc)), int(n)) for name, size, crc, n in values["chunks"]]
    if not chunks or any(chunk.examples < 1 for chunk in chunks):
        raise ValueError(f"the {split} set has an empty chunk")
    rows = ShardedRows(files, split, chunks, fields)
    name, size, crc = values["table"]
    table = Table.unpack(files.read(f"{split}/{_plain(name)}", Expected(int(size), int(crc))), len(rows))
    columns = {} if table.groups is None else {str(values["group"]): list(table.groups)}
    items = ShardedItems(kind, rows, table)
    return Part(items, raw_targets(table.targets, meaning, names), table.names, columns)


def _plain(name: Any) -> str:
    """The name of a file beside the manifest; a ValueError for a path that leads elsewhere."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{str(name)[:80]!r} is no name of a file")
    return name


def raw_targets(stored: np.ndarray, meaning: Meaning, names: Sequence[str]) -> list[Any] | None:
    """The raw targets of the rows of a table."""
    if meaning == "none":
        return None
    known = [ClassName(name) for name in names]
    if meaning == "classes":
        return [known[code] if code >= 0 else None for code in stored.tolist()]
    if meaning == "labels":
        return [tuple(name for name, there in zip(known, row, strict=True) if there) for row in stored.tolist()]
    if meaning != "numbers":
        raise ValueError(f"targets of the meaning {meaning!r}")
    if not names:
        return [row[0] for row in stored.tolist()]
    return [dict(zip(names, row, strict=True)) for row in stored.tolist()]
