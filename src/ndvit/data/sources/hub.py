"""Data sets of pictures on the Hugging Face hub, through the `datasets` library and its cache."""

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

from ndvit.data.examples import EncodedPicture, Part
from ndvit.data.messages import listing, printable, unread
from ndvit.data.sources.arrays import raw_target, raw_targets
from ndvit.data.sources.split_names import is_canonical, split_of
from ndvit.data.sources.streams import StreamedRows
from ndvit.files import check_regular
from ndvit.tasks.class_names import literal_names

_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:\?(?P<query>\S*))?", re.ASCII)
_KEYS = ("image", "label", "config", "revision", "streaming")
_SYNTAX = (
    "write hf:owner/name?image=COLUMN&label=COLUMN&config=NAME&revision=REVISION&streaming=1, where each part after "
    "the name is optional"
)
_LABEL_NAMES = ("label", "labels", "class", "target")  # names that make a column of text or integers the targets


@dataclass(frozen=True)
class Address:
    """A data set of the hub and its columns; None for columns that are found by their types.

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
            pairs = parse_qsl(match["query"] or "", strict_parsing=bool(match["query"])) if match else []
        except ValueError:
            match = None
        if match is None or any(part in (".", "..") for part in match["repo"].split("/")):
            raise ValueError(f"{text!r} is not the address of a data set: {_SYNTAX}")
        options = dict(pairs)
        if unknown := [key for key in options if key not in _KEYS]:
            raise ValueError(f"{text!r} has unknown options ({', '.join(unknown)}): {_SYNTAX}")
        if len(options) < len(pairs):
            raise ValueError(f"{text!r} has an option twice: {_SYNTAX}")
        streaming = options.pop("streaming", "0")
        if streaming not in ("0", "1"):
            raise ValueError(f"{text!r} has streaming={streaming}: use 1, or leave it out")
        return cls(match["repo"], streaming=streaming == "1", **options)


@dataclass(frozen=True, slots=True)
class Row(EncodedPicture):
    """One picture of a split. It can be pickled: the rows stay in the files of the cache."""

    split: str
    rows: Any
    index: int

    def open(self) -> BinaryIO:
        """Return the bytes of its file; raise a ValueError if there are none, or only a path outside the cache."""
        (found,) = self.rows[self.index].values()
        if found is None:
            raise ValueError("there is no picture in this row")
        if not isinstance(found, dict):  # in a streamed file, whatever its schema announces
            raise ValueError(f"there is a {type(found).__name__} in this row, expected a picture")
        if found.get("bytes") is not None:
            return io.BytesIO(found["bytes"])
        path = os.path.realpath(found.get("path") or "")
        if not any(Path(path).is_relative_to(home) for home in _caches()):
            raise ValueError("names a file that is not part of the data set, which is not read")
        check_regular(path)
        return io.BytesIO(Path(path).read_bytes())

    def block(self) -> int | None:
        """Number of the block of a streamed row."""
        return self.rows.block(self.index) if isinstance(self.rows, StreamedRows) else None

    def __str__(self) -> str:
        return f"{self.split}[{self.index}]"


def is_hub(text: str) -> bool:
    """Whether a source is a data set of the hub; a file with such a name can be written as ./hf:NAME."""
    return text.startswith("hf:")


def read_hub(text: str, *, with_targets: bool, progress: bool) -> tuple[dict[str, Part], list[str]]:
    """Fetch a data set, or read it from the cache, and find its columns of pictures and targets.

    The column of pictures is the only one of type Image; that of targets is the only ClassLabel, or else the only one
    of text or integers, or the one named label, which may also have floats. No code of the data set is run.

    Args:
        text: `hf:owner/name`, see `Address.parse`.
        with_targets: whether targets are required.
        progress: whether the library may show progress bars.

    Raises:
        ValueError: without the `datasets` library, for an invalid address, or for ambiguous columns or splits.
        FileNotFoundError: if there is no such data set, or no permission.
        OSError: if the hub cannot be reached.
    """
    address = Address.parse(text)
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{text} needs a package that is not installed: pip install 'ndvit[datasets]'")
    import datasets

    with _short_errors(address), _progress(progress):
        splits = stream(address, progress) if address.streaming else load(address)
    chosen, notes = _splits(address, {str(name): rows for name, rows in splits.items()})
    features = next(iter(chosen.values()))[1].features
    image = _column(address, "image", features, datasets.Image, required=True)
    label = _column(address, "label", features, datasets.ClassLabel, required=with_targets)
    notes.insert(0, f"pictures from the column {image}" + (f", labels from {label}" if label else ""))
    notes += unread("columns", (printable(name) for name in features if name not in (image, label)))
    parts: dict[str, Part] = {}
    for split, (name, rows) in chosen.items():
        with _short_errors(address):
            targets = None if label is None or label not in rows.column_names else _targets(rows, label, progress)
        if with_targets and split != "train" and (targets is None or all(target is None for target in targets)):
            notes.append(f"the split {name} is left out: it has no labels")
            continue
        parts[split] = _part(address, name, rows, str(image), targets)
    if any(isinstance(rows, StreamedRows) for _, rows in chosen.values()):
        notes.append(
            "the training set is streamed: its pictures are fetched when they are needed and not kept, they are not "
            "checked before training, and a damaged one ends the training"
        )
    return parts, notes


def load(address: Address) -> Any:
    """Return the splits by their names, as the library loads them."""
    import datasets

    # with this prefix (from version 4.8), a local folder named owner/name is not loaded instead
    return datasets.load_dataset(f"hf://datasets/{address.repo}", address.config, revision=address.revision)


def stream(address: Address, progress: bool) -> Any:
    """Return the splits by their names: the training set streamed, the others as `load` does.

    The other splits are small in comparison, and read many times.
    """
    import datasets

    where = f"hf://datasets/{address.repo}"
    builder = datasets.load_dataset_builder(where, address.config, revision=address.revision)
    files = {str(name): list(map(str, found)) for name, found in (builder.config.data_files or {}).items()}
    usual_first = sorted(files, key=is_canonical, reverse=True)
    train = next((name for name in usual_first if len(files) == 1 or split_of(name) == "train"), None)
    if train is None:
        raise ValueError(f"it has no training set to stream, but {listing(list(files)) or 'no data files'}")
    if other := [name for name in files[train] if not name.endswith(".parquet")]:
        raise ValueError(
            f"{other[0]} is not a parquet file, and only those are streamed; the hub has most data sets as parquet, "
            f"too: hf:{address.repo}?streaming=1&revision=refs/convert/parquet"
        )
    rest = {name: found for name, found in files.items() if name != train}
    splits = dict(datasets.load_dataset("parquet", data_files=rest)) if rest else {}
    return {train: StreamedRows(files[train], progress), **splits}


def _part(address: Address, name: str, rows: Any, image: str, targets: list[Any] | None) -> Part:
    import datasets

    if isinstance(rows, StreamedRows):
        pictures: Any = rows.pictures(image)
    else:  # not decoded by the library, which would open any path in a table
        pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    rows_of_split = [Row(f"{address} {name}", pictures, i) for i in range(len(pictures))]
    return Part(rows_of_split, targets, [f"{name}[{i}]" for i in range(len(pictures))])


def _splits(address: Address, splits: dict[str, Any]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Find train, val and test among the splits; return each with its own name, and notes."""
    chosen: dict[str, tuple[str, Any]] = {}
    for name in sorted(splits, key=is_canonical, reverse=True):
        rows, split = splits[name], split_of(name)
        if split in chosen and not is_canonical(name):
            continue  # such as test2 beside test
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
    if ignored := [name for name in splits if name not in names]:
        notes.append(f"splits left out: {listing(ignored)}")
    return chosen, notes


