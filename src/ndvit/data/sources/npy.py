"""Reading .npy and .npz files, never their pickles.

Headers are checked before anything is allocated: a few bytes can claim any shape.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from ndvit.data.messages import listing, printable
from ndvit.data.sources.arrays import check_numeric, numbers, with_channels
from ndvit.files import check_regular, unpacking_fault

_NPY, _ZIP = b"\x93NUMPY", b"PK"  # first bytes of .npy and .npz files
_TABLE_KEYS = ("x", "x_train", "x_test", "x_val")  # names of arrays of many examples in .npz files
_LONGEST_HEADER = 4096  # bytes; of a plain array it has about 120
_MOST_AXES = 32
_TRIES = 5
_READ = partial(npy_format.read_array, allow_pickle=False)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy


class ArrayHeader(NamedTuple):
    """Shape and type of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def empty(self) -> np.ndarray:
        """An array of this shape and type that takes no memory; its values are undefined."""
        return np.broadcast_to(np.empty((), self.dtype), self.shape)


class Archive:
    """The arrays of an open .npz file.

    Attributes:
        keys: names of the arrays.
        others: names of the members that are not arrays.
    """

    def __init__(self, zipped: zipfile.ZipFile, stored: int) -> None:
        self._zip, self._stored, self._unpacked, self._values = zipped, stored, 0, 0
        members = [member.filename for member in zipped.infolist()]
        if len(set(members)) < len(members):
            twice = sorted({name for name in members if members.count(name) > 1})[:5]
            raise _Fault(f"has two members with one name ({_short(twice)})")
        self.keys = tuple(name.removesuffix(".npy") for name in members if name.endswith(".npy"))
        self.others = tuple(name for name in members if not name.endswith(".npy"))

    def header(self, key: str) -> ArrayHeader:
        """Return shape and type of an array, whose member must have exactly their size."""
        member = self._zip.getinfo(f"{key}.npy")
        if member.flag_bits & 1:
            raise _Fault(f"has an encrypted array ({_short([key])}); save it without a password")
        if member.compress_type not in _METHODS:
            raise _Fault(f"has an array of a compression that numpy does not use ({_short([key])}); save it with numpy")
        with _described(), self._zip.open(member) as file:
            return _read_header(file, member.file_size)

    def read(self, key: str) -> np.ndarray:
        """Return an array, whose checksum must be right."""
        shape, _ = self.header(key)
        member = self._zip.getinfo(f"{key}.npy")
        self._unpacked += member.file_size
        self._values += math.prod(shape)
        if fault := unpacking_fault(self._unpacked, self._stored, self._values):
            raise _Fault(fault)
        with _described(), self._zip.open(member) as file:
            array: np.ndarray = _parsed(file, _READ)
            file.read(1)  # the end of the member, where its checksum is compared
        return array


@contextmanager
def open_archive(path: str | Path) -> Iterator[Archive]:
    """Open an .npz file; raise ValueErrors without the name of the file."""
    with _opened(path, _ZIP) as file:
        with _described():
            zipped = zipfile.ZipFile(file)
        with zipped:
            yield Archive(zipped, os.fstat(file.fileno()).st_size)


def array_header(path: str | Path) -> ArrayHeader:
    """Return shape and type of the only array of an .npy or .npz file; raise ValueErrors without the file's name."""
    if str(path).lower().endswith(".npz"):
        with open_archive(path) as archive:
            return archive.header(_only_key(archive))
    with _opened(path, _NPY) as file, _described():
        return _read_header(file, os.fstat(file.fileno()).st_size)


def load_array(path: str | Path) -> np.ndarray:
    """Read the only array of an .npy or .npz file; raise ValueErrors without the name of the file."""
    if str(path).lower().endswith(".npz"):
        with open_archive(path) as archive:
            return archive.read(_only_key(archive))
    with _opened(path, _NPY) as file, _described():
        _read_header(file, os.fstat(file.fileno()).st_size)
        file.seek(0)
        array: np.ndarray = _parsed(file, _READ)
        return array


def read_npy(path: str | Path) -> np.ndarray:
    """Read one example, (time,) or (channels, *grid), from an .npy or .npz file, as (channels, *grid) float32."""
    return with_channels(numbers(load_array(path), "the array"), "the array")


def read_npy_slice(path: str | Path, start: int, stop: int) -> np.ndarray:
    """Read the samples `start` to `stop` of the last axis of an .npy file, as (channels, *grid) float32."""
    with _opened(path, _NPY) as file, _described():
        _read_header(file, os.fstat(file.fileno()).st_size)
        mapped = _parsed(file, lambda _: np.load(path, mmap_mode="r", allow_pickle=False))
    return with_channels(numbers(np.array(mapped[..., start:stop]), "the array"), "the array")


