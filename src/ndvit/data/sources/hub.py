"""Data sets of pictures on the Hugging Face hub, through the `datasets` library, whose cache keeps them on the disk."""

import importlib.util
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from ndvit.data.examples import Encoded
from ndvit.data.sources.arrays import Part, label_name, label_names
from ndvit.data.sources.folders import SPLITS, listing, printable
from ndvit.data.sources.streams import StreamedRows

_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:\?(?P<said>\S*))?", re.ASCII)
_KEYS = ("image", "label", "config", "revision", "streaming")
_HOW = "hf:owner/name?image=COLUMN&label=COLUMN&config=NAME&revision=REVISION&streaming=1, of which any part may be "
_HOW += "left out"
_NAMES = ("label", "labels", "class", "target")  # columns of text or whole numbers that are labels by their name


@dataclass(frozen=True)
class Address:
    """Where a data set of the hub is, and which of its columns are meant; None where it is to be found out.

    With `streaming`, the training set stays on the hub, see `StreamedRows`.
    """

    repo: str
    image: str | None = None
    label: str | None = None
    config: str | None = None
    revision: str | None = None
    streaming: bool = False

    def __str__(self) -> str:
        return f"hf:{self.repo}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `hf:owner/name?image=COLUMN&label=COLUMN&config=NAME&revision=REVISION`, or raise a ValueError."""
        match = _ADDRESS.fullmatch(text)
        try:
            said = parse_qsl(match["said"] or "", strict_parsing=bool(match["said"])) if match else []
        except ValueError:
            match = None
        if match is None or any(part in (".", "..") for part in match["repo"].split("/")):
            raise ValueError(f"{text!r} is no address of a data set: write {_HOW}")
        if wrong := [key for key, _ in said if key not in _KEYS]:
            raise ValueError(f"{text!r} says {', '.join(wrong)}, which is unknown: write {_HOW}")
        if len(dict(said)) < len(said):
            raise ValueError(f"{text!r} says one thing twice: write {_HOW}")
        given: dict[str, Any] = dict(said)
        if given.get("streaming", "1") not in ("0", "1"):
            raise ValueError(f"{text!r} says streaming={given['streaming']}: it is 1, or left out")
        if "streaming" in given:
            given["streaming"] = given["streaming"] == "1"
        return cls(match["repo"], **given)


class Column:
    """The pictures of one split, as the bytes of their files. It can be pickled: the rows stay in the cache's files."""

    def __init__(self, where: str, split: str, rows: Any) -> None:
        self.where, self.split, self.rows = where, split, rows

    def open(self, i: int) -> BinaryIO:
        """Return the picture of a row as an open file.

        Raises:
            ValueError: there is none, or only a path that leads out of the cache.
        """
        (found,) = self.rows[i].values()
        if found is None:
            raise ValueError("there is no picture in this row")
        if found["bytes"] is not None:
            return io.BytesIO(found["bytes"])
        path = os.path.realpath(found["path"] or "")
        if not any(Path(path).is_relative_to(home) for home in _caches()):
            raise ValueError("names a file that is no part of the data set, which is not read")
        return io.BytesIO(Path(path).read_bytes())


@dataclass(frozen=True, slots=True)
class Row(Encoded):
    """One picture of a split."""

    column: Column
    index: int

    def open(self) -> BinaryIO:
        """Return the bytes of its file."""
        return self.column.open(self.index)

    def block(self) -> int | None:
        """Of a streamed split, the rows that are fetched at once."""
        rows = self.column.rows
        return rows.block(self.index) if isinstance(rows, StreamedRows) else None

    def __str__(self) -> str:
        return f"{self.column.where} {self.column.split}[{self.index}]"


def is_hub(text: str) -> bool:
    """Say whether a source is meant to be a data set of the hub; a file of that name is given as ./hf:NAME."""
    return text.startswith("hf:")


