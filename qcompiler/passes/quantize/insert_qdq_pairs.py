"""Add(conv, x) ⇒ Add(conv, DQ(Q(x))): pairs in front of nodes that have no weight, where the plan wants them.

A tensor that has a pair already, because a layer reads it quantized, keeps the one it has: both readers then see the
same integers, and the engine stores the tensor once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.quantize.insert_qdq import pair, step
from qcompiler.plan import Plan


@dataclass(frozen=True)
class InsertQDQPairs(Pass):
    """Put Q/DQ pairs in front of the inputs without a weight that the plan quantizes."""

    plan: Plan = field(default_factory=Plan, repr=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Edits the nodes in `plan.reads`, in graph order."""
        names = Names(graph)
        for node in list(graph.nodes):
            for index in self.plan.reads.get(node.name, ()):
                tensor = node.inputs[index]
                if graphs.is_op(graphs.producer(tensor), "DequantizeLinear"):
                    continue
                quantizer = self.plan.quantizers.get(tensor.name)
                if quantizer is None:
                    yield Skipped(node.name, f"the plan has no range for its input {index}, '{tensor.name}'")
                    continue
                known = dequantized(tensor)
                edit.set_input(node, index, known or pair(graph, names, tensor, quantizer))
                shared = ", with the pair that is there" if known is not None else ""
                stored = quantizer.dtype.upper()
                yield Changed(node.name, f"reads '{tensor.name}' in {stored}, scale {step(quantizer):.4g}{shared}")
        edit.sort(graph)


def dequantized(tensor: gs.Tensor) -> gs.Tensor | None:
    """What the pair behind a tensor gives back, if it has one."""
    for node, index in graphs.consumers(tensor):
        if index == 0 and graphs.is_op(node, "QuantizeLinear"):
            for reader, place in graphs.consumers(node.outputs[0]):
                if place == 0 and graphs.is_op(reader, "DequantizeLinear"):
                    return reader.outputs[0]
    return None
