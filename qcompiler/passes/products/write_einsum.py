"""An Einsum becomes the products that it is, each with its axes in order and a constant on the right.

    Einsum(x, W; 'abc,cde->abde')     ⇒  Reshape(MatMul(x, W [c, de]), [0, 0, d, e])
    Einsum(x, W; 'abcd,cde->abe')     ⇒  MatMul(Reshape(x, [0, 0, cd]), W [cd, e])
    Einsum(k, q; 'aecd,abcd->acbe')   ⇒  Transpose(MatMul(Transpose(k) [aced], Transpose(q) [acdb]))
    Einsum(x, v; 'abc,c->abc')        ⇒  Mul(x, v)

The axes of constants are sorted now. Sizes need not be known: each Reshape keeps those in front, and joins or takes
apart only such as the constant tells. Where both operands have several axes of their own beside shared ones, and both
are computed, that is not so: these stay, as do diagonals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.products._equation import Equation, Labels, parse
from qcompiler.passes.products._writer import AXES_ARE_INPUTS, SIZES_ARE_READ, Writer
from qcompiler.runtime import shapes


class _Operand(NamedTuple):
    """A tensor and the labels of its axes."""

    tensor: gs.Tensor
    labels: Labels

    def sizes(self) -> dict[str, int]:
        """By label, the sizes that are fixed."""
        shape = graphs.shape_of(self.tensor) or ()
        return {name: size for name, size in zip(self.labels, shape, strict=False) if isinstance(size, int)}

    @property
    def constant(self) -> bool:
        return graphs.is_constant(self.tensor)


@dataclass(frozen=True)
class WriteEinsum(Pass):
    """Write Einsum as MatMul, with the axes sorted, so that dense layers spelled so are quantized like others."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Einsum."""
        found = [
            (inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if graphs.is_op(node, "Einsum")
        ]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            equation = _readable(node, int(graph.opset))
            why = equation if isinstance(equation, str) else _write(inner, node, equation, names)
            yield (
                Skipped(node.name, why) if why else Changed(node.name, f"{node.attrs['equation']} written as products")
            )


def _readable(node: gs.Node, opset: int) -> Equation | str:
    if opset < AXES_ARE_INPUTS:
        return f"opset {opset} has no axes as inputs"
    if not graphs.is_float(node.inputs[0]):
        return "it is not known to compute in floats"
    if any(graphs.is_constant(tensor) and 0 in (graphs.shape_of(tensor) or ()) for tensor in node.inputs):
        return "one of its constants is empty"
    ranks = [None if (shape := graphs.shape_of(tensor)) is None else len(shape) for tensor in node.inputs]
    return parse(str(node.attrs.get("equation", "")), ranks)


def _write(graph: gs.Graph, node: gs.Node, equation: Equation, names: Names) -> str:
    """Replaces an Einsum; returns why it stays where it does."""
    writer = Writer(graph, node, names)
    operands = [_Operand(tensor, labels) for tensor, labels in zip(node.inputs, equation.operands, strict=True)]
    done = operands[0]
    for index, other in enumerate(operands[1:], start=1):
        later = {*equation.result, *(name for one in operands[index + 1 :] for name in one.labels)}
        # an inner result may have its axes in any order; the last one has that of the equation
        result = equation.result if index == len(operands) - 1 else _any_order(done, other, later)
        found = _product(writer, done, other, result, last=index == len(operands) - 1)
        if isinstance(found, str):
            writer.discard()
            return found
        done = found
    done = _sorted(writer, _without(writer, done, set(equation.result)), equation.result)
    writer.replace(done.tensor)
    return ""


def _any_order(left: _Operand, right: _Operand, wanted: set[str]) -> Labels:
    return tuple(name for name in dict.fromkeys((*left.labels, *right.labels)) if name in wanted)


def _without(writer: Writer, operand: _Operand, wanted: set[str]) -> _Operand:
    """Summed over the axes that nobody asks for."""
    gone = [axis for axis, name in enumerate(operand.labels) if name not in wanted]
    return _Operand(writer.sum(operand.tensor, gone), tuple(name for name in operand.labels if name in wanted))


def _sorted(writer: Writer, operand: _Operand, order: Sequence[str]) -> _Operand:
    perm = [operand.labels.index(name) for name in order]
    return _Operand(writer.transpose(operand.tensor, perm), tuple(order))


def _product(writer: Writer, left: _Operand, right: _Operand, result: Labels, *, last: bool) -> _Operand | str:
    """The product of two operands with the axes of `result`, in any order; or why it cannot be written."""
    ours, theirs = set(left.labels), set(right.labels)
    left = _without(writer, left, theirs | set(result))
    right = _without(writer, right, ours | set(result))
    if left.constant and not right.constant:
        left, right = right, left
    both = set(left.labels) & set(right.labels)
    depth = [name for name in left.labels if name in both and name not in result]
    if not depth:
        return _Operand(_elementwise(writer, left, right, result), result)
    stack = [name for name in result if name in both]
    rows = [name for name in result if name in left.labels and name not in both]
    columns = [name for name in result if name in right.labels and name not in both]
    if not right.constant and len(columns) > 1:
        left, right, rows, columns = right, left, columns, rows
    if not right.constant and len(columns) > 1:
        return "both of its operands are computed and have several axes of their own"
    unlike = _unlike(left, right, depth if len(rows) < 2 and len(columns) < 2 else [*depth, *stack])
    if unlike:
        return f"axis '{unlike}' has size 1 in one operand alone"
    opset = int(writer.graph.opset)
    if opset < SIZES_ARE_READ and len(depth) > 1 and not {*left.sizes(), *right.sizes()}.issuperset(depth):
        return f"it sums over several axes of open sizes, which opset {opset} does not join where one may be empty"
    return _matrices(writer, left, right, _Axes(stack, rows, columns, depth), "" if last else "inner")


def _unlike(left: _Operand, right: _Operand, names: Sequence[str]) -> str:
    """The first axis that is, or may be, repeated along the other operand, as Einsum does and a product does not."""
    ours, theirs = left.sizes(), right.sizes()
    return next(
        (name for name in names if ours.get(name) != theirs.get(name) and 1 in (ours.get(name), theirs.get(name))), ""
    )


def _elementwise(writer: Writer, left: _Operand, right: _Operand, result: Labels) -> gs.Tensor:
    """No axis is summed over: both with all axes of the result, and multiplied."""
    aligned = []
    for one in (left, right):
        own = _sorted(writer, one, [name for name in result if name in one.labels])
        missing = [axis for axis, name in enumerate(result) if name not in own.labels]
        # axes in front of all others come by themselves
        kept = [axis for axis in missing if any(name in own.labels for name in result[:axis])]
        aligned.append(writer.unsqueeze(own.tensor, [axis - (len(missing) - len(kept)) for axis in kept]))
    return writer.add("Mul", aligned)


class _Axes(NamedTuple):
    """What the labels of a product are: in both and in the result, of the left alone, of the right, summed over."""

    stack: list[str]
    rows: list[str]
    columns: list[str]
    depth: list[str]


def _matrices(writer: Writer, left: _Operand, right: _Operand, axes: _Axes, what: str) -> _Operand:
    """A stack of matrices times another: [rows.., stack.., row, depth] · [stack.., depth, columns]."""
    stack, rows, columns, depth = axes
    vector = bool(stack) and not rows  # one row for each matrix of the stack
    lead = [*rows[:-1], *stack, *rows[-1:]]
    a = _joined(writer, _sorted(writer, left, [*lead, *depth]), len(lead), depth, right)
    if vector:
        a = writer.unsqueeze(a, [len(lead)])
    b = _right(writer, right, axes)
    # one column: for each matrix of a stack, or where the depth may be 0, by which ONNX Runtime multiplies no vector
    column = not columns and (bool(stack) or not {*left.sizes(), *right.sizes()}.issuperset(depth))
    if column:
        b = writer.unsqueeze(b, [len(stack) + 1])
    name = "" if not what else writer.fresh(what)
    product = writer.matmul(a, b, name=name)
    if vector:
        product = writer.squeeze(product, [len(lead)])
    if column:
        product = writer.squeeze(product, [len(lead)])
    if len(columns) > 1:
        product = writer.reshape(product, [0] * len(lead) + [right.sizes()[one] for one in columns])
    return _Operand(product, (*lead, *columns))


def _right(writer: Writer, right: _Operand, axes: _Axes) -> gs.Tensor:
    """[stack.., depth, columns]: several columns only of constants, and no last axis where there is none."""
    stack, _, columns, depth = axes
    sizes = right.sizes()
    if right.constant or len(depth) == 1:
        moved = _sorted(writer, right, [*stack, *depth, *columns]).tensor
        if len(depth) > 1 or len(columns) > 1:
            joined = [math.prod(sizes[one] for one in names) for names in (depth, columns) if names]
            moved = writer.reshape(moved, [0] * len(stack) + joined)
    else:
        moved = _joined(writer, _sorted(writer, right, [*stack, *columns, *depth]), len(stack + columns), depth, right)
        count = len(stack) + len(columns) + 1
        moved = writer.transpose(moved, [*range(count - 2), count - 1, count - 2]) if columns else moved
    return moved


def _joined(writer: Writer, operand: _Operand, kept: int, depth: list[str], other: _Operand) -> gs.Tensor:
    """The last axes as one."""
    if len(depth) < 2:
        return operand.tensor
    sizes = {**operand.sizes(), **other.sizes()}
    if all(one in sizes for one in depth):
        return writer.reshape(operand.tensor, [0] * kept + [math.prod(sizes[one] for one in depth)])
    if all(operand.sizes().get(one) for one in operand.labels[:kept]):
        return writer.reshape(operand.tensor, [0] * kept + [-1])
    # what -1 stands for is not known to ONNX Runtime where an axis in front is empty
    return writer.flatten(operand.tensor, kept, len(operand.labels))
