"""RotaryEmbedding of opset 23 as Split, Mul, Sub, Add and Concat, its angles taken by Gather.

RotaryEmbedding(x, cos, sin, positions)  ⇒  x₁·cos[positions] - x₂·sin[positions],  x₂·cos[positions] + …

Source: ONNX operator specification, RotaryEmbedding-23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.passes.rotary_parts import rotate
from qcompiler.runtime import shapes


@dataclass(frozen=True)
class WriteOutRotary(Pass):
    """Write out RotaryEmbedding of opset 23 for engines whose parsers are older."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per RotaryEmbedding."""
        found = [
            (inner, node)
            for inner in graphs.graphs(graph)
            for node in inner.nodes
            if graphs.is_op(node, "RotaryEmbedding")
        ]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            x = node.inputs[0]
            shape, dtype, heads = graphs.shape_of(x), graphs.dtype_of(x), int(node.attrs.get("num_heads", 0))
            packed = shape is not None and len(shape) == 3
            last = shape[-1] if shape is not None and len(shape) in (3, 4) else None
            if dtype is None or not isinstance(last, int) or (packed and not heads):
                yield Skipped(node.name, "the type of its input, or the width of a head, is not known")
                continue
            width = last // heads if packed else last
            count = _write_out(NodeWriter(inner, node, names, dtype), width, heads if packed else 0)
            yield Changed(node.name, f"RotaryEmbedding written out as {count} nodes")


def _write_out(w: NodeWriter, width: int, heads: int) -> int:
    """x is [batch, rows, heads x width] where `heads` is given, and [batch, heads, rows, width] where it is 0."""
    x, positions = w.reads(0), w.read(3)
    angles = [w.reads(1), w.reads(2)]
    if positions is not None:
        angles = [w.op("Gather", what, [table, positions]) for what, table in zip(("cos", "sin"), angles, strict=True)]
    each = w.integers("of_head", [2 if heads else 1])
    cos, sin = (
        w.op("Unsqueeze", f"{what}_each", [one, each]) for what, one in zip(("cos", "sin"), angles, strict=True)
    )
    rows = w.op("Reshape", "by_head", [x, w.integers("heads", [0, 0, heads, width])]) if heads else x
    turned = rotate(
        w,
        rows,
        cos,
        sin,
        width=width,
        rotated=int(w.node.attrs.get("rotary_embedding_dim", 0)),
        interleaved=bool(w.node.attrs.get("interleaved", 0)),
    )
    if heads:
        turned = w.op("Reshape", "joined", [turned, w.constant("width", np.array([0, 0, heads * width]))])
    w.result(0, turned)
    return w.finish()
