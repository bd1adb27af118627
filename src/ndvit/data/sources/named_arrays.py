"""Files of named arrays (.mat, .h5, .npz): which array has the examples or a recording, labels, groups, times, rate."""

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.config.bounds import counted
from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, listing, printable, unread
from ndvit.data.sources.array_files import ArrayFile, Header
from ndvit.data.sources.arrays import as_part, raw_target
from ndvit.data.sources.clocks import Series, as_item, read_times
from ndvit.data.sources.columns import LABELS, TIMES, Roles, channels_named, named, word
from ndvit.data.sources.layouts import Recorded, raw_values
from ndvit.data.sources.matlab import open_arrays
from ndvit.data.sources.npy import open_archive
from ndvit.data.sources.split_names import split_of

ARRAY_FILES = (".mat", ".h5", ".hdf5", ".hdf")
"""Endings of files of named arrays, besides .npz."""
_EXAMPLES = ("x", "data", "features", "inputs", "signals", "signal", "samples", "examples")
_TARGETS = (*LABELS, "y")
_RATES = {"fs", "sr", "rate", "samplerate", "samplingrate", "samplingfrequency", "samplefrequency", "sfreq", "srate"}
_MOST_CHANNELS = 4096  # of a recording whose axes may be exchanged


@contextmanager
def opened(path: Path) -> Iterator[ArrayFile]:
    """Open a file of named arrays."""
    if path.suffix.lower() != ".npz":
        with open_arrays(path) as arrays:
            yield arrays
        return
    with open_archive(path) as archive:
        headers, others = {}, list(archive.others)
        for key in archive.keys:
            header = archive.header(key)
            kind = {"U": "text", "S": "text"}.get(header.dtype.kind, "number" if header.dtype.kind in "fiub" else "")
            if kind:
                headers[key] = Header(header.shape, kind)
            else:
                others.append(key)
        yield ArrayFile(headers, archive.read, others, columns=False)


def read_many(path: Path, roles: Roles, *, with_targets: bool) -> tuple[dict[str, Part], list[str]]:
    """Read the arrays of many examples: X and y, X_train, y_train, ..., or those that the user names.

    Several named arrays are channels. The first axis is that of the examples, or, where only the last has as many
    values as there are labels, the last. Structs of an array, and cells, are examples; labels, groups and rate are
    looked for in the struct of the examples first.

    Raises:
        ValueError: without arrays of examples, with the names that there are.
    """
    with opened(path) as arrays:
        keys = list(arrays.headers)
        notes: list[str] = []
        parts: dict[str, Part] = {}
        used: set[str] = set()
        named_labels = roles.label if with_targets else [name for name in roles.label if name in keys]
        labels = [match(name, keys, path.name, "--label") for name in named_labels]
        beside = {name: match(name, keys, path.name, "--group-by") for name in roles.columns if _is_there(name, keys)}
        for split, examples in _example_arrays(arrays, roles, path.name, {*labels, *beside.values()}).items():
            target_keys = labels or _target_keys(examples[0], arrays)
            rate_key, rates = _rate(arrays, examples[0], notes)
            y = _targets(arrays, target_keys)
            where = path.name if split == "train" else f"{path.name}:{split}"
            count = None if y is None else len(y)
            stacked = [_examples_first(arrays.read(key), count, key, notes) for key in examples]
            x = stacked[0] if len(stacked) == 1 else _as_channels(stacked, examples, path.name)
            part = as_part(x, None, where)
            if y is not None and len(y) != len(part.items):
                raise ValueError(
                    f"{where}: {counted(len(part.items), 'example')} but {counted(len(y), 'target')} in "
                    f"{named(target_keys)}"
                )
            columns = {name: targets(arrays.read(key)) for name, key in beside.items()}
            shape, items = _shape(part), part.items
            if rates and all(item.ndim == 2 for item in items):
                each = rates * (len(items) if len(rates) == 1 else 1)
                if len(each) != len(items):
                    raise ValueError(f"{where}: {len(items):,} examples but {len(rates):,} sampling rates")
                items = [as_item(item, rate) for item, rate in zip(items, each)]
            channels = tuple(map(printable, examples)) if len(examples) > 1 else ()
            parts[split] = part._replace(items=items, targets=y, columns=columns, channels=channels)
            read = {"label": ", ".join(target_keys), "group": ", ".join(beside.values()), "rate": rate_key}
            listed = ", ".join(f"{role}: {printable(key)}" for role, key in read.items() if key)
            names = "channels: " if len(examples) > 1 else "examples: "
            notes.append(f"{names}{named(examples)} {shape}" + (f"; {listed}" if listed else ""))
            used |= {*examples, *target_keys, *beside.values(), *([rate_key] if rate_key else [])}
        left = [printable(key) for key in keys if key not in used] + list(map(printable, arrays.others))
        return parts, [*notes, *unread("arrays", left)]


