"""An Add in front of LayerNormalization becomes a Sum, which is the same and stays apart from it.

LayerNormalization(Add(x, skip))  ⇒  LayerNormalization(Sum(x, skip))

ONNX Runtime fuses the first form into SkipLayerNormalization, whose CPU kernel takes several times as long as the two
nodes by themselves (MiniLM-L6 with its MatMuls in INT8: 27 % of the whole run against 4 %); it does not look for Sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import constant_value, graphs, is_op, producer
from qcompiler.passes.base import Changed, Fact, Note, Pass


@dataclass(frozen=True)
class SplitSkipNorm(Pass):
    """Keep ONNX Runtime from its slow fused residual normalisation on CPU."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Add that a LayerNormalization reads."""
        for inner in graphs(graph):
            for node in inner.nodes:
                add = producer(node.inputs[0]) if is_op(node, "LayerNormalization") else None
                if (
                    add is None
                    or not is_op(add, "Add")
                    or any(constant_value(tensor) is not None for tensor in add.inputs)
                ):
                    continue
                add.op = "Sum"
                yield Changed(add.name, f"Sum, so that '{node.name}' stays apart")