def read_hub(text: str, *, labelled: bool, progress: bool) -> tuple[dict[str, Part], list[str]]:
    """Fetch a data set, or take it from the cache, and find the column of pictures and that of labels.

    The column of pictures is the only one of the type Image; that of labels is the only ClassLabel, or else the only
    one of text or whole numbers, or the one called label. No code of the data set is run.

    Args:
        text: `hf:owner/name`, see `Address.parse`.
        labelled: whether labels are needed.
        progress: whether the library may show progress bars.

    Returns:
        The parts by the names of the splits, rows as items, and notes.

    Raises:
        ValueError: no `datasets` library, an address that is none, columns or splits that are not clear.
        FileNotFoundError: no such data set, or no permission.
        OSError: the hub cannot be reached.
    """
    address = Address.parse(text)
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{text} needs a package that is not installed: pip install 'ndvit[datasets]'")
    with _plain_errors(address), _progress(progress):
        splits = stream(address, progress) if address.streaming else load(address)
    chosen, notes = _splits(address, {str(name): rows for name, rows in splits.items()})
    first = next(iter(chosen.values()))[1]
    image = _image_column(address, first.features)
    label = _label_column(address, first.features, labelled)
    notes.insert(0, f"pictures from the column {image}" + (f", labels from {label}" if label else ""))
    parts: dict[str, Part] = {}
    for split, (name, rows) in chosen.items():
        with _plain_errors(address):
            labels = None if label is None or label not in rows.column_names else _labels(rows, label, progress)
        if labelled and split != "train" and not any(labels or ()):
            notes.append(f"the split {name} is left out: it has no labels")
            continue
        parts[split] = _part(address, name, rows, image, labels)
    if any(isinstance(rows, StreamedRows) for _, rows in chosen.values()):
        notes.append(
            "the training set is streamed: its pictures are fetched when they are needed and not kept, none is looked "
            "at beforehand, and a damaged one ends the training"
        )
    return parts, notes


def load(address: Address) -> Any:
    """Return the splits by their names, as the library has them."""
    import datasets

    # with this prefix (from 4.8 on) no folder here that happens to be called owner/name is taken instead
    return datasets.load_dataset(f"hf://datasets/{address.repo}", address.config, revision=address.revision)


def stream(address: Address, progress: bool) -> Any:
    """Return the splits by their names: the training set as it lies on the hub, others as `load` has them.

    Others are small beside it, and read again and again.
    """
    import datasets

    where = f"hf://datasets/{address.repo}"
    builder = datasets.load_dataset_builder(where, address.config, revision=address.revision)
    files = {str(name): list(map(str, found)) for name, found in (builder.config.data_files or {}).items()}
    train = next((name for name in files if len(files) == 1 or SPLITS.get(name.lower()) == "train"), None)
    if train is None:
        raise ValueError(f"it has no training set to stream, but {listing(list(files)) or 'no files of data'}")
    if other := [name for name in files[train] if not name.endswith(".parquet")]:
        raise ValueError(
            f"{other[0]} is no parquet file, and no others are streamed; the hub has most data sets as parquet, too: "
            f"hf:{address.repo}?streaming=1&revision=refs/convert/parquet"
        )
    rest = {name: found for name, found in files.items() if name != train}
    splits = dict(datasets.load_dataset("parquet", data_files=rest)) if rest else {}
    return {train: StreamedRows(files[train], progress), **splits}


def _part(address: Address, name: str, rows: Any, image: str, labels: list[str | None] | None) -> Part:
    import datasets

    if isinstance(rows, StreamedRows):
        pictures: Any = rows.pictures(image)
    else:  # undecoded: decoding is done here as for files, and the library would open any path that a table names
        pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    column = Column(str(address), name, pictures)
    count = len(pictures)
    return Part([Row(column, i) for i in range(count)], labels, [f"{name}[{i}]" for i in range(count)])