def holds_many(path: Path, roles: Roles, dims: int | None, channels: int) -> bool:
    """Whether a file has many examples, by the shapes of its arrays and for a model with `dims` axes and `channels`.

    Damaged files get any answer: reading them raises the error.
    """
    try:
        with opened(path) as arrays:
            found = _example_arrays(arrays, Roles(array=roles.array), path.name, set())
            examples = next(iter(found.values()))
            shape = tuple(n for n in arrays.headers[examples[0]].shape if n > 1)
            labels = _target_keys(examples[0], arrays)
            if _is_list(arrays, examples[0]) or len(found) > 1 or any(_size(arrays, k) > 1 for k in labels):
                return True
    except (ValueError, OSError):
        return False
    if dims is None:
        return False
    each = dims + (channels > 1 and len(examples) == 1)
    return len(shape) == each + 1


def read_one(path: Path, roles: Roles) -> Recorded:
    """Read the arrays of one recording.

    Vectors of one length are channels, or the columns (of other files than MATLAB's, the rows) of the only matrix. A
    vector called time or t has the times, a number called fs, sr or sampling_rate the rate in Hz. In structs, those
    beside the values are meant.

    Raises:
        ValueError: for a file without arrays that fit together.
    """
    with opened(path) as arrays:
        keys = list(arrays.headers)
        labels = [match(name, keys, path.name, "--label") for name in roles.label if _is_there(name, keys)]
        beside = {name: match(name, keys, path.name, "--group-by") for name in roles.columns if _is_there(name, keys)}
        time = match(roles.time, keys, path.name, "--time") if roles.time is not None else None
        chosen = [match(name, keys, path.name, "--array") for name in roles.array]
        numbers = [k for k in keys if arrays.headers[k].kind == "number" and k not in {*labels, *beside.values(), time}]
        clocks = [k for k in numbers if word(_last(k)) in TIMES and k not in chosen and _is_vector(arrays, k)]
        free = [key for key in numbers if key not in {*clocks, *chosen} and _size(arrays, key) > 1]
        chosen = chosen or _together(free, arrays, path.name)
        if time is None:
            time = _nearest(clocks, chosen[0], path.name, "times", "--time")
        targets_there = [key for key in keys if word(_last(key)) in _TARGETS and _size(arrays, key) <= 1]
        if not labels and (label := _nearest(targets_there, chosen[0], path.name, "labels", "--label")):
            labels = [label]
        others = {*labels, *beside.values()}
        doubts: list[str] = []
        rate_key, rates = _rate(arrays, chosen[0], doubts)
        rate = rates[0] if rates else None
        values, notes = _channels(chosen, arrays)
        notes += doubts
        names = roles.array or tuple(chosen)
        names = names if len(values) == len(names) else tuple(f"{chosen[0]}[{i}]" for i in range(len(values)))
        if roles.channels:
            values, names = _selected(values, names, roles.channels, path.name)
        times = None
        if time is not None:
            times = read_times(arrays.read(time).ravel(), time, path.name)
            if len(times.values) != values.shape[1]:
                raise ValueError(f"{len(times.values):,} times in {time} for {values.shape[1]:,} values")
            notes += times.notes
        target = next(iter(_targets(arrays, labels) or []), None)
        columns = {name: next(iter(targets(arrays.read(key))), None) for name, key in beside.items()}
        used = {*chosen, *others, rate_key, time}
        left = [printable(key) for key in keys if key not in used] + list(map(printable, arrays.others))
        roles_read = {"label": ", ".join(labels), "time": time, "group": ", ".join(beside.values()), "rate": rate_key}
        listed = ", ".join(f"{role}: {printable(key)}" for role, key in roles_read.items() if key)
        notes.insert(0, f"one recording, {channels_named(names)}" + (f"; {listed}" if listed else ""))
        series = Series(values, None if times is None else times.values, path.name, rate)
        in_seconds = bool(times and times.in_seconds)
        return Recorded(series, in_seconds, target, columns, names, [*notes, *unread("arrays", left)])


