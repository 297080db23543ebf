"""Reordering the channels of an activation, exactly, by reordering constants around it.

    f(x·U)·W   =   f(x·U[:, p])·W[p, :]        f without regard to the order of channels

Unlike a division (`qcompiler.passes.absorb.absorb`), a reordering reaches everything that meets the tensor channel by
channel: through a norm it goes on to what the norm reads, and so along a whole residual stream, from the embedding to
the last layer. `find_permutation` floods from one tensor and says what would have to be reordered, or which node stands
against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import add_constant, set_input
from qcompiler.ir.graph import (
    axes_of,
    captured,
    consumers,
    is_constant,
    is_input,
    is_op,
    is_output,
    is_present,
    producer,
    shape_of,
    values_of,
)
from qcompiler.ir.names import Names
from qcompiler.ir.operators import ELEMENTWISE, NORMS, REDUCTIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Permutation:
    """What reordering a tensor along its last axis would take.

    Attributes:
        tensors: names of the activations whose channels are reordered with it, itself among them.
        edits: constants to reorder, as (node, index of its input, axis).
        why: why it cannot be done, as the end of a sentence; empty where it can.
    """

    tensors: frozenset[str] = frozenset()
    edits: tuple[tuple[gs.Node, int, int], ...] = ()
    why: str = ""


class _NoWayError(Exception):
    """Its text says which node stands in the way."""


def find_permutation(graph: gs.Graph, tensor: gs.Tensor, count: int) -> Permutation:
    """Finds out what reordering the `count` channels on the last axis of `tensor` would take; changes nothing.

    Shapes must have been inferred.
    """
    flood = _Flood(graph, count)
    try:
        flood.reach(tensor)
        flood.spread()
    except _NoWayError as refusal:
        return Permutation(why=str(refusal))
    return Permutation(frozenset(one.name for one in flood.tensors.values()), tuple(flood.edits.values()))


def apply(permutation: Permutation, order: NDArray[np.intp], names: Names) -> None:
    """Reorders: channel i of every tensor is from now on what channel `order[i]` was.

    A constant that other nodes read too stays as it is: the node that is concerned gets one of its own.
    """
    for node, i, axis in permutation.edits:
        old = node.inputs[i]
        name = old.name if len(consumers(old)) == 1 else names.fresh(old.name)
        set_input(node, i, add_constant(name, np.take(values_of(old), order, axis)))


class _Flood:
    """The tensors that are reordered together, as they are found."""

    def __init__(self, graph: gs.Graph, count: int) -> None:
        self._graph, self._count, self._inside = graph, count, captured(graph)
        self.tensors: dict[int, gs.Tensor] = {}
        self.edits: dict[tuple[int, int, int], tuple[gs.Node, int, int]] = {}
        self._waiting: list[gs.Tensor] = []

    def reach(self, tensor: gs.Tensor) -> None:
        """Takes a tensor in; its neighbours are looked at by `spread`."""
        if id(tensor) in self.tensors:
            return
        for stands, what in (
            (is_output(self._graph, tensor), "a graph output"),
            (is_input(self._graph, tensor), "a graph input"),
            (tensor.name in self._inside, "read in a branch or a loop"),
        ):
            if stands:
                raise _NoWayError(f"'{tensor.name}' is {what}")
        if (shape_of(tensor) or (None,))[-1] != self._count:
            raise _NoWayError(f"the last axis of '{tensor.name}' is not known to have {self._count} channels")
        self.tensors[id(tensor)] = tensor
        self._waiting.append(tensor)

    def spread(self) -> None:
        """Follows every tensor to the node that writes it and to those that read it."""
        while self._waiting:
            tensor = self._waiting.pop()
            maker = producer(tensor)
            if maker is None:
                raise _NoWayError(f"nothing writes '{tensor.name}'")
            self._visit(maker)
            for node in {id(node): node for node, _ in consumers(tensor)}.values():
                self._visit(node)

    def _visit(self, node: gs.Node) -> None:
        if is_op(node, *ELEMENTWISE):
            self._elementwise(node, [*range(len(node.inputs))])
        elif is_op(node, "MatMul", "Gemm"):
            self._product(node)
        elif node.op in NORMS and int(node.attrs.get("axis", -1)) == self._last(node.inputs[0], node):
            self._elementwise(node, [*range(len(node.inputs))])
        elif is_op(node, *REDUCTIONS):
            self._reduction(node)
        elif is_op(node, "Gather") and self._has(node.outputs[0]) and self._is_table(node):
            self._edit(node, 0, len(node.inputs[0].shape) - 1)
        else:
            raise _NoWayError(f"'{node.name}' ({node.op}) does not treat its channels alike")

    def _elementwise(self, node: gs.Node, inputs: list[int]) -> None:
        for i in inputs:
            if is_present(node, i):
                self._operand(node, i)
        for output in node.outputs:
            if output.name and (shape_of(output) or (None,))[-1] != 1:
                self.reach(output)

    def _operand(self, node: gs.Node, i: int) -> None:
        """An operand has the channels, or one value for all of them."""
        tensor = node.inputs[i]
        shape = shape_of(tensor)
        if shape is not None and (not shape or shape[-1] == 1):
            return
        if not is_constant(tensor):
            self.reach(tensor)
        elif shape is not None and shape[-1] == self._count:
            self._edit(node, i, len(shape) - 1)
        else:
            raise _NoWayError(f"constant '{tensor.name}' of '{node.name}' has no channel each")

    def _product(self, node: gs.Node) -> None:
        weight = node.inputs[1]
        if not is_constant(weight) or len(weight.shape) != 2 or node.attrs.get("transA", 0):
            raise _NoWayError(f"'{node.name}' ({node.op}) has no constant matrix on its right")
        flipped = bool(node.attrs.get("transB", 0))
        if self._has(node.inputs[0]):
            self._edit(node, 1, 1 if flipped else 0)
        if not self._has(node.outputs[0]):
            return
        self._edit(node, 1, 0 if flipped else 1)
        if is_present(node, 2):
            self._operand(node, 2)

    def _reduction(self, node: gs.Node) -> None:
        axes, last = axes_of(node), self._last(node.inputs[0], node)
        if axes in ((-1,), (last,)):
            return  # a sum does not know the order
        raise _NoWayError(f"'{node.name}' ({node.op}) does not reduce the channels alone")

    def _is_table(self, node: gs.Node) -> bool:
        """Whether a Gather picks rows of a constant."""
        table = node.inputs[0]
        return is_constant(table) and len(table.shape) > 1 and int(node.attrs.get("axis", 0)) == 0

    def _last(self, tensor: gs.Tensor, node: gs.Node) -> int:
        axis = node.attrs.get("axis", -1)
        return -1 if node.op in NORMS and axis == -1 else len(shape_of(tensor) or ()) - 1

    def _has(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self.tensors

    def _edit(self, node: gs.Node, i: int, axis: int) -> None:
        if node.inputs[i].shape[axis] != self._count:
            raise _NoWayError(f"constant '{node.inputs[i].name}' of '{node.name}' has another number of channels")
        self.edits[id(node), i, axis] = node, i, axis
