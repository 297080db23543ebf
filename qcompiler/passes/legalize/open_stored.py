"""Weights that came quantized, while formats are chosen: opened to the float values they stand for.

    DQ(w₈, s)            ⇒  W = w₈ · s, a constant that bears the name of what the DequantizeLinear wrote
    MatMul(DQ(Q(x)), V)  ⇒  MatMul(x, V)

Whatever is then tried on the layer (formats, ranges, corrections) is tried on a float weight like any other. Stored
again with the same scales it gives the same integers, because W / s is w₈ to the last bit but one. A layer with a float
weight behind a pair reads what that pair quantizes; the pair is put back, with the same scale, when the weight is
stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import dequantized, is_dq, is_q, scale_of
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class OpenStored(Pass):
    """Open stored weights, and the pairs in front of named nodes, to floats.

    Attributes:
        weights: names of the tensors that a DequantizeLinear makes of stored weights; each becomes a float constant.
        pairs: names of nodes whose input 0 came behind a Q/DQ pair; each reads the float tensor in front of it.
    """

    weights: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    # A Transpose between a DequantizeLinear and its layer could now be folded; two layers may read one weight.
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED, Fact.UNSHARED, Fact.QDQ})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node of `pairs`, then one per tensor of `weights`, each in graph order."""
        yield from _pairs(graph, self.pairs)
        yield from _weights(graph, self.weights)


def _pairs(graph: gs.Graph, wanted: Collection[str]) -> Iterator[Note]:
    there: set[str] = set()
    for node in list(graph.nodes):
        if node.name not in wanted:
            continue
        there.add(node.name)
        back = graphs.producer(node.inputs[0])
        before = graphs.producer(back.inputs[0]) if back is not None and is_dq(back) else None
        if back is None or before is None or not is_q(before):
            yield Skipped(node.name, f"'{node.inputs[0].name}' does not come out of a pair")
            continue
        source = before.inputs[0]
        edit.set_input(node, 0, source)
        for one in (back, before):
            if not one.outputs[0].outputs and not graphs.is_output(graph, one.outputs[0]):
                edit.remove_node(graph, one)
        yield Changed(node.name, f"reads '{source.name}' in float")
    yield from (Skipped(name, "there is no such node") for name in wanted if name not in there)


def _weights(graph: gs.Graph, wanted: Collection[str]) -> Iterator[Note]:
    gone: list[gs.Node] = []
    there: set[str] = set()
    for node in graph.nodes:
        out = node.outputs[0] if is_dq(node) else None
        if out is None or out.name not in wanted:
            continue
        there.add(out.name)
        why = _why_not(graph, node)
        if why:
            yield Skipped(node.name, why)
            continue
        constant = edit.add_constant(out.name, dequantized(node, graphs.dtype_of(out) or element_types.FP32))
        for user, index in graphs.consumers(out):
            edit.set_input(user, index, constant)
        gone.append(node)
        yield Changed(node.name, f"stored weight '{out.name}' became its float values")
    edit.remove_nodes(graph, gone)
    yield from (Skipped(name, "no DequantizeLinear writes it") for name in wanted if name not in there)


def _why_not(graph: gs.Graph, node: gs.Node) -> str:
    """Why a DequantizeLinear stays; empty where its float values can take its place."""
    if graphs.constant_value(node.inputs[0]) is None or scale_of(node) is None:
        return f"what '{node.outputs[0].name}' is dequantized from, or its scale, is computed at run time"
    return f"'{node.outputs[0].name}' is an output of the graph" if graphs.is_output(graph, node.outputs[0]) else ""