def match(pattern: str, keys: Sequence[str], where: str, flag: str) -> str:
    """The array of this name, or the only one that fits the pattern or has it as a word: DE of X118_DE_time.

    Raises:
        ValueError: if there is none, or several.
    """
    if pattern in keys:
        return pattern
    low = pattern.lower()
    tests = (
        lambda key: key.lower() == low,
        lambda key: any(sign in pattern for sign in "*?[") and fnmatch.fnmatchcase(key.lower(), low),
        lambda key: low in re.split(r"[\W_]+", key.lower()),
    )
    for test in tests:
        fits = [key for key in keys if test(key)]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise ValueError(f"{where}: the arrays {named(fits)} fit {printable(pattern)!r} ({flag}); write one name")
    raise ValueError(f"{where}: has no array {printable(pattern)[:60]!r} ({flag}); arrays: {named(keys) or 'none'}")


def targets(array: np.ndarray) -> list[Any]:
    """Labels or groups of an array: of numbers, text, or characters in rows; (n, 1) and (1, n) are (n,)."""
    if array.dtype.kind == "O":
        sizes = [np.size(one) for one in array.ravel() if not isinstance(one, str | None)]
        if max(sizes, default=0) > 1:
            raise ValueError(f"an array of labels has lists of {max(sizes):,} values; name another with --label")
        values = [one if isinstance(one, str | None) else next(iter(np.ravel(one)), None) for one in array.ravel()]
        return [raw_target(value) for value in values]
    return raw_values(array.ravel()) if max(array.shape, default=1) == array.size else array.tolist()


def _example_arrays(arrays: ArrayFile, roles: Roles, where: str, others: set[str | None]) -> dict[str, list[str]]:
    """The arrays of the examples of each split."""
    keys = [key for key in arrays.headers if key not in others and arrays.headers[key].kind != "text"]
    if roles.array:
        return {"train": [match(name, keys, where, "--array") for name in roles.array]}
    low = _by_name(keys)
    free = [k for k in keys if _size(arrays, k) > 1 and (word(_last(k)) not in _TARGETS or _is_list(arrays, k))]
    splits: dict[str, str] = {}
    for name, key in low.items():
        first, _, ending = name.partition("_")
        inside = first in _EXAMPLES and key in free and _last(key).lower() == first  # of a struct called train
        if (first == "x" or inside) and (split := split_of(ending) if ending else None):
            splits[key] = split
    found = {split: [key] for key, split in splits.items()}
    if "train" not in found:
        free = [k for k in free if k not in splits]
        usual = [low[name] for name in _EXAMPLES if low.get(name) in free]
        lists = [key for key in free if _is_list(arrays, key)]
        tables = [key for key in free if sum(n > 1 for n in arrays.headers[key].shape) > 1] + lists
        if sum("." in key and word(_last(key)) not in TIMES for key in lists) > 1:  # such as the axes x, y and z
            usual, tables = [], lists
        if usual or len(tables) == 1:
            found = {"train": (usual or tables)[:1], **found}
    if not found:
        there = _shapes(list(arrays.headers), arrays)
        raise ValueError(
            f"expected arrays X and y, or X_train, y_train, X_test, y_test; got {there}: "
            "name those of the examples with --array and that of the labels with --label (array=, label= in Python)"
        )
    return found


def _by_name(keys: Sequence[str]) -> dict[str, str]:
    """Arrays by their names in lower case without structs and groups; names that several have are left out.

    In a struct or group that has the name of a split, X is x_train.
    """
    found: dict[str, list[str]] = {}
    for key in keys:
        *around, name = re.split("[./]", key.lower())
        split = next((one for one in map(split_of, around) if one), None)
        found.setdefault(f"{name}_{split}" if split else name, []).append(key)
    return {
        name: min(some, key=len)
        for name, some in found.items()
        if len(some) == 1 or sum(key.lower() == name for key in some) == 1
    }


