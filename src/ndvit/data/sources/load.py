"""A name, a folder, a file or arrays -> a `Source`: train and test examples with their classes, and what was decided.

Nothing is decided silently: `Source.notes` says what was held out, left out, padded or taken as missing.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ndvit.data.checking import without_bad
from ndvit.data.examples import Encoded, Examples, Kind, Source, are_streamed, hold_out
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources import folders
from ndvit.data.sources.archives import bundled, download, read_set, table_in
from ndvit.data.sources.arrays import Part, as_part, npy_many, npz_single
from ndvit.data.sources.hub import is_hub, read_hub
from ndvit.data.sources.lists import is_list, read_list
from ndvit.data.sources.rasters import is_raster
from ndvit.data.sources.tables import TABLES, read_table


def load_source(
    source: Any,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    progress: bool = True,
    to_train: bool = True,
) -> Source:
    """Load a data set.

    Args:
        source: The name of a built-in set; `ucr:NAME`; `hf:owner/name`, a data set of pictures on the Hugging Face
            hub (see `read_hub`); a folder of classes; a .csv with the columns path and label (see `read_list`); a .ts,
            .tsv, .npz or .npy file; or in Python `(X, y)`, `(X_train, y_train, X_test, y_test)` or a dict with such
            keys.
        test_fraction: The part of each class that is held out for testing, where the data has no split of its own; 0
            holds nothing out and leaves `test` empty, for data that is only to be tested on.
        seed: Seed of that split.
        skip_bad: Leave bad examples out, and say so in the notes, instead of raising.
        progress: Show a progress bar while many files are checked.
        to_train: Whether there must be a training set, of two classes at least; else `train` may be empty.

    Raises:
        FileNotFoundError: neither a name nor a path.
        ValueError: anything wrong with the data: what, where, and how to mend it.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must be at least 0 and below 1, got {test_fraction}")
    name, parts, notes = _find(source, skip_bad, progress)
    name = folders.printable(name)
    where = name if isinstance(source, tuple | dict) else folders.printable(str(source))
    if to_train and "train" not in parts:
        raise ValueError(
            f"{where}: holds {' and '.join(parts)} but nothing to train on (X_train, a folder train/, or lines with "
            "train in the column split); `ndvit evaluate` tests a trained model on it"
        )
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
        notes.append("no test set given: the validation set is the test set")
    parts = {split: _printable(parts[split]) for split in ("train", "test", "val") if split in parts}
    parts, more = _looked_at(parts, where, skip_bad, progress)
    notes += more
    classes = _classes(parts, where, at_least=2 if test_fraction and to_train else 1)
    made = {split: _examples(part, classes) for split, part in parts.items()}
    if "train" not in made:
        made["train"] = made["test"].subset([])
    if "test" not in made and not test_fraction:
        made["test"] = made["train"].subset([])
    elif "test" not in made:
        keep, held = hold_out(made["train"].labels, test_fraction, seed, classes, where)
        made |= {"train": made["train"].subset(keep), "test": made["train"].subset(held)}
        share = f"{test_fraction:.0%} of each class held out for testing ({len(held):,} examples)"
        notes.append(f"no split given: {share}, stratified, seed {seed}")
    kind, said = _kind(next(iter(parts.values()))), tuple(map(folders.printable, notes))
    return Source(name, kind, classes, made["train"], made["test"], made.get("val"), said)


