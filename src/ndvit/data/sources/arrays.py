"""Numbers from arrays in memory, and from numpy's files."""

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.preprocess.images import plain

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
    elif isinstance(x, list | tuple) and any(isinstance(row, Image.Image) for row in x):
        raise ValueError(f"{where} mixes pictures and arrays; give a list of PIL images, or of arrays")
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
        return [label_name(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} holds bytes that are not UTF-8, {error.object!r}; give labels as text") from error


def label_name(value: Any) -> str | None:
    """Return one label as text; UnicodeDecodeError for bytes that are none."""
    text = "" if value is None else (value.decode() if isinstance(value, bytes) else str(value)).strip()
    if re.fullmatch(r"[-+]?\d+\.\d*(e[-+]?\d+)?", text, re.IGNORECASE) and float(text).is_integer():
        return str(int(float(text)))
    return None if text.lower() in ("", "?", "nan") else text


def load_numpy(path: str | Path) -> dict[str, np.ndarray]:
    """Read an .npy (under the key "") or .npz file, never its pickles.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    with open(path, "rb") as file:  # numpy given a path leaves a damaged .npz open
        _check_magic(file.read(6), (_NPY, _ZIP))
        file.seek(0)
        with _plain_errors():
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
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
    if magic.startswith(_NPY) and _NPY not in allowed:
        raise ValueError("is a single array, expected a zip of one; name it .npy, or save it with numpy.savez")
    if not magic.startswith(allowed):
        raise ValueError("is no numpy file" if magic else "is empty (0 bytes)")


def load_array(path: str | Path, header: bool = False) -> np.ndarray:
    """Read an .npy file, or with `header` leave its values on the disk; raises as `load_numpy`."""
    with open(path, "rb") as file:
        _check_magic(file.read(6), (_NPY,))
    return np.load(path, mmap_mode="r", allow_pickle=False) if header else load_numpy(path)[""]


def _only_array(path: str | Path, header: bool = False) -> np.ndarray:
    """Read the array of an .npz file that holds a single one; with `header` its values are not to be looked at."""
    with open(path, "rb") as file:
        _check_magic(file.read(6), (_ZIP,))
        file.seek(0)
        with _plain_errors():
            arrays = np.load(file, allow_pickle=False)
            names = arrays.files
            if len(names) == 1 and not header:
                array: np.ndarray = arrays[names[0]]
                return array
            if len(names) == 1:
                with arrays.zip.open(f"{names[0]}.npy") as inner:
                    version = np.lib.format.read_magic(inner)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](inner)
                    return np.broadcast_to(np.empty((), dtype), shape)
    raise ValueError(f"holds {len(names)} arrays ({', '.join(names[:5])}); as one example it needs a single one")


def _array_of(path: str | Path, header: bool = False) -> np.ndarray:
    read = _only_array if str(path).lower().endswith(".npz") else load_array
    return read(path, header)


def read_npy(path: str | Path) -> np.ndarray:
    """Read one example, (time,) or (channels, *grid), as (channels, *grid) float32, from an .npy or .npz file."""
    return _with_channels(numbers(_array_of(path), "the array"), "the array")


def npy_shape(path: str | Path) -> tuple[int, ...]:
    """Return (channels, *grid) from the header of a file that holds one example: .npy, .npz or a raster."""
    from ndvit.data.sources.rasters import TIFFS, raster_shape  # which need this room

    if str(path).lower().endswith(TIFFS):
        return raster_shape(path)
    array = _array_of(path, header=True)
    _check_type(array, "the array")
    return _with_channels(array, "the array").shape


def npy_many(path: str | Path, dims: int, channels: int) -> bool:
    """Say whether an .npy file holds many examples for a model of so many axes and channels, by its header."""
    try:
        axes = load_array(path, header=True).ndim
    except (OSError, ValueError, EOFError):  # whoever reads the file says what is wrong with it
        return False
    return axes == dims + 2 or (axes == dims + 1 and channels == 1)


def npz_single(path: str | Path, dims: int | None, channels: int) -> bool:
    """Say whether an .npz file holds one example: a single array, and not many of them by its name or its axes."""
    try:
        with open(path, "rb") as file:  # as in `load_numpy`
            (name,) = np.load(file, allow_pickle=False).files
        if name.lower() not in ("x", "x_train", "x_test", "x_val"):
            return True
        axes = _only_array(path, header=True).ndim
    except Exception:  # it is read as a table, and what is wrong with it is said then
        return False
    return dims is not None and axes != dims + 2 and not (axes == dims + 1 and channels == 1)