def _column(address: Address, option: str, features: Any, kind: type, *, required: bool) -> str | None:
    """The column of pictures or labels: the one in the address, else the only one of this kind or of a similar type."""
    what = {"image": "pictures", "label": "labels"}[option]
    name = getattr(address, option)
    if name is not None:
        if name not in features:
            raise ValueError(f"{address}: has no column {name} (for {option}=); it has {_types(features)}")
        floats = option == "label" and _is_float(features[name])  # such as 0.0 and 1.0, where some are missing
        if not isinstance(features[name], kind) and not _similar(features[name], option) and not floats:
            raise ValueError(f"{address}: the column {name} has no {what} ({_types(features)})")
        return str(name)
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if option == "label":
        found = found or [name for name, feature in features.items() if _similar(feature, option)]
        found = found or [name for name in features if name.lower() in _LABEL_NAMES and _is_float(features[name])]
        if len(found) > 1:
            found = [name for name in found if name.lower() in _LABEL_NAMES] or found
    if len(found) == 1 or not required:
        return found[0] if len(found) == 1 else None
    several = f"several columns that could be {what}, {', '.join(found)}" if found else f"no column of {what}"
    choice = f"choose one with hf:{address.repo}?{option}=COLUMN"
    raise ValueError(f"{address}: has {several}: {choice} ({_types(features)})")


def _similar(feature: Any, option: str) -> bool:
    """Whether a column can have pictures (as bytes) or labels (text or integers) without being declared so."""
    dtype = str(getattr(feature, "dtype", ""))
    if option == "image":
        return dtype == "binary"
    text = dtype in ("string", "large_string", "bool")
    return type(feature).__name__ == "Value" and (text or dtype.startswith(("int", "uint")))


def _is_float(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and str(feature.dtype).startswith(("float", "double", "half"))


def _types(features: Any) -> str:
    types = {name: type(feature).__name__ for name, feature in features.items()}
    columns = (f"{printable(name)}: {features[name].dtype if t == 'Value' else t}" for name, t in types.items())
    return f"columns: {', '.join(columns)}"


def _targets(rows: Any, column: str, progress: bool) -> list[Any]:
    if isinstance(rows, StreamedRows):
        values = rows.values(column, progress)
    else:
        values = list(rows.with_format(None)[column])
    feature = rows.features[column]
    if type(feature).__name__ != "ClassLabel":
        return raw_targets(values, column)
    names = literal_names([raw_target(name) for name in feature.names])
    return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]


def _caches() -> list[str]:
    """The folders in which the library and the hub's client keep their files."""
    from datasets import config
    from huggingface_hub import constants

    homes = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return [os.path.realpath(home) for home in homes]


@contextmanager
def _progress(enabled: bool) -> Iterator[None]:
    """Disable the progress bars of the library, unless they are wanted."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if enabled or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _short_errors(address: Address) -> Iterator[None]:
    """Turn the errors of the library into one line each."""
    try:
        yield
    except FileNotFoundError as error:  # among them DatasetNotFoundError: missing, or no permission
        hint = "set HF_TOKEN or run `hf auth login` if it is private or gated"
        raise FileNotFoundError(f"{address}: {error} ({hint})") from error
    except (OSError, ConnectionError) as error:
        raise OSError(f"{address} could not be fetched ({error}): check the network") from error
    except Exception as error:  # errors of the library and of its readers of many formats
        message = " ".join(str(error).split())
        hint = f": choose one with hf:{address.repo}?config=NAME" if "onfig name is missing" in message else ""
        raise ValueError(f"{address} cannot be read{hint} ({type(error).__name__}: {message[:500]})") from error
