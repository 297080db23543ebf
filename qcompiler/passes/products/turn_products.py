"""MatMul(W, x)  ⇒  Transpose(MatMul(Transpose(x), Wᵀ)): a constant on the left comes to the right.

There it gets a scale for each of its output channels, and everything that is known of weights applies to it. ONNX
Runtime takes scales per channel on the right alone. TensorRT-RTX takes either side, and both forms are three kernels
there: the transposes are part of those that quantize and scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.products._writer import Writer
from qcompiler.runtime import shapes

_SMALLEST = 16  # channels: what is smaller than one INT8 tile is not quantized, on whichever side it stands


@dataclass(frozen=True)
class TurnProducts(Pass):
    """Bring the constant left matrix of a MatMul to the right, where it can be quantized."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per MatMul whose first input alone is constant and large enough."""
        found = [(inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if _is_left(node)]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            shape = graphs.shape_of(node.inputs[1])
            if shape is None:
                yield Skipped(node.name, "the rank of its activation is not known")
                continue
            _turn(inner, node, len(shape), names)
            yield Changed(node.name, "its constant came to the right")


def _is_left(node: gs.Node) -> bool:
    if not graphs.is_op(node, "MatMul") or not graphs.is_constant(node.inputs[0]) or graphs.is_constant(node.inputs[1]):
        return False
    weight = graphs.static_shape(node.inputs[0])
    return weight is not None and len(weight) > 1 and min(weight[-2:]) >= _SMALLEST and graphs.is_float(node.inputs[0])


def _turn(graph: gs.Graph, node: gs.Node, rank: int, names: Names) -> None:
    writer, values = Writer(graph, node, names), graphs.values_of(node.inputs[0])
    weight = writer.constant("weight", values.swapaxes(-1, -2))
    x = node.inputs[1]
    if rank == 1:
        writer.replace(writer.matmul(x, weight))
        return
    product = writer.matmul(writer.transpose(x, _swapped(rank)), weight)
    writer.replace(writer.transpose(product, _swapped(max(rank, values.ndim))))


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
