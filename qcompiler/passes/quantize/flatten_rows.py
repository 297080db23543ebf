"""x[b, s, K] · DQ(W)  ⇒  Reshape(Reshape(x, [-1, K]) · DQ(W), [b, s, N]) behind merged heads: all rows in one matrix.

    Transpose → Reshape → MatMul                    attention, its heads put together, the output projection
    Transpose → Reshape → Reshape → MatMul → Reshape

Where the engine knows that the batch is 1, TensorRT-RTX 1.7 drops the Transpose, takes the product for a batch of one
matrix and gives the weight that shape: it is then no stored weight any more, but dequantized as a whole on every run by
a kernel of its own. A product of two matrices keeps it. Others are left alone: products that share an activation are
joined side by side, and flattened they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import is_dq, is_weight_only
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class FlattenRows(Pass):
    """Make the product of merged attention heads and a stored weight one of two matrices, for TensorRT-RTX."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 1e-6

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per product."""
        names = Names(graph)
        for node in list(graph.nodes):
            weight = _stored_weight(node) if graphs.is_op(node, "MatMul") else None
            if weight is None or len(weight) != 2 or not _merges_heads(node.inputs[0]):
                continue
            shape = graphs.shape_of(node.inputs[0])
            if shape is None:
                yield Skipped(node.name, "the rank of its activation is not known")
            elif len(shape) > 2:
                _flatten(graph, names, node, *weight)
                yield Changed(node.name, f"its rows are one matrix of {weight[0]} columns")
        edit.sort(graph)


def _stored_weight(node: gs.Node) -> tuple[int, ...] | None:
    """The shape of a weight that stands alone behind its DequantizeLinear; None for other operands."""
    before = graphs.producer(node.inputs[1])
    if before is None or not is_dq(before) or not is_weight_only(before):
        return None
    return tuple(int(size) for size in before.inputs[0].shape)


def _merges_heads(tensor: gs.Tensor) -> bool:
    """Whether a tensor comes from a Transpose through a Reshape."""
    node = graphs.producer(tensor)
    reshaped = False
    while node is not None and graphs.is_op(node, "Reshape", "Flatten"):
        reshaped = True
        node = graphs.producer(node.inputs[0])
    return reshaped and node is not None and graphs.is_op(node, "Transpose")


def _flatten(graph: gs.Graph, names: Names, node: gs.Node, depth: int, width: int) -> None:
    x, y = node.inputs[0], node.outputs[0]
    dtype = graphs.dtype_of(x)
    rows = gs.Variable(names.fresh(f"{x.name}/rows"), dtype, (None, depth))
    flat = gs.Variable(names.fresh(f"{y.name}/rows"), dtype, (None, width))
    leading = gs.Variable(names.fresh(f"{x.name}/leading"), np.int64, (len(x.shape) - 1,))
    target = gs.Variable(names.fresh(f"{y.name}/shape"), np.int64, (len(x.shape),))
    columns = edit.add_constant(names.fresh(f"{y.name}/columns"), np.array([width], np.int64))
    matrix = edit.add_constant(names.fresh(f"{x.name}/matrix"), np.array([-1, depth], np.int64))

    def made(op: str, inputs: list[gs.Tensor], output: gs.Variable, **attrs: int) -> gs.Node:
        return gs.Node(op, names.fresh(f"{output.name}/{op}"), attrs, inputs, [output])

    at = edit.index_of(graph, node)
    edit.set_input(node, 0, rows)
    edit.set_output(node, 0, flat)
    before = [
        made("Reshape", [x, matrix], rows),
        made("Shape", [x], leading, end=-1),
        made("Concat", [leading, columns], target, axis=0),
    ]
    edit.insert_at(graph, at, before)
    edit.insert_at(graph, at + 4, [made("Reshape", [flat, target], y)])
