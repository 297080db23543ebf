"""Constant nodes become initializers, whichever attribute holds their value; initializers are dense, and no inputs.

Constant{value=W} → Conv  ⇒  Conv(W)
Constant{value_ints=[1, -1]} → Reshape  ⇒  Reshape([1, -1])
MatMul(x, W: 3 of 8 values)  ⇒  MatMul(x, W: all 8 values)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues

from qcompiler.ir.edit import copy_constant, remove_nodes, set_input
from qcompiler.ir.graph import attribute_value, consumers, dtype_of, graphs, is_constant, is_op, is_output, values_of
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class NormalizeConstants(Pass):
    """Turn Constant nodes into initializers, make sparse ones dense, and those that are inputs plain.

    Left alone: a Constant that is itself a graph output, and one that holds strings. TensorRT reads no sparse weights,
    and a layer with one would be no layer with a weight.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Constant node and per input that was an initializer."""
        dense: dict[int, gs.Constant] = {}
        for inner in graphs(graph):
            yield from _inputs(inner)
            yield from _nodes(inner)
            yield from _sparse(inner, dense)


def _inputs(graph: gs.Graph) -> Iterator[Note]:
    for tensor in graph.inputs:
        if is_constant(tensor):
            yield Changed(tensor.name, "an initializer, no longer an input as well")
    graph.inputs[:] = [tensor for tensor in graph.inputs if not is_constant(tensor)]


def _nodes(graph: gs.Graph) -> Iterator[Note]:
    done: list[gs.Node] = []
    for node in graph.nodes:
        if not is_op(node, "Constant"):
            continue
        refusal = _refusal(graph, node)
        if refusal:
            yield Skipped(node.name, refusal)
            continue
        (output,) = node.outputs
        held = node.attrs.get("value")
        # A copy of the graph shares attributes with its original, so the held initializer itself is not renamed.
        constant = (
            copy_constant(held, output.name) if is_constant(held) else gs.Constant(output.name, attribute_value(node))
        )
        for user, index in consumers(output):
            set_input(user, index, constant)
        done.append(node)
        yield Changed(node.name, f"initializer '{constant.name}' {dtype_of(constant)}{list(constant.shape)}")
    remove_nodes(graph, done)


def _sparse(graph: gs.Graph, made: dict[int, gs.Constant]) -> Iterator[Note]:
    """`made` are the dense initializers so far, by the identity of the sparse ones: nested graphs share them."""
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or not isinstance(tensor._values, SparseValues):
                continue
            if id(tensor) not in made:
                made[id(tensor)] = gs.Constant(tensor.name, values_of(tensor))
                yield Changed(node.name, f"weight '{tensor.name}' {list(tensor.shape)} is dense, and was sparse")
            set_input(node, index, made[id(tensor)])


def _refusal(graph: gs.Graph, node: gs.Node) -> str:
    if is_output(graph, node.outputs[0]):
        return f"its result '{node.outputs[0].name}' is a graph output"
    value = attribute_value(node)
    if value is None:
        return "it refers to an attribute of a function"
    if value.dtype == object:
        return "it holds strings, which are left to ONNX Runtime"
    return ""
