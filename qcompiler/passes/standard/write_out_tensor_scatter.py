"""TensorScatter of opset 24, which writes new keys into a cache of fixed length, as ScatterElements.

TensorScatter(cache, new, at)  ⇒  ScatterElements(cache, at + 0, 1, 2 …, new)     along the axis of the rows

TensorRT takes the operator only where the cache is an input of the engine as it is; a cache that is cast on its way to
half, or comes out of another node, ends the build.

Source: ONNX operator specification, TensorScatter-24.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.attention_parts import length
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.runtime import shapes

_INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class WriteOutTensorScatter(Pass):
    """Write out TensorScatter of opset 24, which TensorRT takes of inputs of the engine alone."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per TensorScatter."""
        op = "TensorScatter"
        found = [(inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if graphs.is_op(node, op)]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            shape, dtype = graphs.shape_of(node.inputs[1]), graphs.dtype_of(node.inputs[0])
            if shape is None or dtype is None:
                yield Skipped(node.name, "the type or the number of axes of what it writes is not known")
                continue
            axis = int(node.attrs.get("axis", -2)) % len(shape)
            count = _write_out(NodeWriter(inner, node, names, dtype), axis, len(shape))
            yield Changed(node.name, f"{op} written out as {count} nodes")
        shapes.infer(graph)


def _write_out(w: NodeWriter, axis: int, rank: int) -> int:
    cache, new, at = w.reads(0), w.reads(1), w.read(2)
    bounds = [w.integers("first", 0), length(w, "new", new, axis), w.integers("step", 1)]
    rows = w.op("Range", "line", bounds, dtype=_INT64)
    along = w.integers("row_shape", [-1 if i == axis else 1 for i in range(rank)])
    rows = w.op("Reshape", "rows", [rows, along], dtype=_INT64)
    if at is not None:
        wide = w.op("Cast", "at", [at], dtype=_INT64, to=graphs.onnx_type(_INT64))
        each = w.integers("each_shape", [-1, *[1] * (rank - 1)])
        rows = w.op("Add", "places", [w.op("Reshape", "at_each", [wide, each], dtype=_INT64), rows], dtype=_INT64)
    if w.node.attrs.get("mode", "linear") == "circular":
        rows = w.op("Mod", "around", [rows, length(w, "cache", cache, axis)], dtype=_INT64)
    sizes = w.op("Shape", "sizes", [new], dtype=_INT64)
    where = w.op("Expand", "where", [rows, sizes], dtype=_INT64)
    w.result(0, w.op("ScatterElements", "written", [cache, where, new], axis=axis))
    return w.finish()