def _last(key: str) -> str:
    """The name of an array without those of the structs or groups around it."""
    return re.split("[./]", key)[-1]


def _around(key: str) -> str:
    """The structs or groups around an array."""
    return key[: len(key) - len(_last(key))].rstrip("./")


def _nearest(keys: Sequence[str], examples: str, where: str, what: str, flag: str) -> str | None:
    """The array that goes with one of examples: in the same struct, else in one around it, else the only one."""
    around = _around(examples)
    while True:
        if here := [key for key in keys if _around(key) == around]:
            return here[0]
        if not around:
            break
        around = _around(around)
    if len(keys) > 1:
        raise ValueError(f"{where}: {what} may be {named(keys)}; choose with {flag}")
    return next(iter(keys), None)


def _is_there(name: str, keys: Sequence[str]) -> bool:
    try:
        return bool(match(name, keys, "", ""))
    except ValueError:
        return False


def _targets(arrays: ArrayFile, keys: Sequence[str]) -> list[Any] | None:
    """The raw targets of arrays; of several, dicts from their names to values; None without any."""
    found = [targets(arrays.read(key)) for key in keys]
    return None if not found else found[0] if len(found) == 1 else [dict(zip(keys, row)) for row in zip(*found)]


def _target_keys(examples: str, arrays: ArrayFile) -> list[str]:
    """The array of the labels that go with an array of examples, if there is one."""
    keys = [key for key in arrays.headers if not _is_list(arrays, key)]
    low = _by_name(keys)
    beside = {_last(key).lower(): key for key in reversed(keys) if _around(key) == _around(examples)}
    name = _last(examples).lower()
    ending = name[1:] if name.startswith("x") else ""
    usual = [f"y{ending}", *(f"{name}{ending}" for name in LABELS), *((*LABELS, "y") if not ending else ())]
    return [some[name] for some in (beside, low) for name in usual if name in some and some[name] != examples][:1]


def _examples_first(array: np.ndarray, count: int | None, key: str, notes: list[str]) -> Any:
    if array.dtype.kind == "O":  # a list of recordings
        return [_oriented(np.asarray(one, dtype=np.float32))[0] for one in array]
    if count is not None and array.ndim > 1 and len(array) != count and array.shape[-1] == count:
        notes.append(f"the last axis of {printable(key)} {array.shape} is that of the examples, as many as labels")
        return np.moveaxis(array, -1, 0)
    return array


def _as_channels(stacked: list[Any], names: Sequence[str], where: str) -> Any:
    if all(isinstance(one, list) for one in stacked) and len({len(one) for one in stacked}) == 1:
        each = [[np.shape(row)[-1] for row in rows] for rows in zip(*stacked)]
        if any(len(set(lengths)) > 1 for lengths in each):
            different = next(lengths for lengths in each if len(set(lengths)) > 1)
            raise ValueError(f"{where}: arrays that are channels need one length in each example; got {different}")
        return [np.concatenate(rows) for rows in zip(*stacked)]
    shapes = [np.shape(one) for one in stacked]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        listed = ", ".join(f"{printable(name)} {shape}" for name, shape in zip(names, shapes))
        raise ValueError(f"{where}: arrays that are channels need one shape (n, time); got {listed}")
    return np.stack(stacked, axis=1)


def _shape(part: Part) -> str:
    first: tuple[int, ...] = part.items[0].shape if part.items else (0,)
    return f"({len(part.items):,} of {first[0]} channel{'s' * (first[0] > 1)} x {' x '.join(map(str, first[1:]))})"


def _rate(arrays: ArrayFile, examples: str, notes: list[str]) -> tuple[str | None, list[float]]:
    """The array with the sampling rate, and this rate in Hz; of an array of structs one of each, if they differ."""
    keys = []
    for key, header in arrays.headers.items():
        of_each = "." in key and header.kind == "number" and header.shape == arrays.headers[examples].shape
        if word(_last(key)) in _RATES and (_is_number(header) or (of_each and _is_list(arrays, examples))):
            keys.append(key)
    if len(keys) > 1 and len({tuple(np.unique(arrays.read(key))) for key in keys}) == 1:
        keys = keys[:1]
    chosen: str | None = None
    try:
        chosen = _nearest(keys, examples, "", "", "")
    except ValueError:
        each = ", ".join(f"{printable(key)} {arrays.read(key).ravel()[0]:g}" for key in keys)
        notes.append(Doubt(f"no sampling rate is read, as it may be {each}; save it beside the examples"))
    rates = [] if chosen is None else arrays.read(chosen).ravel().astype(float).tolist()
    return chosen, rates[:1] if len(set(rates)) == 1 else rates


