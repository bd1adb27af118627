"""Files of many examples with their targets: .ts, .tsv, .npz, .npy with targets beside it.

Tables with named columns, .mat and .h5 files, and named arrays of .npz files have readers of their own, called here.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, listing, printable, unread
from ndvit.data.sources.arrays import as_part, columns_beside, missing_labels, raw_target, raw_targets
from ndvit.data.sources.column_files import COLUMN_FILES, is_table_of_values, read_columns
from ndvit.data.sources.columns import NO_ROLES, Roles
from ndvit.data.sources.layouts import parts_of, read_examples
from ndvit.data.sources.named_arrays import ARRAY_FILES, read_many
from ndvit.data.sources.npy import ArrayHeader, array_header, load_array, open_archive
from ndvit.data.sources.split_names import split_of
from ndvit.files import bounded_lines, check_regular

TABLES = (".ts", ".tsv", ".npz", ".npy", ".csv", ".parquet", ".arff", *ARRAY_FILES)
"""Endings of files of many examples."""
_LONGEST_LABEL = 1000  # characters
_MOST_TAGS = 1000
_MOST_CHANNELS = 10**6
_MOST_EXAMPLES = 10**7  # in an array; each takes some hundred bytes besides its values
_MOST_PADDED = 2**26  # values (256 MiB as float32) of channels that end in missing values
_LABEL_WORDS = {"y", "label", "labels", "target", "targets", "class", "classes"}
_DATA_WORDS = {"x", "data", "features", "inputs", "signals"}


class Table(NamedTuple):
    """Contents of a file of many examples: {"train": ...}, and "test" and "val" if it has them; and notes."""

    parts: dict[str, Part]
    notes: list[str]


def read_table(path: Path, roles: Roles = NO_ROLES, *, with_targets: bool = True, channels: int = 0) -> Table:
    """Read a file of many examples, or a table of one recording.

    Args:
        path: the file.
        roles: names of columns or arrays.
        with_targets: whether targets are needed.
        channels: channels of the model that reads the examples; 0 without a model.

    Raises:
        ValueError: with the name of the file and its fault.
    """
    ending = path.suffix.lower()
    npz = partial(_read_npz, columns=roles.columns)
    readers: dict[str, Callable[[Path], Table]]
    readers = {".ts": _read_ts, ".tsv": _read_tsv, ".npz": npz, ".npy": _read_npy}
    try:
        check_regular(path)
        if ending in COLUMN_FILES and (ending != ".tsv" or is_table_of_values(path)):
            read = read_examples(read_columns(path, roles), roles, with_targets=with_targets, channels=channels)
            return Table(parts_of(read), read.notes)
        if ending in ARRAY_FILES or (ending == ".npz" and (roles.array or roles.label)):
            return Table(*read_many(path, roles, with_targets=with_targets))
        if with_targets:
            _check_no_columns(roles)
        return readers[ending](path)
    except (OSError, ValueError) as error:
        message = printable(str(error))
        raise ValueError(
            message if printable(path.name) in message else f"{printable(str(path))}: {message}"
        ) from error


def _check_no_columns(roles: Roles) -> None:
    """Raise a ValueError for names of columns if a file has none, so that they are not ignored."""
    flags = {"label": roles.label, "id": roles.id, "time": roles.time, "channels": roles.channels, "array": roles.array}
    if named := [f"--{flag}" for flag, value in flags.items() if value]:
        raise ValueError(f"has no names for {' and '.join(named)}, which are of columns or named arrays; leave it out")


# Text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise ValueError("is UTF-16 text, or no text; save it as UTF-8")
    # old archives have any encoding; bytes that are not UTF-8 become \xe9, so that different labels stay different
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as lines:
        for number, line in enumerate(bounded_lines(lines), start=1):
            if line.strip():
                yield number, line.strip("\r\n ")


def _label(text: str, where: str) -> str:
    if len(text) > _LONGEST_LABEL:
        raise ValueError(
            f"{where}: a label of {len(text):,} characters, {text[:40]!r}...; expected the name of a class"
        )
    return text


def _series(text: str, separator: str, where: str) -> np.ndarray:
    """The values in a text as (n,) float32."""
    if not text.strip(f"{separator}? "):
        return np.full(text.count(separator) + 1, np.nan, dtype=np.float32)
    fields = text.split(separator)
    if not text.isascii() or "_" in text or "\0" in text:  # Python reads 1_000 and digits of other scripts as numbers
        odd = next(field for field in fields if not field.isascii() or "_" in field or "\0" in field)
        raise ValueError(f"{where}: {odd[:40]!r} is no plain number; expected numbers, NaN or ?")
    try:
        with np.errstate(over="ignore"):  # as in `numbers`
            return np.array(["nan" if field.strip() in ("?", "") else field for field in fields], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error)[:100]}; expected numbers, NaN or ?") from error


def _read_ts(path: Path) -> Table:
    """Read the format of the UCR/UEA/TSER archives: @tags, then one line per example, channel:channel:label."""
    # The reader of aeon changes labels to lower case ("banana" for "baNaNa"), drops the minus signs of series with time
    # stamps, and stops at channels of unequal length, which end in missing values here.
    tags: dict[str, list[str]] = {}
    items: list[np.ndarray] = []
    labels: list[str] = []
    padded = stored = 0
    labelled = False  # whether each line ends with a label, or the number that a regression predicts
    comma = True  # whether each channel of each line ends with a comma
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if line.startswith(("#", "%")):
            continue
        if "data" not in tags:
            if not line.startswith("@"):
                raise ValueError(f"{where}: expected a comment or a tag such as @data, got {line[:40]!r}")
            tag, *words = line[1:].split() or [""]
            tags[tag.lower()] = words
            if len(tags) > _MOST_TAGS:
                raise ValueError(f"{where}: more than {_MOST_TAGS:,} tags and no @data line")
            if _is_true(tags, "timestamps"):
                raise ValueError(f"{where}: time stamps are not supported; save plain values (@timeStamps false)")
            labelled = _is_true(tags, "classlabel") or _is_true(tags, "targetlabel")
            continue
        if labelled:
            line, colon, label = line.rpartition(":")
            if not colon:
                raise ValueError(f"{where}: expected values, a colon and a label, got {label[:40]!r}")
            labels.append(_label(label, where))
        if line.count(":") >= _MOST_CHANNELS:
            raise ValueError(f"{where}: {line.count(':') + 1:,} channels, more than {_MOST_CHANNELS:,}")
        lengths = [channel.count(",") + 1 for channel in line.split(":")]
        comma = comma and line.endswith(",") and line.count(",:") == len(lengths) - 1
        longest = max(lengths)
        padded, stored = padded + len(lengths) * longest, stored + sum(lengths)
        if padded > _MOST_PADDED and padded > 10 * stored:
            raise ValueError(
                f"{where}: {len(lengths):,} channels of 1 to {longest:,} values; with all channels as long as the "
                f"longest of their example, the {stored:,} values so far would become {padded:,}, {4 * padded:,} "
                "bytes: cut long channels into windows, or leave short ones out"
            )
        flat = _series(line.replace(":", ","), ",", where)
        if padded == stored:
            items.append(flat.reshape(len(lengths), longest))
            continue
        values = np.full((len(lengths), longest), np.nan, dtype=np.float32)
        for row, into in zip(np.split(flat, np.cumsum(lengths)[:-1]), values):
            into[: len(row)] = row
        items.append(values)
    if "data" not in tags:
        raise ValueError(f"{path}: no @data line; the file is not a .ts file or was cut off")
    targets = raw_targets(labels, f"the labels in {path.name}") if labelled else None
    notes = _unlike_tags(path, tags, items, targets)
    if comma and items:
        items = [item[:, :-1] for item in items]
        notes.append(f"{path.name}: the comma at the end of each channel is ignored")
    return Table(_train_part(path, items, targets), notes)


def _is_true(tags: dict[str, list[str]], tag: str) -> bool:
    return [word.lower() for word in tags.get(tag, ())[:1]] == ["true"]


def _unlike_tags(
    path: Path, tags: dict[str, list[str]], items: Sequence[np.ndarray], targets: list[Any] | None
) -> list[str]:
    """The doubt about a .ts file whose data are not what its tags announce: it may be damaged."""
    channels, lengths = {len(item) for item in items}, {item.shape[1] for item in items}
    found = []
    if _is_true(tags, "univariate") and max(channels, default=1) > 1:
        found.append(f"@univariate true, but {max(channels)} channels")
    (announced,) = tags.get("dimensions", tags.get("dimension", ()))[:1] or ("",)
    if announced.isdecimal() and channels and channels != {int(announced)}:
        found.append(f"@dimensions {announced[:20]}, but {listing(sorted(map(str, channels)))} channels")
    if _is_true(tags, "equallength") and len(lengths) > 1:
        found.append(f"@equalLength true, but {min(lengths):,} to {max(lengths):,} values")
    listed = {str(raw_target(word)).lower() for word in tags.get("classlabel", ())[1:]}
    if targets is not None and listed:
        missing = set(missing_labels(targets))
        known = [str(target) for i, target in enumerate(targets) if i not in missing]
        other = dict.fromkeys(name for name in known if name.lower() not in listed)
        if other:
            found.append(f"labels that @classLabel does not list: {listing([name[:40] for name in other])}")
    return [Doubt(f"the tags of {path.name} do not fit its data: {'; '.join(found)}")] if found else []


def _read_tsv(path: Path) -> Table:
    """Read the .tsv format of UCR: one line per example, its label first, then its values, separated by tabs."""
    items: list[np.ndarray] = []
    labels: list[str] = []
    notes: list[str] = []
    tab_at_end = True  # in each line
    for number, line in _lines(path):
        label, tab, values = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {number}: expected a label and values with tabs between, got {line[:40]!r}")
        labels.append(_label(label, f"{path}, line {number}"))
        items.append(_series(values, "\t", f"{path}, line {number}")[None])
        tab_at_end = tab_at_end and values.endswith("\t")
    if tab_at_end and items:
        items = [item[:, :-1] for item in items]
        notes.append(f"{path.name}: the tab at the end of each line is ignored")
    if len(items) > 1 and items[0].size > 2 and _counts_up(items[0][0]) and not _counts_up(items[1][0]):
        notes.append(
            Doubt(
                f"the first line of {path.name} counts up ({', '.join(f'{value:g}' for value in items[0][0, :3])}, ...)"
                ", as names of columns do, and is read as an example: if it is a header, remove it"
            )
        )
    return Table(_train_part(path, items, raw_targets(labels, f"the labels in {path.name}")), notes)


def _counts_up(values: np.ndarray) -> bool:
    return values[0] in (0, 1) and bool(np.all(np.diff(values) == 1))


def _train_part(path: Path, items: list[np.ndarray], targets: list[Any] | None) -> dict[str, Part]:
    return {"train": Part(items, targets, [f"{path.name}[{i}]" for i in range(len(items))])}


# Arrays


def _read_npz(path: Path, columns: Sequence[str]) -> Table:
    with open_archive(path) as archive:
        keys: dict[str, str] = {}
        for key in archive.keys:
            if keys.setdefault(key.lower(), key) is not key:
                raise ValueError(f"{path}: has two arrays called {key}, in upper and in lower case; keep one")
        splits = {key[1:]: split for key in keys if key.startswith("x_") and (split := split_of(key[2:]))}
        if "x" in keys and "train" in splits.values():
            raise ValueError(f"{path}: has both X and X_train; keep the training set")
        if "x" in keys:
            splits = {"": "train", **splits}
        parts: dict[str, Part] = {}
        used: set[str] = set()
        for name, split in splits.items():
            x, y = f"x{name}", f"y{name}"
            if split in parts:
                raise ValueError(f"{path}: has several arrays that could be X_{split}, such as X{name}; keep one")
            where = path.name if len(splits) == 1 and not name else f"{path.name}:X{name or '_train'}"
            _check_count(archive.header(keys[x]), where)
            targets = archive.read(keys[y]) if y in keys else None
            part = as_part(archive.read(keys[x]), targets, where, f"{y} in {path.name}")
            wanted = {key: archive.read(key) for key in archive.keys if key.removesuffix(name) in columns}
            beside, read = columns_beside(name, columns, wanted, len(part.items))
            parts[split] = part._replace(columns=beside)
            used |= {x, y, *map(str.lower, read)}
        if not parts:
            found = f"{listing([key[:40] for key in keys.values()], 10)}; rename them" if keys else "no array"
            raise ValueError(f"{path}: expected arrays X and y, or X_train, y_train, X_test, y_test; got {found}")
        notes = unread("arrays", (key for lower, key in keys.items() if lower not in used))
        return Table(parts, notes + unread("members that are no arrays", archive.others))


def _read_npy(path: Path) -> Table:
    header = array_header(path)
    _check_count(header, path.name)
    found, notes = _targets_file(path)
    y: Any = None
    if found is not None:
        try:
            y = _read_targets(found, header.shape[0])
        except (ValueError, OSError) as error:
            fault = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
            raise ValueError(f"{found}, the targets of {path.name}: {fault}") from error
    return Table({"train": as_part(load_array(path), y, path.name, found.name if found else "y")}, notes)


def _check_count(header: ArrayHeader, where: str) -> None:
    if len(header.shape) < 2:
        raise ValueError(f"{where} has shape {header.shape}; expected (n, time) or (n, channels, time, ...)")
    if header.shape[0] > _MOST_EXAMPLES:
        raise ValueError(
            f"{where} has the shape {header.shape}, {header.shape[0]:,} examples of few values, more than "
            f"{_MOST_EXAMPLES:,}; the first axis is that of the examples: if it is time, cut it into windows"
        )


def _targets_file(path: Path) -> tuple[Path | None, list[str]]:
    """Find the targets of X.npy: X_labels.npy or .txt, for X... also y...; or by similar names, with a note."""
    stems = [f"{path.stem}_labels"]
    if path.stem[:1] in ("x", "X"):
        stems += ["y" + path.stem[1:], "Y" + path.stem[1:]]
    for stem in stems:
        for ending in (".npy", ".txt"):
            if (file := path.with_name(stem + ending)).is_file():
                return file, []
    similar: list[Path] = []
    other: list[Path] = []
    own = _words(path) - _DATA_WORDS
    for file in sorted(path.parent.iterdir()):
        if file.suffix.lower() in (".npy", ".txt") and _words(file) & _LABEL_WORDS and file != path and file.is_file():
            (similar if _words(file) - _LABEL_WORDS == own else other).append(file)
    if len(similar) == 1:
        return similar[0], [f"targets from {similar[0].name}"]
    if similar + other:
        names = listing([file.name[:60] for file in similar + other])
        return None, [
            f"files beside {path.name} that may have targets are not read ({names}); rename it {stems[0]}.npy"
        ]
    return None, []


def _words(path: Path) -> set[str]:
    return set(re.split(r"[\W_]+", path.stem.lower()))


def _read_targets(path: Path, examples: int) -> Any:
    check_regular(path)
    if path.suffix.lower() == ".txt":
        if path.stat().st_size > _LONGEST_LABEL * (examples + 10):
            raise ValueError(
                f"has {path.stat().st_size:,} bytes, too many for one label in a line for each of {examples:,} examples"
            )
        return path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    header = array_header(path)
    if header.shape and header.shape[0] > examples:
        raise ValueError(f"has {header.shape[0]:,} targets for {examples:,} examples; every example needs one")
    return load_array(path)
