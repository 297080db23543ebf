"""Where an output was joined: boxes and scores, keypoints and visibility, levels of a pyramid.

    output0 = Transpose(Concat(boxes [1,4,N], scores [1,8,N]; axis 1), (0,2,1))     cut at 4 along axis 2

Quantities of different size in one tensor are different results. Between the join and the output may stand whatever
keeps elements apart: other joins, elements in another order, functions of single elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shapes
from qcompiler.ir.operators import POINTWISE, REARRANGES

MOST_PARTS = 64  # more pieces than that are no quantities


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor along one axis.

    Attributes:
        axis: from 0.
        start: first index.
        stop: behind the last one.
        tensors: what was put there, as far as one tensor alone fills it.
        indices: the ones that it consists of, where they do not lie side by side; `start` and `stop` then hold them.
    """

    axis: int
    start: int
    stop: int
    tensors: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()

    @staticmethod
    def of(axis: int, indices: tuple[int, ...]) -> Piece:
        """The part with these indices, in order."""
        beside = indices == tuple(range(indices[0], indices[-1] + 1))
        return Piece(axis, indices[0], indices[-1] + 1, indices=() if beside else indices)


Cuts = dict[int, tuple[Piece, ...]]  # by axis, pieces that fill it in order


def tensors_for_cuts(output: gs.Tensor) -> Iterator[str]:
    """Names of the tensors whose shapes `cuts_of` must know."""
    yield output.name
    node = graphs.producer(output)
    for value in followed(node):
        yield from tensors_for_cuts(value)


def cuts_of(output: gs.Tensor, shapes: Shapes) -> Cuts:
    """Pieces of a tensor, by axis, where it was joined of at least two.

    Args:
        output: a tensor.
        shapes: of `tensors_for_cuts`, for one sample; what is missing is not cut.
    """
    found = _cuts(output, shapes)
    return {axis: pieces for axis, pieces in found.items() if 1 < len(pieces) <= MOST_PARTS}


def _cuts(tensor: gs.Tensor, shapes: Shapes) -> Cuts:
    node, shape = graphs.producer(tensor), shapes.get(tensor.name)
    if node is None or shape is None:
        return {}
    if graphs.is_op(node, "Concat"):
        return _joined(node, shapes)
    inner = next(followed(node), None)
    if inner is None or shapes.get(inner.name) is None:
        return {}
    moved = moved_axes(node, shapes[inner.name], shape)
    found = _cuts(inner, shapes)
    return {moved[axis]: _on(pieces, moved[axis]) for axis, pieces in found.items() if axis in moved}


def _on(pieces: Sequence[Piece], axis: int) -> tuple[Piece, ...]:
    return tuple(Piece(axis, one.start, one.stop, one.tensors) for one in pieces)


def _joined(node: gs.Node, shapes: Shapes) -> Cuts:
    """What a Concat joins along its axis, cut as its inputs are; along others, cuts that all of them have."""
    known = [shapes.get(value.name) for value in node.inputs]
    if any(shape is None for shape in known) or not known:
        return {}
    rank = len(known[0] or ())
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    inner = [_cuts(value, shapes) for value in node.inputs]
    along, at = list[Piece](), 0
    for value, shape, own in zip(node.inputs, known, inner, strict=True):
        size = shape[axis] if shape else 0
        parts = own.get(axis) or (Piece(axis, 0, size, (value.name,)),)
        along += [Piece(axis, at + one.start, at + one.stop, (*one.tensors, value.name)) for one in parts if size]
        at += size
    found: Cuts = {axis: tuple(along)}
    computed = [own for value, own in zip(node.inputs, inner, strict=True) if not graphs.is_constant(value)]
    for other in computed[0] if computed else ():
        edges = [[(one.start, one.stop) for one in own.get(other, ())] for own in computed]
        if other != axis and all(one == edges[0] for one in edges):
            columns = zip(*(own[other] for own in computed), strict=True)
            found[other] = tuple(
                Piece(other, rows[0].start, rows[0].stop, tuple(name for one in rows for name in one.tensors))
                for rows in columns
            )
    return found


def followed(node: gs.Node | None) -> Iterator[gs.Tensor]:
    """The inputs through which cuts reach what a node writes."""
    if node is None or not graphs.is_standard(node):
        return
    if node.op == "Concat":
        yield from (value for value in node.inputs if not graphs.is_constant(value))
    elif node.op in ("Cast", *REARRANGES, "Sigmoid", "HardSigmoid", "Tanh", "Softplus"):
        yield node.inputs[0]
    elif node.op in POINTWISE:
        moving = [value for value in node.inputs if value.name and not graphs.is_constant(value)]
        if len(moving) == 1:
            yield moving[0]


def moved_axes(node: gs.Node, before: Sequence[int], after: Sequence[int]) -> Mapping[int, int]:
    """Which axis of the result each axis of the input becomes, where it stays one axis."""
    if graphs.is_op(node, "Transpose"):
        order = [int(axis) for axis in node.attrs.get("perm", reversed(range(len(before))))]
        return {axis: at for at, axis in enumerate(order)}
    if not graphs.is_op(node, *REARRANGES):
        shift = len(after) - len(before)
        return {axis: axis + shift for axis in range(len(before)) if before[axis] == after[axis + shift]}
    places = {(math.prod(after[:at]), size): at for at, size in enumerate(after)}
    wanted = {axis: places.get((math.prod(before[:axis]), size)) for axis, size in enumerate(before)}
    return {axis: at for axis, at in wanted.items() if at is not None and before[axis] > 1}
