"""RMSNormalization of opset 23 as the five operators that exporters wrote before.

RMSNormalization(x, scale)  ⇒  x / √(mean(x²) + ε) · scale

Source: ONNX operator specification, RMSNormalization-23.
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
from qcompiler.runtime import shapes

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class WriteOutRmsNorm(Pass):
    """Write out RMSNormalization of opset 23 for engines whose parsers are older."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per RMSNormalization."""
        op = "RMSNormalization"
        found = [(inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if graphs.is_op(node, op)]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            axis, shape = int(node.attrs.get("axis", -1)), graphs.shape_of(node.inputs[0])
            dtype = graphs.dtype_of(node.inputs[0])
            if dtype is None or (axis >= 0 and shape is None):
                yield Skipped(node.name, "the type or the number of axes of its input is not known")
                continue
            first = axis if axis < 0 else axis - len(shape or ())
            count = _write_out(NodeWriter(inner, node, names, dtype), list(range(first, 0)))
            yield Changed(node.name, f"{op} written out as {count} nodes")


def _write_out(w: NodeWriter, axes: list[int]) -> int:
    """Computes in float32 as the operator does, but for float64."""
    x, dtype = w.reads(0), w.dtype
    narrow = dtype.itemsize < _FLOAT32.itemsize and int(w.node.attrs.get("stash_type", 1)) == graphs.onnx_type(_FLOAT32)
    if narrow:
        w.dtype = _FLOAT32
        x = w.op("Cast", "wide", [x], to=graphs.onnx_type(_FLOAT32))
    squares = w.op("Mul", "squares", [x, x])
    mean = w.op("ReduceMean", "mean", [squares, w.integers("axes", axes)], keepdims=1)
    above = w.op("Add", "above_zero", [mean, w.number("epsilon", float(w.node.attrs.get("epsilon", 1e-5)))])
    normal = w.op("Div", "normal", [x, w.op("Sqrt", "rms", [above])])
    if narrow:
        w.dtype = dtype
        normal = w.op("Cast", "narrow", [normal], to=graphs.onnx_type(dtype))
    w.result(0, w.op("Mul", "scaled", [normal, w.reads(1)]))
    return w.finish()
