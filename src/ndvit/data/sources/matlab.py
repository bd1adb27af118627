"""Arrays of MATLAB's .mat files: up to version 7 by scipy, 7.3 and other HDF5 files by h5py; memory is bounded."""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ndvit.data.sources.array_files import MOST_LEVELS, ArrayFile, Node, arrays_of, described
from ndvit.data.sources.hdf5 import is_hdf5, open_hdf5
from ndvit.files import check_regular, unpacking_fault

_MATRIX, _COMPRESSED = 14, 15  # types of elements of a .mat file
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 16, 17  # classes of its arrays
_WORDS = {_OBJECT: "object", _SPARSE: "sparse", _FUNCTION: "function", _OPAQUE: "object"}
_CLASSES = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical"}
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


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open a .mat or HDF5 file.

    Raises:
        ValueError: for a damaged file, contents that could fill the memory, or a package that is not installed.
    """
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(520)
    if is_hdf5(head):
        with open_hdf5(path) as arrays:
            yield arrays
    elif path.suffix.lower() == ".mat":
        yield _open_mat(path, head)
    else:
        raise ValueError("is empty (0 bytes)" if not head else "is not an HDF5 file")


def _open_mat(path: Path, head: bytes) -> ArrayFile:
    from scipy.io import loadmat, whosmat

    size = path.stat().st_size
    if head[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        nodes = _variables(path, "<" if head[126:128] == b"IM" else ">")
    elif len(head) < 20 or not _is_version_4(head):
        raise ValueError("is not a MATLAB file" if head else "is empty (0 bytes)")
    else:
        with described():
            found = whosmat(path)
        if sum(math.prod(shape) for _, shape, _ in found) > size:
            raise ValueError("has arrays that claim more values than the file has bytes")
        kinds = dict.fromkeys(_CLASSES, "number") | {"char": "text"}
        nodes = {name: Node(kinds.get(kind, kind), tuple(shape), (name,)) for name, shape, kind in found}
    last: dict[str, np.ndarray] = {}  # the variable that was read last: its fields are read one after the other

    def load(node: Node) -> np.ndarray:
        name, *steps = node.item
        if name not in last:
            last.clear()
            last.update({name: loadmat(path, variable_names=[name], chars_as_strings=True)[name]})
        array = last[name]
        for step in steps:
            array = array.T.flat[step] if isinstance(step, int) else array[step]
        return np.asarray(array)

    return arrays_of(nodes, load)


def _is_version_4(head: bytes) -> bool:
    """Whether a file begins with a header of MATLAB 4: small numbers for type, rows, columns, parts and name."""
    return any(
        kind <= 4999 and parts <= 1 and 1 <= name <= 64 and max(rows, columns) < 2**31
        for kind, rows, columns, parts, name in (
            struct.unpack(f"{order}5I", head[:20].ljust(20, b"\xff")) for order in "<>"
        )
    )


def _variables(path: Path, order: str) -> dict[str, Node]:
    """The variables of a file. All sizes are checked before scipy reads it: it could crash or fill the memory.

    Raises:
        ValueError: for sizes that do not fit into the file or into memory, and for deep nesting.
    """
    stored = path.stat().st_size
    unpacked = 0
    found: dict[str, Node] = {}
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
            name, node = _matrix(memoryview(data), order, ())
            if name:  # MATLAB's own notes on objects have none
                found.setdefault(name, node)
    if tag:
        raise ValueError("is damaged or cut off: its last array is incomplete")
    return found


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


def _matrix(data: memoryview, order: str, place: tuple[str | int, ...], level: int = 0) -> tuple[str, Node]:
    """The name and the content of an array, which has as many values as its shape announces.

    Args:
        data: what follows its tag.
        order: of bytes, "<" or ">".
        place: of this array in the variable: numbers of cells and structs, names of fields.
        level: number of arrays around it.
    """
    if level > MOST_LEVELS:
        raise ValueError(f"has structs or cells in each other, more than {MOST_LEVELS} deep; expected one or two")
    if not len(data):  # an empty cell
        return "", Node("number", (0, 0), place)
    elements = _elements(data, order)
    _, flags = next(elements, (0, data[:0]))
    if len(flags) < 8:
        raise ValueError("is damaged: an array without a class")
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    if kind == _OPAQUE or kind > _OPAQUE:  # it has no shape, and is not read
        name = _text(next(elements, (0, data[:0]))[1])
        _inner(elements, order, place, level)
        return name, Node("object", (1, 1), place)
    _, shape = next(elements, (0, data[:0]))
    axes = struct.unpack(f"{order}{len(shape) // 4}i", shape[: len(shape) // 4 * 4])
    if not 1 <= len(axes) <= 32 or min(axes) < 0:
        raise ValueError("is damaged: an array with an impossible shape")
    count = math.prod(axes)
    name = _text(next(elements, (0, data[:0]))[1])
    place = place or (name,)
    if kind in _WORDS:
        _inner(elements, order, place, level)
        return name, Node(_WORDS[kind], axes, place)
    if kind == _CELL:
        cells = _inner(elements, order, place, level)
        if len(cells) != count:
            raise ValueError(f"is damaged: a cell array of {count:,} cells has {len(cells):,}")
        return name, Node("cell", axes, place, {"": cells})
    if kind == _STRUCT:
        return name, Node("struct", axes, place, _fields(elements, order, place, level, count))
    stored, content = next(elements, (0, data[:0]))
    if kind == _CHAR:
        if count > len(content):
            raise ValueError(f"is damaged: a text of {count:,} letters has {len(content):,} bytes")
        return name, Node("text", axes, place)
    if count * _NUMBER_BYTES.get(stored, 2**40) != len(content):
        raise ValueError(f"is damaged: an array of shape {axes} has {len(content):,} bytes")
    return name, Node("number", axes, place)


def _text(content: memoryview) -> str:
    return bytes(content).decode("latin-1")


def _inner(
    elements: Iterator[tuple[int, memoryview]], order: str, place: tuple[str | int, ...], level: int
) -> list[Node]:
    """The arrays among the elements, such as the cells of a cell array."""
    return [
        _matrix(content, order, (*place, i), level + 1)[1]
        for i, (_, content) in enumerate(one for one in elements if one[0] == _MATRIX)
    ]


def _fields(
    elements: Iterator[tuple[int, memoryview]], order: str, place: tuple[str | int, ...], level: int, count: int
) -> dict[str, list[Node]]:
    """The fields of `count` structs."""
    nothing: tuple[int, memoryview] = (0, memoryview(b""))
    width = int.from_bytes(next(elements, nothing)[1], "little" if order == "<" else "big")
    names = next(elements, nothing)[1]
    if not 0 < width <= 1024:
        raise ValueError("is damaged: a struct without names of fields")
    fields = [_text(names[i : i + width]).partition("\0")[0] for i in range(0, len(names) // width * width, width)]
    found: dict[str, list[Node]] = {field: [] for field in fields}
    number = 0
    for kind, content in elements:
        if kind != _MATRIX or not fields or number >= count * len(fields) or len(found) < len(fields):
            raise ValueError("is damaged: a struct with other fields than their names")
        index, which = divmod(number, len(fields))
        field = fields[which]
        found[field].append(_matrix(content, order, (*place, index, field), level + 1)[1])
        number += 1
    if number != count * len(fields):
        raise ValueError(f"is damaged: {count:,} structs of {len(fields):,} fields have {number:,} values")
    return found


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