def _is_number(header: Header) -> bool:
    """Whether an array is a single number."""
    return header.kind == "number" and set(header.shape) <= {1}


def _size(arrays: ArrayFile, key: str) -> int:
    """Number of values of an array, or of texts; at least 2 for a list."""
    header = arrays.headers[key]
    return max(math.prod(header.shape), 2) if header.kind == "list" else math.prod(header.shape)


def _is_list(arrays: ArrayFile, key: str) -> bool:
    return arrays.headers[key].kind == "list"


def _is_vector(arrays: ArrayFile, key: str) -> bool:
    return max(arrays.headers[key].shape, default=1) == _size(arrays, key)


def _together(keys: list[str], arrays: ArrayFile, where: str) -> list[str]:
    """The only matrix, else all vectors if they have one length."""
    matrices = [key for key in keys if not _is_vector(arrays, key)]
    vectors = [key for key in keys if _is_vector(arrays, key)]
    lengths = {_size(arrays, key) for key in vectors}
    if len(matrices) == 1:
        return matrices
    if not matrices and len(lengths) == 1:
        return vectors
    raise ValueError(
        f"{where}: expected one array with a recording, or vectors of one length, which are its channels; got "
        f"{_shapes(keys or list(arrays.headers), arrays)}: name them with --array (array= in "
        "Python)"
    )


def _shapes(keys: Sequence[str], arrays: ArrayFile) -> str:
    """Arrays and their shapes, and what else is in the file, for messages."""
    found = []
    for key in keys:
        (shape, kind), count = arrays.headers[key], _size(arrays, key)
        what = {"list": f"{count:,} arrays", "text": "text" if count == 1 else f"{count:,} texts"}
        found.append(f"{printable(key)} {what.get(kind, shape)}")
    others = f" (not read: {listing([printable(one) for one in arrays.others], 10)})" if arrays.others else ""
    return (listing(found, 20) or "no array") + others


def _channels(keys: Sequence[str], arrays: ArrayFile) -> tuple[np.ndarray, list[str]]:
    """(channels, time) from vectors, or from the rows or columns of a matrix, and notes."""
    notes: list[str] = []
    rows: list[np.ndarray] = []
    for key in keys:
        array = arrays.read(key)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"the array {printable(key)} has {array.dtype} values; expected real numbers")
        if array.ndim > 2 and min(array.shape) > 1:
            raise ValueError(f"the array {printable(key)} has the shape {array.shape}; expected (channels, time)")
        oriented, exchanged = _oriented(array)
        if exchanged:
            shape = f"{printable(key)} of shape {array.shape} is read as {len(oriented)} channels of {array.shape[0]:,}"
            notes.append(f"{shape} values" if arrays.columns else Doubt(f"{shape} values; save channels first"))
        rows += list(oriented)
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(f"{printable(key)} {len(row):,}" for key, row in zip(keys, rows))
        raise ValueError(f"channels need one length; got {lengths} values")
    return np.stack(rows).astype(np.float64), notes


def _oriented(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """(channels, time), the longer axis as time, and whether that exchanged the axes."""
    squeezed = np.atleast_1d(np.squeeze(array))
    if squeezed.ndim == 1:
        return squeezed[None], False
    exchanged = squeezed.ndim == 2 and squeezed.shape[0] > squeezed.shape[1] and squeezed.shape[1] <= _MOST_CHANNELS
    return (squeezed.T, True) if exchanged else (squeezed, False)


def _selected(
    values: np.ndarray, names: tuple[str, ...], channels: Iterable[str], where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The channels of these names or numbers."""
    chosen = []
    for channel in channels:
        number = int(channel) if re.fullmatch(r"-?\d{1,6}", channel) else None
        if number is not None and channel not in names and -len(names) <= number < len(names):
            chosen.append(number)
        else:
            chosen.append(names.index(match(channel, names, where, "--channels")))
    return values[chosen], tuple(names[i] for i in chosen)
