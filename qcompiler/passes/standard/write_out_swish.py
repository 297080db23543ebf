"""Swish of opset 24 as a product.

Swish{alpha}(x)  ⇒  x · Sigmoid(alpha · x)

Source: ONNX operator specification, Swish-24.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.runtime import shapes


@dataclass(frozen=True)
class WriteOutSwish(Pass):
    """Write out Swish of opset 24 for engines whose parsers are older."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Swish."""
        found = [(inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if graphs.is_op(node, "Swish")]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            x = node.inputs[0]
            dtype = graphs.dtype_of(x)
            if dtype is None:
                yield Skipped(node.name, "the type of its input is not known")
                continue
            w = NodeWriter(inner, node, names, dtype)
            alpha = float(node.attrs.get("alpha", 1.0))
            steep = x if alpha == 1 else w.op("Mul", "steep", [x, w.number("alpha", alpha)])
            w.result(0, w.op("Mul", "swish", [x, w.op("Sigmoid", "gate", [steep])]))
            yield Changed(node.name, f"Swish written out as {w.finish()} nodes")
