"""Arrays in memory: conversion to float32 examples and raw targets."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ndvit.data.examples import Part
from ndvit.data.messages import DataWarning, printable
from ndvit.data.sources.pictures import plain

_FLOAT = re.compile(r"[-+]?\d+\.\d*(e[-+]?\d+)?", re.IGNORECASE)


def read_arrays(source: tuple[Any, ...] | dict[str, Any]) -> dict[str, Part]:
    """Return the parts of (X, y), (X_train, y_train, X_test, y_test), or a dict with such keys."""
    names = {2: ("X", "y"), 4: ("X_train", "y_train", "X_test", "y_test")}.get(len(source))
    if isinstance(source, tuple) and names:
        source = dict(zip(names, source))
    if not isinstance(source, dict) or names is None or set(source) != set(names):
        got = f"keys {', '.join(map(str, source))}" if isinstance(source, dict) else f"{len(source)} arrays"
        raise ValueError(f"arrays must be X, y or X_train, y_train, X_test, y_test; got {got}")
    splits = zip(("train", "test"), names[::2], names[1::2])
    return {split: as_part(source[x], source[y], x, y) for split, x, y in splits}


def read_examples(x: Any) -> Part:
    """Return arrays or PIL images without targets; raise a ValueError for a list of paths or another type."""
    if isinstance(x, list | tuple) and any(isinstance(row, str | Path) for row in x):
        raise ValueError("got a list of paths; pass them one by one: predict(run, *paths)")
    if not isinstance(x, list | tuple) and not hasattr(x, "__array__"):
        raise ValueError(
            "examples to predict are paths, an array (n, time) or (n, channels, time, ...), a list of arrays or a list "
            f"of PIL images; got a {type(x).__name__}"
        )
    return as_part(x, None, "X")


def as_part(x: Any, y: Any, where: str, targets_where: str = "y") -> Part:
    """Convert arrays to examples (channels, *grid) float32 and raw targets.

    Args:
        x: (n, time) or (n, channels, *grid); or a list of (time,) or (channels, *grid), or of PIL images.
        y: n targets, or None.
        where: name of `x` in messages and names.
        targets_where: name of `y` in messages.

    Raises:
        ValueError: if x is not numeric, has too few dimensions, or has another length than y.
    """
    items: list[Any]
    if isinstance(x, list | tuple) and x and all(isinstance(row, Image.Image) for row in x):
        items = [plain(row) for row in x]
    elif isinstance(x, list | tuple) and any(isinstance(row, Image.Image) for row in x):
        raise ValueError(f"{where} mixes pictures and arrays; pass a list of PIL images, or of arrays")
    elif isinstance(x, list | tuple):
        items = [with_channels(numbers(row, f"{where}[{i}]"), f"{where}[{i}]") for i, row in enumerate(x)]
    else:
        values = numbers(x, where)
        if values.ndim < 2:
            raise ValueError(f"{where} has shape {values.shape}; expected (n, time) or (n, channels, time, ...)")
        items = [with_channels(row, where) for row in values]
    targets = None if y is None else raw_targets(y, targets_where)
    if targets is not None and len(targets) != len(items):
        raise ValueError(f"{where}: {len(items)} examples but {len(targets)} targets; every example needs one")
    return Part(items, targets, [f"{where}[{i}]" for i in range(len(items))])


def raw_targets(y: Any, where: str) -> list[Any]:
    """Return targets as a list: text without outer spaces and control characters, numbers, None for missing ones.

    Raises:
        ValueError: if there is not one target for each example, or for bytes that are not UTF-8.
    """
    values = y.tolist() if hasattr(y, "tolist") else y
    if not isinstance(values, list | tuple) or any(isinstance(value, list | tuple) for value in values):
        raise ValueError(f"{where} has shape {np.shape(y)}; expected one target for each example, (n,)")
    try:
        return [raw_target(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} has bytes that are not UTF-8, {error.object!r}; pass text") from error


def raw_target(value: Any) -> Any:
    """Return one target: None, NaN, "?" and "" become None (missing), and "1.0000e+00", as archives write it, "1"."""
    value = value.decode() if isinstance(value, bytes) else value.item() if isinstance(value, np.generic) else value
    if value is None or str(value).strip().lower() in ("", "?", "nan"):
        return None
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _FLOAT.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return printable(text)


def numbers(x: Any, where: str) -> np.ndarray:
    """Return `x` as float32; values that are too large for it become infinite.

    Raises:
        ValueError: for text, Python objects, complex numbers, or rows of unequal length.
    """
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{where} has rows of different length; pass a list with one array for each example"
        ) from error
    check_numeric(array, where)
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
        what = {"O": "Python objects", "U": "text", "S": "text"}.get(array.dtype.kind, "other types")
        raise ValueError(f"{where} has {what} ({array.dtype}); expected numbers (unequal lengths: a list of arrays)")


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
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of slices with nothing but NaN
        lost = np.nanmax(np.abs(values - exact), axis=axes)
        std, mean = np.nanstd(exact, axis=axes), np.nanmean(exact, axis=axes)
    if np.any((lost > 0.01 * std) & (std > 1e-12 * np.abs(mean))):  # a constant has no variation to lose
        warnings.warn(
            f"{where} varies little around large values, and float32 rounds that off by more than a hundredth of its "
            "standard deviation: subtract the mean of each channel first",
            DataWarning,
            stacklevel=2,
        )
