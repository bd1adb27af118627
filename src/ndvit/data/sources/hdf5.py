"""Arrays of HDF5 files, and of MATLAB's .mat files of version 7.3, by h5py; memory is bounded."""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ndvit.data.sources.array_files import MOST_ARRAYS, MOST_LEVELS, ArrayFile, Header, Node, arrays_of, described
from ndvit.data.sources.packages import needed
from ndvit.files import unpacking_fault

_HDF5 = b"\x89HDF\r\n\x1a\n"
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3  # filters of HDF5
_PLACE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
"""A text or list of any length in a data set of HDF5: its length, and where its content is."""
_CLASSES = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical"}
_MOST_TEXTS = 10**6  # and as many as the file has bytes; they are Python objects, and compress to almost nothing


def is_hdf5(head: bytes) -> bool:
    """Whether a file with these first 520 bytes is one of HDF5."""
    return head.startswith(_HDF5) or head[512:520] == _HDF5


@contextmanager
def open_hdf5(path: Path) -> Iterator[ArrayFile]:
    """Open an HDF5 file, or a .mat file of version 7.3; errors as `matlab.open_arrays`."""
    needed("h5py", "hdf5", ".h5 files and .mat files of version 7.3")
    import h5py

    with described():
        file = h5py.File(path, "r")
    with file:
        if path.suffix.lower() == ".mat":
            with described():
                arrays = _matlab(file, path, h5py)
            yield arrays
            return
        headers: dict[str, Header] = {}
        others: list[str] = []

        def visit(name: str, item: Any) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            if len(headers) + len(others) >= MOST_ARRAYS:
                raise ValueError(f"has more than {MOST_ARRAYS:,} arrays")
            header = _header(item, h5py)
            if header is None:
                others.append(name)
            else:
                headers[name] = header

        with described():
            file.visititems(visit)

        def read(name: str) -> np.ndarray:
            with described():
                return _read_data(file[name], headers[name].kind, path, h5py)

        yield ArrayFile(headers, read, others, columns=False)


def _matlab(file: Any, path: Path, h5py: Any) -> ArrayFile:
    """The variables of a .mat file of version 7.3. Cells and the structs of an array are references."""
    left = [MOST_ARRAYS + path.stat().st_size // 64]  # each array has at least as many bytes; cycles have no end

    def node(item: Any, place: Any, level: int) -> Node:
        left[0] -= 1
        if left[0] < 0 or level > MOST_LEVELS:
            raise ValueError(f"has structs or cells in each other, more than {MOST_LEVELS} deep or in circles")
        if isinstance(item, h5py.Group):
            if "MATLAB_object_decode" in item.attrs:
                return Node("object", (1, 1), place)
            members = {name: item[name] for name in item if isinstance(item.get(name, getlink=True), h5py.HardLink)}
            lists = {name: one for name, one in members.items() if _has_references(one, h5py, "")}
            if lists and len(lists) == len(members) and len({one.shape for one in lists.values()}) == 1:
                shape = next(iter(lists.values())).shape
                return Node("struct", shape, place, {name: of_references(one, level) for name, one in lists.items()})
            inner = {name: [node(one, one.name, level + 1)] for name, one in members.items()}
            return Node("struct", (1, 1), place, inner)
        if _has_references(item, h5py, "cell"):
            return Node("cell", item.shape, place, {"": of_references(item, level)})
        kind = _text_of(item.attrs.get("MATLAB_class", ""))
        if "MATLAB_object_decode" in item.attrs or kind not in ("", "cell", "char", "struct", *_CLASSES):
            return Node(kind or "object", (1, 1), place)
        if item.shape is not None and item.attrs.get("MATLAB_empty"):
            return Node("text" if kind == "char" else "number", (0, 0), place)
        header = _header(item, h5py)
        if header is None or header.kind == "list":
            return Node(str(item.dtype), (1, 1), place)
        if header.kind == "text":
            return Node("text", (math.prod(header.shape), 1), place)
        if kind == "char":
            return Node("text", tuple(reversed(header.shape)), place)
        return Node("number", tuple(reversed(header.shape)), place)

    def of_references(item: Any, level: int) -> list[Node]:
        _check_size(item, path)
        if math.prod(item.shape) > left[0]:
            raise ValueError(f"has {math.prod(item.shape):,} cells or structs in a file of that size; expected fewer")
        array = _from_chunks(item, item.dtype, item.fillvalue) if item.chunks else np.asarray(item[()])
        # MATLAB's axes are in the order of Fortran, so that the order of the values is the same.
        return [node(file[one], one, level + 1) for one in array.ravel().tolist()]

    def load(one: Node) -> np.ndarray:
        item = file[one.item]
        if not math.prod(one.shape):
            return np.zeros((0, 0))
        array = _read_data(item, one.kind, path, h5py)
        if array.dtype.kind == "O":
            return array
        array = array.T
        if one.kind == "text":
            return np.array(["".join(map(chr, row)) for row in np.atleast_2d(array)], dtype=object)
        return array

    nodes = {}
    for name in file:
        if not name.startswith("#") and isinstance(file.get(name, getlink=True), h5py.HardLink):
            nodes[name] = node(file[name], name, 0)
    return arrays_of(nodes, load)


def _has_references(item: Any, h5py: Any, kind: str) -> bool:
    """Whether a data set has references and is of this class of MATLAB."""
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.is_virtual or item.external:
        return False
    return h5py.check_ref_dtype(item.dtype) is not None and _text_of(item.attrs.get("MATLAB_class", "")) == kind


def _text_of(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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


def _header(item: Any, h5py: Any) -> Header | None:
    """Shape and kind of a data set; None for one that is not read."""
    shape, dtype = item.shape, item.dtype
    if shape is None or item.is_virtual or item.external or h5py.check_ref_dtype(dtype) is not None:
        return None
    if h5py.check_string_dtype(dtype) is not None:
        return Header(shape, "text")
    if h5py.check_vlen_dtype(dtype) is not None:
        return Header(shape, "list") if h5py.check_vlen_dtype(dtype).kind in "fiu" else None
    return Header(shape, "number") if dtype.kind in "fiub" else None


def _check_size(item: Any, path: Path) -> None:
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
    if fault := unpacking_fault(max(item.nbytes, chunk), path.stat().st_size, math.prod(item.shape)):
        raise ValueError(fault)


def _read_data(item: Any, kind: str, path: Path, h5py: Any) -> np.ndarray:
    """The values of a data set; texts and lists as objects."""
    _check_size(item, path)
    stored = path.stat().st_size
    if kind != "number" and math.prod(item.shape) > max(_MOST_TEXTS, stored):
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
    return array
