"""Reading .npy and .npz files, never their pickles."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ndvit.data.sources.arrays import check_numeric, numbers, with_channels

_NPY, _ZIP = b"\x93NUMPY", b"PK"  # first bytes of .npy and .npz files
_TABLE_KEYS = ("x", "x_train", "x_test", "x_val")  # names of arrays of many examples in .npz files


def load_numpy(path: str | Path) -> dict[str, np.ndarray]:
    """Read an .npy file (under the key "") or an .npz file; raise ValueErrors without the name of the file."""
    with _opened(path, _NPY, _ZIP) as file:
        loaded = np.load(file, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}


def load_array(path: str | Path, header: bool = False) -> np.ndarray:
    """Read the only array of an .npy or .npz file; with `header`, only shape and type of the result are defined."""
    if not str(path).lower().endswith(".npz"):
        with _opened(path, _NPY) as file:
            return np.load(path, mmap_mode="r") if header else np.load(file, allow_pickle=False)
    with _opened(path, _ZIP) as file:
        arrays = np.load(file, allow_pickle=False)
        if len(names := arrays.files) == 1:
            if not header:
                return np.asarray(arrays[names[0]])
            with arrays.zip.open(f"{names[0]}.npy") as inner:
                version = np.lib.format.read_magic(inner)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](inner)
                return np.broadcast_to(np.empty((), dtype), shape)
    raise ValueError(f"has {len(names)} arrays ({', '.join(names[:5])}); one example must be a single array")


def read_npy(path: str | Path) -> np.ndarray:
    """Read one example, (time,) or (channels, *grid), from an .npy or .npz file, as (channels, *grid) float32."""
    return with_channels(numbers(load_array(path), "the array"), "the array")


def npy_shape(path: str | Path) -> tuple[int, ...]:
    """Return (channels, *grid) from the header of an .npy or .npz file with one example."""
    array = load_array(path, header=True)
    check_numeric(array, "the array")
    return with_channels(array, "the array").shape


def has_many_examples(path: Path, dims: int | None, channels: int) -> bool:
    """Whether an .npy or .npz file has many examples, by its headers and for a model with `dims` axes and `channels`.

    A single array in an .npz file is one example unless its name (X, X_train, ...) and its axes are those of many.
    Damaged files get any answer: reading them raises the error.
    """
    table = path.suffix.lower() == ".npz"
    try:
        if table:
            with open(path, "rb") as file:
                (name,) = np.load(file, allow_pickle=False).files
            if name.lower() not in _TABLE_KEYS:
                return False
        axes = load_array(path, header=True).ndim
    except Exception:
        return table
    if dims is None:
        return table
    return axes == dims + 2 or (axes == dims + 1 and channels == 1)


@contextmanager
def _opened(path: str | Path, *formats: bytes) -> Iterator[BinaryIO]:
    """Open a file of one of these formats; raise ValueErrors for others and for the errors of numpy."""
    with open(path, "rb") as file:  # numpy would leave a damaged .npz open
        _check_magic(file.read(6), formats)
        file.seek(0)
        try:
            yield file
        except (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            if "allow_pickle" in str(error) or "Python objects" in str(error):
                raise ValueError("holds Python objects, which could run code; save plain numbers") from error
            raise ValueError(f"is damaged or cut off ({error})") from error


def _check_magic(magic: bytes, formats: tuple[bytes, ...]) -> None:
    if magic.startswith(b"\x80"):
        raise ValueError("holds Python objects, which could run code; save plain numbers with numpy.save")
    if magic.startswith(_ZIP) and _ZIP not in formats:
        raise ValueError("is a zip of arrays, expected a single one; name it .npz, or save the array with numpy.save")
    if magic.startswith(_NPY) and _NPY not in formats:
        raise ValueError("is a single array, expected a zip of one; name it .npy, or save it with numpy.savez")
    if not magic.startswith(formats):
        raise ValueError("is not a numpy file" if magic else "is empty (0 bytes)")