def load_examples(
    path: Any,
    *,
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
    dims: int | None = None,
    channels: int = 0,
) -> tuple[Kind, Examples, tuple[str, ...]]:
    """Load examples to predict: one file, a folder of files, or arrays.

    Args:
        path: A picture, a sound file, an .npy or .npz of one example, a table (.ts, .tsv, .npz with X or X_test), a
            .csv with a column path, `hf:owner/name`, or a folder of files without class folders; or in Python an array
            (n, time) or (n, channels, time, ...), a list of arrays of any length, or a list of PIL images.
        classes: The model's classes; labels in the file are kept where they are all among them.
        skip_bad: Leave bad examples out, and say so in the notes, instead of raising.
        dims: The model's axes. With them an .npy of `dims` + 2 axes, or of `dims` + 1 for a model of one channel, holds
            many examples; without them every .npy is one.
        channels: The model's channels.

    Returns:
        Kind, examples (`labels` None where unknown; each named by the path as it was given), notes.

    Raises:
        FileNotFoundError: no such path. ValueError: what is wrong with which file.
    """
    if not isinstance(path, str | Path):
        good, more = without_bad({"test": _given(path)}, "X", skip_bad, progress=True)
        return _kind(good["test"]), _examples(good["test"], ()), tuple(more)
    if path == "":
        raise ValueError("the path is empty; the current folder is written .")
    given, path = os.fspath(path), Path(path).expanduser()
    notes: list[str] = []
    tables: dict[str, Part] = {}
    if is_hub(given):
        tables, notes = read_hub(given, labelled=False, progress=True)
    elif path.is_dir():
        part, notes = folders.flat(path)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif dims is not None and folders.medium(path) == "npy files" and npy_many(path, dims, channels):
        part = read_table(path)["train"]
        notes.append(f"{path.name}: taken as {len(part.items):,} examples, by its number of axes")
    elif is_list(path):
        tables, notes = read_list(path, labelled=False, skip_bad=skip_bad)
    elif folders.medium(path) and (path.suffix.lower() != ".npz" or npz_single(path, dims, channels)):
        part = Part([str(path)], None, [path.name])
        if dims is not None and folders.medium(path) == "npy files":
            notes.append(f"{path.name}: taken as one example, by its number of axes")
    else:
        tables = read_table(_table(path))
    if tables:
        split = next(split for split in ("test", "val", "train") if split in tables)
        part = tables[split]
        if len(tables) > 1:
            name = given if is_hub(given) else path.name
            *others, last = tables
            notes.append(f"{name} holds {', '.join(others)} and {last}: the {split} set is taken")
    folder = (
        given if is_hub(given) or path.is_dir() else os.path.dirname(given)
    )  # so that a/0.wav and b/0.wav can be told apart
    part = _printable(part._replace(names=[os.path.join(folder, name) for name in part.names]))
    good, more = _looked_at({"test": part}, folders.printable(given), skip_bad, progress=True)
    part, notes = good["test"], notes + more
    known = set(classes or ())
    if part.labels is not None and not any(part.labels):  # a column that is there and has nothing in it
        part = part._replace(labels=None)
    if part.labels is not None and classes and not known.issuperset(part.labels):
        strange = sorted({label or "?" for label in part.labels} - known)
        notes.append(f"labels left out: {folders.listing(strange)} not among the model's classes")
        part = part._replace(labels=None)
    return _kind(part), _examples(part, tuple(classes or ())), tuple(map(folders.printable, notes))


def fit_preprocess(source: Source, size: int | Sequence[int] | None = None) -> Preprocess:
    """Compute the preprocessing of a source on its training examples only; `size` as in the `fit` of each kind."""
    if source.kind == "image":
        return ImagePreprocess.fit(source.train, size)
    return SignalPreprocess.fit(source.train, size)


def builtin_sources() -> tuple[str, ...]:
    """Return the names of the sets that are there without a download."""
    return "digits", *bundled()


def _find(source: Any, skip_bad: bool, progress: bool) -> tuple[str, dict[str, Part], list[str]]:
    """Return name, parts ("train" and, where the data has them, "test" and "val") and notes of a source."""
    if isinstance(source, tuple | dict):
        return "arrays", _from_arrays(source), []
    if not isinstance(source, str | Path):
        raise ValueError(
            f"a source is a name, a path, (X, y) or (X_train, y_train, X_test, y_test); got a {type(source).__name__}"
        )
    if source == "":
        raise ValueError("the source is an empty text; give a name or a path (the current folder is written .)")
    text, path = str(source), Path(source).expanduser()
    if isinstance(source, str) and text.lower() in builtin_sources():
        notes = [f"the built-in {text.lower()}; for what lies at that path, write ./{text}"] if path.exists() else []
        if text.lower() == "digits":
            return "digits", {"train": _digits()}, notes
        name, parts, more = read_set(bundled()[text.lower()])
        return name.lower(), parts, notes + more
    if text.lower().startswith("ucr:"):
        return read_set(download(text[4:].strip()))
    if is_hub(text):
        return text.partition("?")[0], *read_hub(text, labelled=True, progress=progress)
    if path.is_dir():
        table = table_in(path)
        if table:
            return read_set(table)
        parts, notes = folders.scan(path)
        return path.resolve().name, parts, notes
    if path.exists() and is_list(path):
        return path.stem, *read_list(path, labelled=True, skip_bad=skip_bad)
    if path.exists():
        return read_set(_table(path))
    close = difflib.get_close_matches(text.lower(), builtin_sources(), n=1)
    raise FileNotFoundError(
        f"{text}: no such file or folder, and no built-in source.{f' Did you mean {close[0]}?' if close else ''} "
        f"Built in: {', '.join(builtin_sources())}. Other sets of the UCR archive: ucr:NAME; of the Hugging Face hub: "
        "hf:owner/name"
    )