def npy_shape(path: str | Path) -> tuple[int, ...]:
    """Return (channels, *grid) from the header of an .npy or .npz file with one example."""
    array = array_header(path).empty()
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
            with open_archive(path) as archive:
                if _only_key(archive).lower() not in _TABLE_KEYS:
                    return False
        axes = len(array_header(path).shape)
    except (ValueError, OSError):
        return table
    if dims is None:
        return table
    return axes == dims + 2 or (axes == dims + 1 and channels == 1)


class _Fault(ValueError):
    """A fault that is described completely."""


def _only_key(archive: Archive) -> str:
    if len(keys := archive.keys) != 1:
        raise _Fault(f"has {len(keys)} arrays ({_short(keys)}); one example must be a single array")
    return keys[0]


def _short(names: tuple[str, ...] | list[str]) -> str:
    return printable(listing([name[:40] for name in names], 5))


@contextmanager
def _opened(path: str | Path, magic: bytes) -> Iterator[IO[bytes]]:
    """Open a file of this format; raise a ValueError for others."""
    check_regular(path)
    with open(path, "rb") as file:  # numpy would leave a damaged .npz open
        _check_magic(file.read(6), magic)
        file.seek(0)
        yield file


@contextmanager
def _described() -> Iterator[None]:
    """Turn the errors of numpy, zipfile and zlib, which raise any kind for damaged files, into ValueErrors."""
    try:
        yield
    except _Fault:
        raise
    except MemoryError as error:
        raise ValueError("needs more memory than there is") from error
    except Exception as error:
        message = printable(str(error)[:200]) or type(error).__name__
        raise ValueError(f"is damaged or cut off ({message})") from error


def _parsed(file: IO[bytes], read: Callable[[IO[bytes]], Any]) -> Any:
    """Read something that begins with a header, by a function of numpy, which parses that as Python's literals.

    Where several threads parse and garbage is collected meanwhile, Python 3.11 may raise a SystemError (AST constructor
    recursion depth mismatch) for any text; the next try succeeds.
    """
    start = file.tell()
    for _ in range(_TRIES):
        try:
            return read(file)
        except SystemError:
            file.seek(start)
    return read(file)


def _check_magic(found: bytes, magic: bytes) -> None:
    if found.startswith(b"\x80"):
        raise ValueError("holds Python objects, which could run code; save plain numbers with numpy.save")
    if found.startswith(_ZIP) and magic != _ZIP:
        raise ValueError("is a zip of arrays, expected a single one; name it .npz, or save the array with numpy.save")
    if found.startswith(_NPY) and magic != _NPY:
        raise ValueError("is a single array, expected a zip of arrays; name it .npy, or save it with numpy.savez")
    if not found.startswith(magic):
        raise ValueError("is not a numpy file" if found else "is empty (0 bytes)")


def _read_header(file: IO[bytes], size: int) -> ArrayHeader:
    """Read the header of an array at the beginning of a file of `size` bytes, which must be those of the array."""
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _Fault(f"has the format version {version[0]}.{version[1]}, expected 1.0 to 3.0")
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > _LONGEST_HEADER:
        raise _Fault(f"has a header of {length:,} bytes, expected about 120; save a plain array with numpy.save")
    file.seek(start)
    # version 3 has UTF-8 in names of fields, which are refused below
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = _parsed(file, read)
    written = f"({', '.join(str(n)[:20] for n in shape[:8])}{', ...' if len(shape) > 8 else ''})"
    if dtype.hasobject:
        raise _Fault("holds Python objects, which could run code; save plain numbers")
    if dtype.kind == "V":
        found = f"the fields {_short(dtype.names)}" if dtype.names else f"values of the type {_short([str(dtype)])}"
        raise _Fault(f"has {found}; expected plain numbers: save one field, a[NAME], or stack them as channels")
    if len(shape) > _MOST_AXES or any(isinstance(n, bool) or not 0 <= n < 2**63 for n in shape):
        raise _Fault(f"has an impossible shape {written}")
    expected, follows = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected == 0:
        raise _Fault(f"is empty (shape {shape})")
    if expected != follows:
        state = "is damaged or cut off: it" if follows < expected else "has more than one array: the first one"
        claimed = f"{written} of {_short([str(dtype)])}"
        raise _Fault(f"{state} has the shape {claimed}, {expected:,} bytes, and {follows:,} bytes follow")
    return ArrayHeader(shape, dtype)
