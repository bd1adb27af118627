"""Data in memory: conversion to float32 examples and raw targets."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ndvit.config.bounds import counted
from ndvit.data.examples import Part
from ndvit.data.messages import DataWarning, Doubt, listing, printable
from ndvit.data.sources.containers import (
    check_names,
    is_array_like,
    is_missing,
    named_rows,
    plain_array,
    plain_labels,
    read_container,
    refused,
)
from ndvit.data.sources.pictures import plain

_FLOAT = re.compile(r"[-+]?\d+\.\d*(e[-+]?\d+)?", re.IGNORECASE)
MISSING_WORDS = frozenset(
    {"?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "NAN", "NaT", "None", "n/a", "nan", "null"}
)
"""Labels that stand for a missing one: "?" of the UCR archive, and what pandas reads as missing."""


def read_arrays(
    source: tuple[Any, ...] | Mapping[str, Any], columns: Sequence[str] = ()
) -> tuple[dict[str, Part], list[str]]:
    """Return the parts of (X, y), (X_train, y_train, X_test, y_test) or a dict with such keys, and notes.

    A dict may also have X_val and y_val, and each of `columns` under its name, or under name_train, name_test and so
    on. Its other keys are not read, with a doubt.
    """
    names = {2: ("X", "y"), 4: ("X_train", "y_train", "X_test", "y_test")}.get(len(source))
    if isinstance(source, tuple):
        found = dict(zip(names or (), source))
    else:
        found = {str(key): value for key, value in source.items()}
        names = ("X", "y") if "X" in found and "y" in found else ("X_train", "y_train", "X_test", "y_test")
        if {"X_val", "y_val"} <= set(found):
            names = (*names, "X_val", "y_val")
    if names is None or not set(names) <= set(found):
        got = f"{len(source)} arrays" if isinstance(source, tuple) else f"keys {', '.join(map(str, source))}"
        raise ValueError(f"arrays must be X, y or X_train, y_train, X_test, y_test; got {got}")
    parts: dict[str, Part] = {}
    notes: list[str] = []
    first: tuple[str, ...] | None = None
    for x, y in list(zip(names[::2], names[1::2])):
        part, channels, doubts = _read_part(found[x], found[y], x, y)
        check_names(channels, first, x, names[0])
        first = channels if first is None else first
        beside, used = columns_beside(x[1:], columns, found, len(part.items))
        parts[x.partition("_")[2] or "train"] = part._replace(columns=beside)
        names = (*names, *used)
        notes += [doubt for doubt in doubts if doubt not in notes]
    if unread := [name for name in found if name not in names]:
        notes.append(Doubt(f"arrays not read: {listing(list(map(printable, unread)), 10)}"))
    return parts, notes


def columns_beside(
    suffix: str, columns: Sequence[str], arrays: Mapping[str, Any], count: int
) -> tuple[dict[str, list[Any]], list[str]]:
    """The values of columns that stand beside X or X_train, as NAME or NAME_train, and the keys that were read.

    Args:
        suffix: "" or, for example, "_train".
        columns: names of the columns.
        arrays: arrays by name; columns that it lacks are left out.
        count: number of examples.

    Raises:
        ValueError: unless there is one value for each example.
    """
    found: dict[str, list[Any]] = {}
    used: list[str] = []
    for column in columns:
        for key in (column + suffix, column):
            if key in arrays:
                values = np.asarray(plain_labels(arrays[key], key))
                if values.shape != (count,):
                    raise ValueError(
                        f"{key} has shape {values.shape}; expected one value for each of the {count:,} examples "
                        f"of X{suffix}"
                    )
                found[column] = values.tolist()
                used.append(key)
                break
    return found, used


def read_examples(x: Any) -> tuple[Part, list[str]]:
    """Return examples in memory without targets, and notes; raise a ValueError for a list of paths or another type."""
    if isinstance(x, list | tuple) and any(isinstance(row, str | Path) for row in x):
        raise ValueError("got a list of paths; pass them one by one: predict(run, *paths)")
    if not isinstance(x, list | tuple | Mapping) and not is_array_like(x):
        raise ValueError(
            "examples to predict are paths, an array (n, time) or (n, channels, time, ...), a table, a list of arrays "
            f"or a list of PIL images; got a {type(x).__name__}"
        )
    part, _, doubts = _read_part(x, None, "X", "y")
    return part, list(doubts)


def as_part(x: Any, y: Any, where: str, targets_where: str = "y") -> Part:
    """Convert arrays to examples (channels, *grid) float32 and raw targets.

    Args:
        x: (n, time) or (n, channels, *grid); or a list of (time,) or (channels, *grid), or of PIL images; or another
            container, see `read_container`.
        y: n targets, or None.
        where: name of `x` in messages and names.
        targets_where: name of `y` in messages.

    Raises:
        ValueError: if x is not numeric, has too few dimensions, or has another length than y.
    """
    return _read_part(x, y, where, targets_where)[0]


def _read_part(
    x: Any, y: Any, where: str, targets_where: str
) -> tuple[Part, tuple[str, ...] | None, tuple[Doubt, ...]]:
    """The part, the names of columns or channels, and doubts."""
    found, names, doubts = read_container(x, where)
    items: list[Any]
    if isinstance(found, np.ndarray):
        if found.ndim < 2:
            raise ValueError(f"{where} has shape {found.shape}; expected (n, time) or (n, channels, time, ...)")
        items = [with_channels(row, where) for row in _float32(found, where)]
    elif found and isinstance(found[0], Image.Image):
        items = [row.copy() if (picture := plain(row)) is row else picture for row in found]  # the caller's may change
    else:
        items = [with_channels(_float32(row, f"{where}[{i}]"), f"{where}[{i}]") for i, row in enumerate(found)]
    targets = None if y is None else raw_targets(y, targets_where)
    if targets is not None and len(targets) != len(items):
        raise ValueError(
            f"{where}: {counted(len(items), 'example')} but {counted(len(targets), 'target')}; every example needs one"
        )
    return Part(items, targets, [f"{where}[{i}]" for i in range(len(items))]), names, doubts


def raw_targets(y: Any, where: str) -> list[Any]:
    """Return targets as a list: text without outer spaces and control characters, numbers, None for missing ones.

    Several targets of an example are a tuple of such values, and those of a table a dict with the names of its columns.

    Raises:
        ValueError: if there is not one row of targets for each example, or for bytes that are not UTF-8.
    """
    shape = getattr(y, "shape", (len(y),) if isinstance(y, list | tuple) else ())
    if (rows := named_rows(y)) is not None:
        return [{name: raw_target(value) for name, value in row.items()} for row in rows]
    values = plain_labels(y, where)
    nested = isinstance(values, list | tuple) and any(isinstance(value, list | tuple | np.ndarray) for value in values)
    if not isinstance(values, list | tuple) or (nested and np.ndim(values[0]) > 1):
        raise ValueError(f"{where} has shape {shape}; expected one target for each example, (n,), or a row of them")
    try:
        if nested:
            return [
                tuple(map(raw_target, value)) if isinstance(value, list | tuple | np.ndarray) else raw_target(value)
                for value in values
            ]
        return [raw_target(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} has bytes that are not UTF-8, {error.object!r}; pass text") from error


def raw_target(value: Any) -> Any:
    """Return one target: None, NaN, NaT, NA and "" become None (missing), and "1.0000e+00", as archives write it, "1".

    Words such as NA remain text, see `missing_labels`.
    """
    if is_missing(value):
        return None
    if isinstance(value, set | frozenset | Mapping):
        return value
    value = value.decode() if isinstance(value, bytes) else value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _FLOAT.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return printable(text) or None


def missing_labels(targets: Sequence[Any]) -> list[int]:
    """Indices of the raw targets that are missing: None, or a word such as "?" or "NA" that is no `ClassName`."""
    return [
        i for i, target in enumerate(targets) if target is None or (type(target) is str and target in MISSING_WORDS)
    ]


def labels_are_missing(
    where: str, names: Sequence[str], targets: Sequence[Any], missing: Sequence[int], how: str
) -> ValueError:
    """Return the error for missing labels, with the first names and words; `how` to leave their examples out."""
    words = sorted({targets[i] for i in missing if targets[i] is not None})
    found = listing([names[i] for i in missing]) + (f" ({', '.join(words)})" if words else "")
    literal = "; if such a word is the name of a class, set --literal-labels (literal_labels=True in Python)"
    return ValueError(
        f"{len(missing):,} labels are missing in {where}: {found}. Add them, or leave these examples out ({how})"
        f"{literal if words else ''}"
    )


def numbers(x: Any, where: str) -> np.ndarray:
    """Return an array or nested lists as float32; values that are too large for it become infinite.

    Raises:
        ValueError: for values that are not real numbers, or rows of unequal length.
    """
    return _float32(plain_array(x, where), where)


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite values are refused later
        values = np.asarray(array, dtype=np.float32)
    warn_of_rounding(array, values, where)
    return values


def value_fault(values: np.ndarray) -> str | None:
    """The fault of an example whose values cannot be used; None for a good one."""
    if np.isinf(values).any():
        return "has infinite values; repair them, or mark them as missing (NaN)"
    return "nothing is observed: all values are missing (NaN)" if np.isnan(values).all() else None


def check_numeric(array: np.ndarray, where: str) -> None:
    """Raise a ValueError unless the array has real numbers."""
    if array.dtype.kind not in "fiub":
        raise refused(array.dtype, where)


def with_channels(values: np.ndarray, where: str) -> np.ndarray:
    """Add the axis of channels to an example (time,); raise a ValueError for a single number."""
    if values.ndim == 0:
        raise ValueError(f"{where} is a single number; expected (time,) or (channels, time, ...)")
    return values[None] if values.ndim == 1 else values


def warn_of_rounding(original: np.ndarray, values: np.ndarray, where: str) -> None:
    """Warn if float32 loses small variations of large numbers, such as a clock in seconds.

    Args:
        original: numbers of any shape; with three axes or more, the second is that of the channels.
        values: the same as float32.
        where: their name in the message.
    """
    if not original.size or original.dtype.kind not in "fiu" or original.dtype in (np.float32, np.float16):
        return
    axes = tuple(i for i in range(original.ndim) if i != 1 or original.ndim < 3)
    exact = original.astype(np.float64)
    # not nanmax, nanmean and nanstd: they warn of slices with nothing but NaN, and files are read in threads, in which
    # warnings.catch_warnings can leave the filters of the whole process changed
    observed = ~np.isnan(exact)
    with np.errstate(all="ignore"):
        count = np.sum(observed, axis=axes, keepdims=True)
        mean = np.sum(exact, axis=axes, keepdims=True, where=observed) / count
        std = np.sqrt(np.sum((exact - mean) ** 2, axis=axes, keepdims=True, where=observed) / count)
        lost = np.max(np.abs(values - exact), axis=axes, keepdims=True, where=observed, initial=0)
    if np.any((lost > 0.01 * std) & (std > 1e-12 * np.abs(mean))):  # a constant has no variation to lose
        warnings.warn(
            f"{where} varies little around large values, and float32 rounds that off by more than a hundredth of its "
            "standard deviation: subtract the mean of each channel first",
            DataWarning,
            stacklevel=2,
        )
