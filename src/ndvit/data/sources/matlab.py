"""Arrays of MATLAB's .mat files (up to version 7 by scipy, 7.3 by h5py) and of other HDF5 files; memory is bounded."""

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ndvit.data.messages import printable
from ndvit.data.sources.packages import needed
from ndvit.files import check_regular, unpacking_fault

_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED = 14, 15  # types of elements of a .mat file
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 3, 4, 5, 6, 15  # classes of its arrays
_CLASSES = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical"}
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3  # filters of HDF5
_PLACE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
"""A text or list of any length in a data set of HDF5: its length, and where its content is."""
_MOST_ARRAYS = 10_000
_MOST_TEXTS = 10**6  # and as many as the file has bytes; they are Python objects, and compress to almost nothing
_NUMBER_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 2,
    5: 4,
    6: 4,
    7: 4,
    9: 8,
    12: 8,
    13: 8,
    16: 1,
    17: 2,
    18: 4,
}  # of stored values by their type


class Header(NamedTuple):
    """Shape of an array in a file, and its kind: "number", "text" or "list" (of arrays or texts)."""

    shape: tuple[int, ...]
    kind: str


class ArrayFile(NamedTuple):
    """The arrays of an open file.

    Attributes:
        headers: of each array, by its name.
        read: function from a name to an array: numbers, or objects that are text or arrays.
        others: names of contents that are not read, such as structs.
        columns: whether columns are channels, as MATLAB's functions have them.
    """

    headers: dict[str, Header]
    read: Callable[[str], np.ndarray]
    others: list[str]
    columns: bool


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open a .mat or HDF5 file.

    Raises:
        ValueError: for a damaged file, contents that could fill the memory, or a package that is not installed.
    """
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(520)
    if head.startswith(_HDF5) or head[512:520] == _HDF5:
        with _open_hdf5(path) as arrays:
            yield arrays
    elif path.suffix.lower() == ".mat":
        yield _open_mat(path, head)
    else:
        raise ValueError("is empty (0 bytes)" if not head else "is not an HDF5 file")


@contextmanager
def _described() -> Iterator[None]:
    """Turn the errors of scipy and h5py, which raise any kind for damaged files, into ValueErrors."""
    try:
        yield
    except (ValueError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise ValueError("needs more memory than there is") from error
    except Exception as error:
        raise ValueError(f"is damaged or cut off ({printable(str(error)[:200]) or type(error).__name__})") from error


# ---------------------------------------------------------------------------------------------------------- MATLAB


def _open_mat(path: Path, head: bytes) -> ArrayFile:
    from scipy.io import loadmat, whosmat

    size = path.stat().st_size
    newer = head[124:128] in (b"\x00\x01IM", b"\x01\x00MI")
    if newer:
        _check_elements(path, "<" if head[126:128] == b"IM" else ">")
    elif len(head) < 20 or not _is_version_4(head):
        raise ValueError("is not a MATLAB file" if head else "is empty (0 bytes)")
    with _described():
        found = whosmat(path)
    if not newer and sum(math.prod(shape) for _, shape, _ in found) > size:
        raise ValueError("has arrays that claim more values than the file has bytes")
    headers: dict[str, Header] = {}
    others: list[str] = []
    for name, shape, kind in found:
        if kind in _CLASSES:
            headers[name] = Header(tuple(shape), "number")
        elif kind in ("char", "cell"):
            headers[name] = Header(tuple(shape), "text" if kind == "char" else "list")
        else:
            others.append(f"{name} ({kind})")

    def read(name: str) -> np.ndarray:
        with _described():
            array = loadmat(path, variable_names=[name])[name]
            return _cell(array) if headers[name].kind == "list" else np.asarray(array)

    return ArrayFile(headers, read, others, columns=True)


def _cell(cells: np.ndarray) -> np.ndarray:
    """A cell array as (n,) text or arrays."""
    result = np.empty(cells.size, dtype=object)
    for i, cell in enumerate(cells.ravel(order="F")):
        text = cell.dtype.kind in "US"
        result[i] = (str(cell.ravel()[0]) if cell.size else None) if text else cell
    return result


def _is_version_4(head: bytes) -> bool:
    """Whether a file begins with a header of MATLAB 4: small numbers for type, rows, columns, parts and name."""
    return any(
        kind <= 4999 and parts <= 1 and 1 <= name <= 64 and max(rows, columns) < 2**31
        for kind, rows, columns, parts, name in (
            struct.unpack(f"{order}5I", head[:20].ljust(20, b"\xff")) for order in "<>"
        )
    )


def _check_elements(path: Path, order: str) -> None:
    """Check the sizes of all arrays before scipy reads them, and that cells are not nested: scipy would crash.

    Raises:
        ValueError: for sizes that do not fit into the file or into memory, and for nested cells.
    """
    stored = path.stat().st_size
    unpacked = 0
    with path.open("rb") as file:
        file.seek(128)
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            if length > stored - file.tell() or kind not in (_MATRIX, _COMPRESSED):
                raise ValueError("is damaged or cut off: an array is longer than the file")
            data = file.read(length)
            if kind == _COMPRESSED:
                data = _unpacked(data, stored, unpacked)
                inner, length = struct.unpack(f"{order}II", data[:8].ljust(8, b"\0"))
                if inner != _MATRIX or length > len(data) - 8:
                    raise ValueError("is damaged or cut off: a compressed array is incomplete")
                data = data[8 : 8 + length]
            unpacked += len(data)
            _check_matrix(memoryview(data), order, may_be_cell=True)
    if tag:
        raise ValueError("is damaged or cut off: its last array is incomplete")


def _unpacked(data: bytes, stored: int, before: int) -> bytes:
    """The content of a compressed element, as far as it may be unpacked."""
    unpacker, blocks, total = zlib.decompressobj(), [], 0
    while data:
        try:
            blocks.append(unpacker.decompress(data, 2**24))
        except zlib.error as error:
            raise ValueError(f"is damaged or cut off ({error})") from error
        total += len(blocks[-1])
        if fault := unpacking_fault(before + total, stored):
            raise ValueError(fault)
        data = unpacker.unconsumed_tail
    return b"".join(blocks)


def _check_matrix(data: memoryview, order: str, may_be_cell: bool) -> None:
    """Check that an array has as many values as its shape announces; of a cell array, each of its arrays."""
    if not len(data):  # an empty cell
        return
    elements = _elements(data, order)
    _, flags = next(elements, (0, data[:0]))
    if len(flags) < 8:
        raise ValueError("is damaged: an array without a class")
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    if kind in (_STRUCT, _OBJECT, _SPARSE) or kind > _LAST_NUMBER:
        if not may_be_cell:
            raise ValueError("has a cell array of structs or cells; expected one of numbers or text")
        return  # it is not read
    _, shape = next(elements, (0, data[:0]))
    axes = struct.unpack(f"{order}{len(shape) // 4}i", shape[: len(shape) // 4 * 4])
    if not 1 <= len(axes) <= 32 or min(axes) < 0:
        raise ValueError("is damaged: an array with an impossible shape")
    count = math.prod(axes)
    next(elements, None)  # its name
    if kind == _CELL:
        if not may_be_cell:
            raise ValueError("has cells in cells; expected a cell array of numbers or text: save(..., '-struct')")
        cells = 0
        for number, (inner, content) in enumerate(elements, start=1):
            if inner != _MATRIX:
                raise ValueError("is damaged: a cell that is no array")
            _check_matrix(content, order, may_be_cell=False)
            cells = number
        if cells != count:
            raise ValueError(f"is damaged: a cell array of {count:,} cells has {cells:,}")
        return
    stored, content = next(elements, (0, data[:0]))
    if kind == _CHAR:
        if count > len(content):
            raise ValueError(f"is damaged: a text of {count:,} letters has {len(content):,} bytes")
    elif count * _NUMBER_BYTES.get(stored, 2**40) != len(content):
        raise ValueError(f"is damaged: an array of shape {axes} has {len(content):,} bytes")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The type and the content of each element in an array."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack(f"{order}II", data[at : at + 8])
        if kind >> 16:  # small: both in four bytes, the content in the others
            kind, length = kind & 0xFFFF, kind >> 16
            if length > 4:
                raise ValueError("is damaged: a small element of more than four bytes")
            yield kind, data[at + 4 : at + 4 + length]
            at += 8
            continue
        if length > len(data) - at - 8:
            raise ValueError("is damaged: an element is longer than its array")
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + -length % 8


# ------------------------------------------------------------------------------------------------------------ HDF5


@contextmanager
def _open_hdf5(path: Path) -> Iterator[ArrayFile]:
    needed("h5py", "hdf5", ".h5 files and .mat files of version 7.3")
    import h5py

    matlab = path.suffix.lower() == ".mat"
    with _described():
        file = h5py.File(path, "r")
    with file:
        headers: dict[str, Header] = {}
        others: list[str] = []

        def visit(name: str, item: Any) -> None:
            if name.startswith("#"):  # MATLAB's contents of cells
                return
            if not isinstance(item, h5py.Dataset):
                return
            if len(headers) + len(others) >= _MOST_ARRAYS:
                raise ValueError(f"has more than {_MOST_ARRAYS:,} arrays")
            header = _hdf5_header(item, h5py, matlab)
            if header is None:
                others.append(name)
            else:
                headers[name] = header

        with _described():
            file.visititems(visit)

        def read(name: str) -> np.ndarray:
            with _described():
                return _read_hdf5(file, file[name], headers[name], path, h5py, matlab)

        yield ArrayFile(headers, read, others, columns=matlab)


def _from_chunks(item: Any, dtype: np.dtype, fill: Any) -> np.ndarray:
    """Read a data set in chunks, with `fill` where nothing was written."""
    array = np.full(item.shape, fill, dtype=dtype)
    for start, data in _chunks(item, dtype.itemsize):
        part = tuple(slice(at, at + length) for at, length in zip(start, item.chunks))
        chunk = np.frombuffer(data, dtype).reshape(item.chunks)
        array[part] = chunk[tuple(slice(0, n) for n in array[part].shape)]
    return array


def _chunks(item: Any, width: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """The start and the bytes of each chunk. Filters are undone here: the HDF5 library can crash on damaged ones.

    Args:
        item: a data set in chunks.
        width: bytes of a value in the file.

    Raises:
        ValueError: for other filters than gzip, shuffle and checksums, and for chunks of a wrong size.
    """
    plan = item.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if unknown := [number for number in filters if number not in (_DEFLATE, _SHUFFLE, _CHECKSUM)]:
        raise ValueError(f"has the compression {unknown[0]} of HDF5; expected gzip: h5repack -f GZIP=6 changes it")
    size = math.prod(item.chunks) * width
    for i in range(item.id.get_num_chunks()):
        start = item.id.get_chunk_info(i).chunk_offset
        mask, data = item.id.read_direct_chunk(start)
        for place in reversed(range(len(filters))):
            if mask >> place & 1:  # this chunk was written without the filter
                continue
            if filters[place] == _CHECKSUM:
                data = data[:-4]
            elif filters[place] == _DEFLATE:
                data = zlib.decompressobj().decompress(data, size + 4)
            else:
                whole = np.frombuffer(data, np.uint8, count=len(data) // width * width)
                data = whole.reshape(width, -1).T.tobytes() + bytes(data[len(whole) :])
        if len(data) != size:
            raise ValueError(f"is damaged: a chunk of {item.name} has {len(data):,} bytes, expected {size:,}")
        yield start, data


def _pieces(item: Any, path: Path, each: int) -> list[bytes]:
    """The bytes of each text or list of any length, which the HDF5 library does not read of every damaged file.

    Args:
        item: a data set of texts or lists.
        path: its file.
        each: bytes of a letter or of an element of a list.

    Raises:
        ValueError: for places outside of the file.
    """
    count, base = math.prod(item.shape), item.file.userblock_size
    with path.open("rb") as file:
        if item.chunks:
            places = _from_chunks(item, _PLACE, 0).ravel()
        elif item.id.get_offset() is None:
            raise ValueError(f"has the texts {item.name} in a layout that is not read; save them as numbers")
        else:
            file.seek(item.id.get_offset())
            places = np.frombuffer(file.read(count * _PLACE.itemsize).ljust(count * _PLACE.itemsize, b"\0"), _PLACE)
        heaps: dict[int, dict[int, bytes]] = {}
        left = path.stat().st_size  # bytes that all heaps together can have
        found: list[bytes] = []
        for length, heap, number in places.tolist():
            if length and heap not in heaps:
                heaps[heap] = _heap(file, base + heap, left)
                left -= sum(map(len, heaps[heap].values()))
            content = heaps[heap].get(number, b"")[: length * each] if length else b""
            if len(content) < length * each:
                raise ValueError(f"is damaged: a text or list of {item.name} is not in the file")
            found.append(content)
    return found


def _heap(file: IO[bytes], at: int, most: int) -> dict[int, bytes]:
    """The objects of a collection of the global heap, with at most so many bytes, by their numbers."""
    file.seek(at)
    magic, size = struct.unpack("<4s4xQ", file.read(16).ljust(16, b"\0"))
    if magic != b"GCOL" or not 16 <= size <= most:
        raise ValueError("is damaged: a heap with texts or lists is not in the file")
    data, place = file.read(size - 16), 0
    objects: dict[int, bytes] = {}
    while place + 16 <= len(data):
        number, length = struct.unpack_from("<H6xQ", data, place)
        if number == 0:  # the rest is free
            break
        objects[number] = data[place + 16 : place + 16 + length]
        place += 16 + length + -length % 8
    return objects


def _hdf5_header(item: Any, h5py: Any, matlab: bool) -> Header | None:
    """Shape and kind of a data set; None for one that is not read."""
    kind = item.attrs.get("MATLAB_class", b"") if matlab else b""
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    shape = tuple(reversed(item.shape)) if matlab and item.shape else item.shape
    if shape is None or item.is_virtual or item.external or item.attrs.get("MATLAB_empty"):
        return None
    if h5py.check_ref_dtype(item.dtype) is not None:
        return Header(shape, "list") if kind == "cell" else None
    if h5py.check_string_dtype(item.dtype) is not None or kind == "char":
        return Header(shape, "text")
    if h5py.check_vlen_dtype(item.dtype) is not None:
        return Header(shape, "list") if h5py.check_vlen_dtype(item.dtype).kind in "fiu" else None
    return Header(shape, "number") if item.dtype.kind in "fiub" else None


def _read_hdf5(file: Any, item: Any, header: Header, path: Path, h5py: Any, matlab: bool) -> np.ndarray:
    stored = path.stat().st_size
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
    if fault := unpacking_fault(max(item.nbytes, chunk), stored, math.prod(item.shape)):
        raise ValueError(fault)
    if header.kind != "number" and math.prod(item.shape) > max(_MOST_TEXTS, stored):
        raise ValueError(f"has {math.prod(item.shape):,} texts or lists in a file of {stored:,} bytes; expected fewer")
    text, listed = h5py.check_string_dtype(item.dtype), h5py.check_vlen_dtype(item.dtype)
    result = np.empty(math.prod(item.shape), dtype=object)
    if text is None and listed is not None:
        for i, piece in enumerate(_pieces(item, path, listed.itemsize)):
            result[i] = np.frombuffer(piece, listed)
        return result
    if text is not None and text.length is None:
        result[:] = [piece.decode(errors="backslashreplace") for piece in _pieces(item, path, 1)]
        return result
    array = _from_chunks(item, item.dtype, item.fillvalue) if item.chunks else np.asarray(item[()])
    if text is not None:
        result[:] = [value.decode(errors="backslashreplace") for value in array.ravel().tolist()]
        return result
    array = array.T if matlab else array
    if header.kind == "number":
        return array
    if header.kind == "text":
        return np.array(["".join(map(chr, row)) for row in np.atleast_2d(array)], dtype=object)
    for i, reference in enumerate(array.ravel(order="F")):
        inner = file[reference]
        kind = _hdf5_header(inner, h5py, matlab) if isinstance(inner, h5py.Dataset) else None
        if kind is None or kind.kind == "list":
            raise ValueError("has a cell array of structs or cells; expected one of numbers or text")
        value = _read_hdf5(file, inner, kind, path, h5py, matlab)
        result[i] = value[0] if kind.kind == "text" and len(value) else value
    return result
