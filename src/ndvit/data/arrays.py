"""Numbers from arrays in memory, and from files of many examples: .ts, .tsv, .npz, .npy with labels beside it."""

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.images import plain

TABLES = (".ts", ".tsv", ".npz", ".npy")
"""Files of many examples, by ending."""

_NPY, _ZIP = b"\x93NUMPY", b"PK"  # what .npy and .npz files begin with


class Part(NamedTuple):
    """One part of a data set before its classes are known; `labels` is None where there are none at all."""

    items: list[Any]
    labels: list[str | None] | None
    names: list[str]

    def take(self, indices: Any) -> "Part":
        """Return the examples at these indices."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        return Part([self.items[i] for i in indices], labels, [self.names[i] for i in indices])


def as_part(x: Any, y: Any, where: str, labels_where: str = "y") -> Part:
    """Bring arrays into examples of (channels, *grid) float32.

    Args:
        x: (n, time) or (n, channels, *grid); or a list of (time,) or (channels, *grid), or of PIL images.
        y: n labels, or None.
        where: How messages and names call `x`.
        labels_where: How messages call `y`.

    Raises:
        ValueError: no numbers, an array of too few dimensions, or x and y of different length.
    """
    items: list[Any]
    if isinstance(x, list | tuple) and x and all(isinstance(row, Image.Image) for row in x):
        items = [plain(row) for row in x]
    elif isinstance(x, list | tuple):
        items = [_with_channels(numbers(row, f"{where}[{i}]"), f"{where}[{i}]") for i, row in enumerate(x)]
    else:
        values = numbers(x, where)
        if values.ndim < 2:
            raise ValueError(f"{where} has shape {values.shape}; expected (n, time) or (n, channels, time, ...)")
        items = [_with_channels(row, where) for row in values]
    labels = None if y is None else label_names(y, labels_where)
    if labels is not None and len(labels) != len(items):
        raise ValueError(f"{where}: {len(items)} examples but {len(labels)} labels; every example needs one label")
    return Part(items, labels, [f"{where}[{i}]" for i in range(len(items))])


def numbers(x: Any, where: str) -> np.ndarray:
    """Return `x` as float32.

    Raises:
        ValueError: text, Python objects, complex numbers, rows of unequal length.
    """
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{where} has rows of different length; give a list with one array for each example"
        ) from error
    _check_type(array, where)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and infinite values are refused
        values = np.asarray(array, dtype=np.float32)
    warn_of_rounding(array, values, where)
    return values


def warn_of_rounding(given: np.ndarray, values: np.ndarray, where: str) -> None:
    """Warn where values of float32 have lost what varies, as small changes of large numbers do (a clock in seconds).

    Args:
        given: numbers as they came, of any shape; of three axes or more, the second one has the channels.
        values: the same in float32.
        where: how the message calls them.
    """
    if not given.size or given.dtype.kind not in "fiu" or given.dtype in (np.float32, np.float16):
        return
    axes, exact = tuple(i for i in range(given.ndim) if i != 1 or given.ndim < 3), given.astype(np.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own, where there is nothing but NaN
        lost = np.nanmax(np.abs(values - exact), axis=axes)
        std, mean = np.nanstd(exact, axis=axes), np.nanmean(exact, axis=axes)
    if np.any((lost > 0.01 * std) & (std > 1e-12 * np.abs(mean))):  # a constant has nothing to lose
        warnings.warn(
            f"{where} varies little around large values, and float32 rounds that off by more than a hundredth of its "
            "standard deviation: subtract the mean of each channel first",
            stacklevel=2,
        )


def _check_type(array: np.ndarray, where: str) -> None:
    if array.dtype.kind not in "fiub":
        what = {"O": "Python objects", "U": "text", "S": "text"}.get(array.dtype.kind, "other things")
        raise ValueError(
            f"{where} holds {what} ({array.dtype}); numbers are needed (unequal lengths: a list of arrays)"
        )


def _with_channels(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim == 0:
        raise ValueError(f"{where} is a single number; expected (time,) or (channels, time, ...)")
    return values[None] if values.ndim == 1 else values


def label_names(y: Any, where: str) -> list[str | None]:
    """Return labels as text: 1, 1.0 and "1.0000e+00" (archives write it) are "1"; NaN, "?" and "" are None, missing.

    Raises:
        ValueError: not one label for each example, or bytes that are no text.
    """
    values = y.tolist() if hasattr(y, "tolist") else y
    if not isinstance(values, list | tuple) or any(isinstance(value, list | tuple) for value in values):
        raise ValueError(f"{where} has shape {np.shape(y)}; expected one label for each example, (n,)")
    try:
        return [_label(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} holds bytes that are not UTF-8, {error.object!r}; give labels as text") from error


def _label(value: Any) -> str | None:
    text = "" if value is None else (value.decode() if isinstance(value, bytes) else str(value)).strip()
    if re.fullmatch(r"[-+]?\d+\.\d*(e[-+]?\d+)?", text, re.IGNORECASE) and float(text).is_integer():
        return str(int(float(text)))
    return None if text.lower() in ("", "?", "nan") else text


def read_table(path: Path) -> dict[str, Part]:
    """Read a file of many examples: {"train": ...}, and "test" and "val" where one .npz holds them.

    Raises:
        ValueError: what is wrong in which file (and line).
    """
    reader = {".ts": _read_ts, ".tsv": _read_tsv, ".npz": _read_npz, ".npy": _read_npy}[path.suffix.lower()]
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        message = str(error)
        raise ValueError(message if path.name in message else f"{path}: {message}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # old archives are in any encoding; what is not UTF-8 stays apart as \xe9, so that no two labels become one
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line.strip("\r\n ")


def _series(fields: list[str], where: str) -> np.ndarray:
    values = [field if field.strip() not in ("?", "") else "nan" for field in fields]
    try:
        with np.errstate(over="ignore"):  # as in `numbers`
            return np.array(values, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected numbers, NaN or ?") from error


def _read_ts(path: Path) -> dict[str, Part]:
    """The format of the UCR/UEA archives: @tags, then a line an example, channel:channel:label, values by commas.

    Not aeon's reader, because that one turns labels to lower case ("banana" to "baNaNa"), drops the minus signs of
    series with time stamps, and stops at channels of unequal length, which here end in missing values.
    """
    tags: dict[str, bool] = {}
    items: list[np.ndarray] = []
    labels: list[str | None] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if line.startswith(("#", "%")):
            continue
        if "data" not in tags:
            if not line.startswith("@"):
                raise ValueError(f"{where}: expected a comment or a tag such as @data, got {line[:40]!r}")
            tag, *words = line[1:].lower().split() or [""]
            tags[tag] = words[:1] == ["true"]
            if tags.get("timestamps"):
                raise ValueError(f"{where}: time stamps are not read; save plain values (@timeStamps false)")
            if tags.get("targetlabel"):
                raise ValueError(f"{where}: the set is for regression (@targetLabel); classes are needed")
            continue
        channels = line.split(":")
        if tags.get("classlabel"):
            labels.append(_label(channels.pop()))
        rows = [_series(channel.split(","), where) for channel in channels]
        if not rows:
            raise ValueError(f"{where}: expected values, a colon and a label, got {line[:40]!r}")
        values = np.full((len(rows), max(map(len, rows))), np.nan, dtype=np.float32)
        for row, into in zip(rows, values):
            into[: len(row)] = row
        items.append(values)
    if "data" not in tags:
        raise ValueError(f"{path}: no @data line; the file is no .ts file or was cut off")
    names = [f"{path.name}[{i}]" for i in range(len(items))]
    return {"train": Part(items, labels if tags.get("classlabel") else None, names)}


def _read_tsv(path: Path) -> dict[str, Part]:
    """UCR's .tsv: a line an example, its label first, then its values, with tabs between."""
    items, labels = [], []
    for number, line in _lines(path):
        label, *fields = line.split("\t")
        if not fields:
            raise ValueError(f"{path}, line {number}: expected a label and values with tabs between, got {line[:40]!r}")
        labels.append(_label(label))
        items.append(_series(fields, f"{path}, line {number}")[None])
    return {"train": Part(items, labels, [f"{path.name}[{i}]" for i in range(len(items))])}