def _splits(address: Address, splits: dict[str, Any]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The splits that are train, val and test, each with its own name, and notes."""
    chosen: dict[str, tuple[str, Any]] = {}
    for name, rows in splits.items():
        split = SPLITS.get(name.lower())
        if split in chosen:
            raise ValueError(f"{address}: both splits {chosen[split][0]} and {name} could be the {split} set")
        if split and len(rows):
            chosen[split] = name, rows
    if not chosen and len(splits) == 1:
        ((name, rows),) = splits.items()
        return {"train": (name, rows)}, [f"the only split, {name}, is the data set"]
    if not chosen:
        raise ValueError(f"{address}: has the splits {listing(list(splits), 10)}; expected train, validation, test")
    names = [name for name, _ in chosen.values()]
    notes = [f"the hub's own splits: {', '.join(names)}"] if len(names) > 1 else []
    if left := [name for name in splits if name not in names]:
        notes.append(f"splits left out: {listing(left)}")
    return chosen, notes


def _image_column(address: Address, features: Any) -> str:
    import datasets

    if address.image is not None:
        feature = _given(address, "image", features)
        if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", None) != "binary":
            raise ValueError(f"{address}: the column {address.image} holds no pictures ({_types(features)})")
        return address.image
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) == 1:
        return found[0]
    several = f"several columns of pictures, {', '.join(found)}" if found else "no column of pictures"
    raise ValueError(f"{address}: has {several}: say which with hf:{address.repo}?image=COLUMN ({_types(features)})")


def _label_column(address: Address, features: Any, labelled: bool) -> str | None:
    import datasets

    if address.label is not None:
        if not _can_label(_given(address, "label", features)):
            raise ValueError(f"{address}: the column {address.label} holds no labels ({_types(features)})")
        return address.label
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    found = classes or [name for name, feature in features.items() if _can_label(feature)]
    if len(found) > 1:
        found = [name for name in found if name.lower() in _NAMES] or found
    if len(found) == 1 or not labelled:
        return found[0] if len(found) == 1 else None
    several = f"several columns that could be labels, {', '.join(found)}" if found else "no column of labels"
    raise ValueError(f"{address}: has {several}: say which with hf:{address.repo}?label=COLUMN ({_types(features)})")


def _given(address: Address, what: str, features: Any) -> Any:
    name = getattr(address, what)
    if name not in features:
        raise ValueError(f"{address}: has no column {name} (for {what}=); it has {_types(features)}")
    return features[name]


def _can_label(feature: Any) -> bool:
    """Whether a column holds a class, a text or a whole number in each row."""
    dtype = str(getattr(feature, "dtype", ""))
    plain = type(feature).__name__ in ("ClassLabel", "Value")
    return plain and (dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint")))


def _types(features: Any) -> str:
    kinds = {name: getattr(f, "dtype", None) if type(f).__name__ == "Value" else None for name, f in features.items()}
    told = (f"{printable(name)}: {kind or type(features[name]).__name__}" for name, kind in kinds.items())
    return f"columns: {', '.join(told)}"


def _labels(rows: Any, column: str, progress: bool) -> list[str | None]:
    if isinstance(rows, StreamedRows):
        values = rows.values(column, progress)
    else:
        values = list(rows.with_format(None)[column])
    feature = rows.features[column]
    if type(feature).__name__ != "ClassLabel":
        return label_names(values, column)
    names = [label_name(name) for name in feature.names]
    return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]


def _caches() -> list[str]:
    """The folders that the library and the hub's client keep their files in."""
    from datasets import config
    from huggingface_hub import constants

    homes = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return [os.path.realpath(home) for home in homes]


@contextmanager
def _progress(shown: bool) -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not before:
            enable_progress_bars()


@contextmanager
def _plain_errors(address: Address) -> Iterator[None]:
    """Say in one line what the library could not do."""
    try:
        yield
    except FileNotFoundError as error:  # among them DatasetNotFoundError: not there, or not for everybody
        hint = "set HF_TOKEN or run `hf auth login` if it is private or gated"
        raise FileNotFoundError(f"{address}: {error} ({hint})") from error
    except (OSError, ConnectionError) as error:
        raise OSError(f"{address} could not be fetched ({error}): check the network") from error
    except Exception as error:  # of its own and of the readers of every format that it knows
        said = " ".join(str(error).split())
        hint = f": say which with hf:{address.repo}?config=NAME" if "onfig name is missing" in said else ""
        raise ValueError(f"{address} cannot be read{hint} ({type(error).__name__}: {said[:500]})") from error