def _looked_at(parts: dict[str, Part], where: str, skip_bad: bool, progress: bool) -> tuple[dict[str, Part], list[str]]:
    """`without_bad`, of all parts that are not streamed: a look at those would fetch everything."""
    here = {split: part for split, part in parts.items() if not are_streamed(part.items)}
    good, notes = without_bad(here, where, skip_bad, progress)
    return parts | good, notes


def _given(x: Any) -> Part:
    """Arrays to predict."""
    if isinstance(x, list | tuple) and any(isinstance(row, str | Path) for row in x):
        raise ValueError("got a list of paths; give them one by one: predict(run, *paths)")
    if not isinstance(x, list | tuple) and not hasattr(x, "__array__"):
        raise ValueError(
            "examples to predict are paths, an array (n, time) or (n, channels, time, ...), a list of arrays or a list "
            f"of PIL images; got a {type(x).__name__}"
        )
    return as_part(x, None, "X")


def _from_arrays(source: tuple[Any, ...] | dict[str, Any]) -> dict[str, Part]:
    names = {2: ("X", "y"), 4: ("X_train", "y_train", "X_test", "y_test")}.get(len(source))
    if isinstance(source, tuple) and names:
        source = dict(zip(names, source))
    if not isinstance(source, dict) or names is None or set(source) != set(names):
        got = f"keys {', '.join(map(str, source))}" if isinstance(source, dict) else f"{len(source)} arrays"
        raise ValueError(f"arrays are given as X, y or as X_train, y_train, X_test, y_test; got {got}")
    splits = zip(("train", "test"), names[::2], names[1::2])
    return {split: as_part(source[x], source[y], x, y) for split, x, y in splits}


def _digits() -> Part:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = np.round(x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # the values are counts from 0 to 16
    return as_part([Image.fromarray(image) for image in pixels], y, "digits")


def _table(path: Path) -> Path:
    """Return the path if it can hold many examples, else raise a ValueError."""
    if path.suffix.lower() in TABLES:
        return path
    if folders.medium(path):
        raise ValueError(f"{path}: is a single example; to train, {folders.LAYOUT}")
    known = f"{', '.join(TABLES)} for many examples, {folders.known_endings()} for one each, .csv for a list of files"
    raise ValueError(f"{path}: unknown type of file {path.suffix!r}; known: {known}")


def _printable(part: Part) -> Part:
    """The part with names and labels that cannot break a message or a table."""
    labels = part.labels and [label and folders.printable(label) for label in part.labels]
    return part._replace(labels=labels, names=list(map(folders.printable, part.names)))


def _classes(parts: dict[str, Part], where: str, at_least: int) -> tuple[str, ...]:
    """The classes of the training set, or of all parts where there is none, checked against all parts."""
    for split, part in parts.items():
        if part.labels is None:
            raise ValueError(
                f"{where}: the {split} set has no labels; every example needs one"
                " (.ts: @classLabel true; .npz: y; .npy: NAME_labels.npy or .txt beside it; .csv: a column label)"
            )
        without = [name for name, label in zip(part.names, part.labels) if label is None]
        if without:
            raise ValueError(
                f"{where}: {len(without):,} labels are missing in the {split} set: {folders.listing(without)}"
            )
    known = [parts["train"]] if "train" in parts else parts.values()
    names = {str(label) for part in known for label in part.labels or ()}
    try:
        classes = tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        classes = tuple(sorted(names))
    if len(classes) < at_least:
        raise ValueError(f"{where}: the training set has one class only ({classes[0]}); at least two are needed")
    for split, part in parts.items():
        strange = sorted(set(map(str, part.labels or ())) - names)
        if strange:
            raise ValueError(
                f"{where}: classes {folders.listing(strange)} are in the {split} set but not in the training set"
            )
    return classes


def _kind(part: Part) -> Kind:
    first = part.items[0]
    picture = isinstance(first, Image.Image | Encoded) or (
        isinstance(first, str) and folders.medium(first) == "images" and not is_raster(first)
    )
    return "image" if picture else "signal"


def _examples(part: Part, classes: tuple[str, ...]) -> Examples:
    index = {name: i for i, name in enumerate(classes)}
    labels = None if part.labels is None or not classes else [index[str(label)] for label in part.labels]
    stored = isinstance(part.items[0], str | Encoded)
    return Examples(part.items, labels, part.names, folders.read_example if stored else None)