def load_numpy(path: str | Path) -> dict[str, np.ndarray]:
    """Read an .npy (under the key "") or .npz file, never its pickles.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    with open(path, "rb") as file:  # numpy given a path leaves a damaged .npz open
        _check_magic(file.read(6), (_NPY, _ZIP))
        file.seek(0)
        try:
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
        except (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            if "allow_pickle" in str(error):
                raise ValueError("holds Python objects, which could run code; save plain numbers") from error
            raise ValueError(f"is damaged or cut off ({error})") from error


def _check_magic(magic: bytes, allowed: tuple[bytes, ...]) -> None:
    """Refuse a file by its first six bytes."""
    if magic.startswith(b"\x80"):
        raise ValueError("holds Python objects, which could run code; save plain numbers with numpy.save")
    if magic.startswith(_ZIP) and _ZIP not in allowed:
        raise ValueError("is a zip of arrays, expected a single one; name it .npz, or save the array with numpy.save")
    if not magic.startswith(allowed):
        raise ValueError("is no numpy file" if magic else "is empty (0 bytes)")


def _load_array(path: str | Path, header: bool = False) -> np.ndarray:
    """Read an .npy file, or with `header` leave its values on the disk; raises as `load_numpy`."""
    with open(path, "rb") as file:
        _check_magic(file.read(6), (_NPY,))
    return np.load(path, mmap_mode="r", allow_pickle=False) if header else load_numpy(path)[""]


def read_npy(path: str | Path) -> np.ndarray:
    """Read one example, (time,) or (channels, *grid), as (channels, *grid) float32."""
    return _with_channels(numbers(_load_array(path), "the array"), "the array")


def npy_shape(path: str | Path) -> tuple[int, ...]:
    """Return (channels, *grid) from the header of an .npy file."""
    array = _load_array(path, header=True)
    _check_type(array, "the array")
    return _with_channels(array, "the array").shape


def npy_many(path: str | Path, dims: int, channels: int) -> bool:
    """Say whether an .npy file holds many examples for a model of so many axes and channels, by its header."""
    try:
        axes = _load_array(path, header=True).ndim
    except (OSError, ValueError, EOFError):  # whoever reads the file says what is wrong with it
        return False
    return axes == dims + 2 or (axes == dims + 1 and channels == 1)


def _read_npz(path: Path) -> dict[str, Part]:
    arrays = {key.lower(): array for key, array in load_numpy(path).items()}
    if "x" in arrays:
        return {"train": as_part(arrays["x"], arrays.get("y"), path.name, f"y in {path.name}")}
    parts = {
        part: as_part(arrays[f"x_{part}"], arrays.get(f"y_{part}"), f"{path.name}:X_{part}", f"y_{part} in {path.name}")
        for part in ("train", "test", "val")
        if f"x_{part}" in arrays
    }
    if "train" not in parts and "test" not in parts:
        raise ValueError(
            f"{path}: expected arrays X and y, or X_train, y_train, X_test, y_test; "
            f"got {', '.join(arrays) if all(arrays) else 'a single array; name it .npy'}"
        )
    return parts


def _read_npy(path: Path) -> dict[str, Part]:
    beside = [path.with_name(f"{path.stem}_labels{ending}") for ending in (".npy", ".txt")]
    if path.stem[0] in "xX":
        beside += [path.with_name(y + path.stem[1:] + ending) for y in "yY" for ending in (".npy", ".txt")]
    found = next((file for file in beside if file.is_file()), None)
    y: Any = None
    try:
        if found is not None and found.suffix == ".txt":
            y = found.read_text(encoding="utf-8-sig").rstrip().split("\n")
        elif found is not None:
            y = _load_array(found)
    except ValueError as error:
        fault = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{found}, the labels of {path.name}: {fault}") from error
    return {"train": as_part(_load_array(path), y, path.name, found.name if found else "y")}
