"""What an open file of named arrays offers, and how fields of structs and cells become arrays."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ndvit.data.messages import printable

MOST_ARRAYS = 10_000
MOST_LEVELS = 16
"""Structs and cells in each other: reading more could exhaust the stack."""


class Header(NamedTuple):
    """Shape of an array in a file, and its kind: "number", "text" or "list" (of arrays)."""

    shape: tuple[int, ...]
    kind: str


class ArrayFile(NamedTuple):
    """The arrays of an open file.

    Attributes:
        headers: of each array, by its name. Those of structs are called struct.field; where there are several structs,
            the array has the value of each.
        read: function from a name to an array: numbers, or objects that are text or arrays.
        others: names of contents that are not read, such as objects.
        columns: whether columns are channels, as MATLAB's functions have them.
    """

    headers: dict[str, Header]
    read: Callable[[str], np.ndarray]
    others: list[str]
    columns: bool


class Node(NamedTuple):
    """An array of a MATLAB file with what is in it.

    Attributes:
        kind: "number", "text", "cell", "struct", or in words what is not read.
        shape: of numbers, cells and structs; of text its rows and letters.
        item: where the file has it.
        inner: the arrays of each field, one for each struct; of a cell array, those of its cells as the field "".
    """

    kind: str
    shape: tuple[int, ...]
    item: Any
    inner: dict[str, list["Node"]] = {}  # noqa: RUF012 (of a tuple, never changed)


@contextmanager
def described() -> Iterator[None]:
    """Turn the errors of scipy and h5py, which raise any kind for damaged files, into ValueErrors."""
    try:
        yield
    except (ValueError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise ValueError("needs more memory than there is") from error
    except Exception as error:
        raise ValueError(f"is damaged or cut off ({printable(str(error)[:200]) or type(error).__name__})") from error


def arrays_of(nodes: dict[str, Node], load: Callable[[Node], np.ndarray]) -> ArrayFile:
    """The arrays of a MATLAB file from its variables.

    Args:
        nodes: the variables by their names.
        load: function that reads numbers, or text as an array of texts.

    Raises:
        ValueError: for more arrays than a file may have.
    """
    found: dict[str, tuple[Header, list[Node]]] = {}
    others: list[str] = []
    for name, node in nodes.items():
        _collect(name, [node], False, found, others)

    def read(name: str) -> np.ndarray:
        header, leaves = found[name]
        with described():
            if header.kind == "number" and len(leaves) == 1:
                return load(leaves[0])
            values = [load(leaf) for leaf in leaves]
            if header.kind == "number":  # a number of each struct
                return np.array([value.ravel()[0] if value.size else np.nan for value in values])[:, None]
            if header.kind == "text" and len(leaves) == 1:
                return values[0]
            result = np.empty(len(values), dtype=object)
            for i, value in enumerate(values):
                result[i] = value if header.kind == "list" else (str(value[0]) or None) if value.size else None
            return result

    return ArrayFile({name: header for name, (header, _) in found.items()}, read, others, columns=True)


def _collect(
    name: str, nodes: list[Node], several: bool, found: dict[str, tuple[Header, list[Node]]], others: list[str]
) -> None:
    """Add the arrays that are called `name`, or begin with it.

    Args:
        name: of a variable, or of a field with its structs.
        nodes: the array; with `several`, those of as many structs or cells.
        several: whether there may be several.
        found: header and places of each array, which grows.
        others: names of what is not read, which grows.
    """
    if len(found) + len(others) >= MOST_ARRAYS:
        raise ValueError(f"has more than {MOST_ARRAYS:,} arrays")
    if several:  # a cell array of one cell in each struct is that cell, as tables are often converted
        nodes = [one.inner[""][0] if one.kind == "cell" and len(one.inner[""]) == 1 else one for one in nodes]
    kinds = {node.kind for node in nodes if math.prod(node.shape)} or {node.kind for node in nodes[:1]}
    kind = next(iter(kinds), "nothing") if len(kinds) <= 1 else " and ".join(sorted(kinds))
    sizes = [math.prod(node.shape) for node in nodes]
    if kind == "cell" and not several:
        _collect(name, nodes[0].inner[""], True, found, others)
    elif kind == "struct" and (sizes == [1] or not several or set(sizes) == {1}):
        fields = list(dict.fromkeys(field for node in nodes for field in node.inner))
        alone = not several and sizes == [1]
        for field in fields:
            if any(field not in node.inner for node in nodes):
                others.append(f"{name}.{field} (a field of some structs only)")
            else:
                inner = [one for node in nodes for one in node.inner[field]]
                _collect(f"{name}.{field}", inner, not alone, found, others)
    elif kind == "number":
        if not several:
            found[name] = Header(nodes[0].shape, "number"), nodes
        elif max(sizes) <= 1:
            found[name] = Header((len(nodes), 1), "number"), nodes
        else:
            found[name] = Header((len(nodes), 1), "list"), nodes
    elif kind == "text" and (not several or all(node.shape[0] <= 1 for node in nodes)):
        found[name] = Header((len(nodes) if several else nodes[0].shape[0],), "text"), nodes
    else:
        inside = {"cell": "cells in cells", "struct": "structs in structs", "text": "rows of text"}
        others.append(f"{name} ({inside.get(kind, kind) if several else kind})")
