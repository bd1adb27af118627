"""Construction of ONNX graphs by arithmetic: each operation on an `Array` appends a node to a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

_BOOLEAN = {"And", "Equal", "GreaterOrEqual", "IsNaN", "Less", "Not"}
_WHOLE = {"NonZero", "Shape"}
_OF_SECOND = {"Where"}  # operators whose result has the type of the second input
FLOAT, DOUBLE, INT, BOOL = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.BOOL

Numbers = Any
"""Numbers of Python or numpy, which become a constant of the type of the other operand."""


class Array:
    """A value of a graph, whose arithmetic appends nodes. Lengths and positions are int64 of shape () or (n,).

    Args:
        tape: collects the nodes.
        value: the value.
        type: type of its elements.
    """

    def __init__(self, tape: Tape, value: ir.Value, type: ir.DataType) -> None:
        self.tape, self.value, self.type = tape, value, type

    def node(self, operator: str, *inputs: Numbers | None, **attributes: Any) -> Array:
        """Append an operator to this array and further inputs; None leaves an optional input out."""
        operands = [self, *(None if x is None else self.constant(x) for x in inputs)]
        values = [None if x is None else x.value for x in operands]
        made = self.tape.op(operator, values, attributes)
        kind = operands[1].type if operator in _OF_SECOND and operands[1] is not None else self.type
        kind = BOOL if operator in _BOOLEAN else INT if operator in _WHOLE else kind
        return Array(self.tape, made, kind)

    def constant(self, numbers: Array | Numbers, type: ir.DataType | None = None) -> Array:
        """Numbers as an array; numpy's keep their type, others have this array's or the one that is named."""
        if isinstance(numbers, Array):
            return numbers
        kind = type or (INT if self.type == BOOL else self.type)
        array = numbers if isinstance(numbers, np.ndarray) else np.asarray(numbers, dtype=kind.numpy())
        tensor = ir.tensor(array)
        return Array(self.tape, self.tape.op("Constant", [], {"value": tensor}), tensor.dtype)

    def cast(self, type: ir.DataType) -> Array:
        """The same numbers in another type; fractions are cut towards 0."""
        if type == self.type:
            return self
        return Array(self.tape, self.tape.op("Cast", [self.value], {"to": type.value}), type)

    def __add__(self, other: Array | Numbers) -> Array:
        return self.node("Add", other)

    def __sub__(self, other: Array | Numbers) -> Array:
        return self.node("Sub", other)

    def __rsub__(self, other: Numbers) -> Array:
        return self.constant(other).node("Sub", self)

    def __mul__(self, other: Array | Numbers) -> Array:
        return self.node("Mul", other)

    def __truediv__(self, other: Array | Numbers) -> Array:
        """Divide; whole numbers are cut towards 0."""
        return self.node("Div", other)

    def __lt__(self, other: Array | Numbers) -> Array:
        return self.node("Less", other)

    def __ge__(self, other: Array | Numbers) -> Array:
        return self.node("GreaterOrEqual", other)

    def __and__(self, other: Array) -> Array:
        return self.node("And", other)

    def at_least(self, other: Array | Numbers) -> Array:
        """The larger of two."""
        return self.node("Max", other)

    def at_most(self, other: Array | Numbers) -> Array:
        """The smaller of two."""
        return self.node("Min", other)

    def where(self, yes: Array, no: Array | Numbers) -> Array:
        """`yes` where this array is true, else `no`."""
        return self.node("Where", yes, yes.constant(no))

    def nested(self) -> Array:
        """This array for a branch of `choose`, whose nodes go to a tape of their own."""
        return Array(Tape(), self.value, self.type)

    def choose(self, yes: Array, no: Array) -> Array:
        """Compute one of two branches, whichever this single truth value chooses."""
        branches = {
            name: ir.Graph([], [branch.value], nodes=branch.tape.nodes, name=name)
            for name, branch in (("then_branch", yes), ("else_branch", no))
        }
        return Array(self.tape, self.tape.op("If", [self.value], branches), yes.type)

    def equals(self, other: Array | Numbers) -> Array:
        """Where both are equal."""
        return self.node("Equal", other)

    def round(self) -> Array:
        """The nearest whole numbers, the even one of two, as int64."""
        return self.node("Round").cast(INT)

    def over(self, axes: Sequence[int], reduce: str = "Sum", keep: bool = True) -> Array:
        """Sum, Mean, Max or Min over some axes; over all of them without any."""
        return self.node(f"Reduce{reduce}", np.array(axes) if axes else None, keepdims=int(keep))

    def take(self, indices: Array | Numbers, axis: int = 0) -> Array:
        """Some positions of an axis."""
        return self.node("Gather", self.constant(indices, INT), axis=axis)

    def length(self, axis: int) -> Array:
        """Length of an axis."""
        return self.node("Shape").take(axis)

    def shape(self, *lengths: Array | int) -> Array:
        """The same numbers in another shape; -1 is the rest."""
        return self.node("Reshape", self.several(*lengths))

    def several(self, *lengths: Array | int) -> Array:
        """Lengths as one array of shape (n,)."""
        parts = [self.constant(part, INT).node("Reshape", np.array([1])) for part in lengths]
        return parts[0].node("Concat", *parts[1:], axis=0) if len(parts) > 1 else parts[0]

    def column(self) -> Array:
        """(n,) as (n, 1)."""
        return self.node("Unsqueeze", np.array([1]))

    def scalar(self) -> Array:
        """One number as shape ()."""
        return self.node("Reshape", np.array([], dtype=np.int64))

    def padded(
        self,
        before: Sequence[Array | int],
        after: Sequence[Array | int],
        value: Array | None = None,
        mode: str = "constant",
    ) -> Array:
        """Pad every axis by so many places before and after, with zeros, one value, or the edge."""
        return self.node("Pad", self.several(*before, *after), value, mode=mode)

    def range(self) -> Array:
        """The positions from 0 up to this length."""
        return self.constant(0).node("Range", self, 1)


def name_values(graph: ir.Graph, prefix: str) -> None:
    """Give the values that nodes compute names of their own, as branches share those of the graph around them."""
    kept = {id(value) for value in graph.outputs}
    for i, node in enumerate(graph.all_nodes()):
        for j, value in enumerate(node.outputs):
            if id(value) not in kept:
                value.name = f"{prefix}{i}_{j}"
