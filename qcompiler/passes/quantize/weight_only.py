"""x · W  ⇒  x · DQ(W₄): weights of products in a few bits with a scale per block, activations as they are.

    MatMul(x, W)                    ⇒   MatMul(x, DequantizeLinear(values [K, N], scales [K / size, N], zeros))
    Gemm(x, W, transB=1)            ⇒   Gemm(x, DequantizeLinear(values [K, N], ...))
    MatMul(x, Transpose(W))         ⇒   MatMul(x, DequantizeLinear(values [K, N], ...))

The weight is stored as it is multiplied, [K, N], whatever stood between it and the product: blocks run along K, axis 0,
the only axis that TensorRT-RTX fuses. INT4 values are packed two in a byte in the file. Weights with a scale per output
are per-axis INT8 on axis 1. There is no QuantizeLinear: what the integers are was decided before, and compilers
multiply such weights with float activations only. Zero points are zeros of the stored type; weights of one shape share
them. Scales are FP32 here and become what the graph computes in when it is typed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, linear
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import dequantizer
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from qcompiler.numerics.blocks import Blocks


STORED: Mapping[str, np.dtype[Any]] = {"int4": np.dtype(ml_dtypes.int4), "int8": np.dtype(np.int8)}


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Store the weights of products in INT4 blocks or in INT8, with float activations.

    Attributes:
        blocks: what is stored, by name of the MatMul or Gemm; decided elsewhere.
    """

    blocks: Mapping[str, Blocks] = field(default_factory=dict, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node of `blocks`, in graph order."""
        names = Names(graph)
        zeros: dict[tuple[Any, ...], gs.Constant] = {}
        there: set[str] = set()
        for node in list(graph.nodes):
            if node.name not in self.blocks:
                continue
            there.add(node.name)
            why = _refusal(node, self.blocks[node.name])
            yield Skipped(node.name, why) if why else _store(graph, names, zeros, node, self.blocks[node.name])
        edit.sort(graph)
        for name in self.blocks.keys() - there:
            yield Skipped(name, "there is no such node")


def _refusal(node: gs.Node, stored: Blocks) -> str:
    """Why a node keeps its weight; empty where it can be stored."""
    weight = linear.weight_of(node)
    if weight is None and len(node.inputs) > 1 and dequantizer(node.inputs[1]) is not None:
        return "its weight is stored already"
    if dequantizer(node.inputs[0]) is not None:
        return "its activation is quantized, and compilers multiply such weights with float activations only"
    shape = linear.matrix_shape(node)
    if weight is None or shape is None:
        return "its weight is no constant float matrix"
    if shape != stored.values.shape:
        return f"its weight is {list(shape)}, what is to be stored is {list(stored.values.shape)}"
    if stored.size and shape[0] % stored.size:
        return f"its depth of {shape[0]} is no multiple of {stored.size}, which TensorRT refuses"
    return ""


def _store(
    graph: gs.Graph, names: Names, zeros: dict[tuple[Any, ...], gs.Constant], node: gs.Node, stored: Blocks
) -> Note:
    weight = linear.weight_of(node)
    assert weight is not None  # `_refusal` has looked
    base, dtype = weight.tensor.name, STORED[stored.format]
    key = (stored.scales.shape, stored.format)
    if key not in zeros:
        zeros[key] = gs.Constant(names.fresh(f"{base}/zero_point"), np.zeros(stored.scales.shape, dtype))
    values = edit.add_constant(names.fresh(f"{base}/{stored.format}"), stored.values.astype(dtype))
    scale = gs.Constant(names.fresh(f"{base}/scale"), stored.scales.astype(np.float32))
    back = gs.Variable(names.fresh(f"{base}/dequantized"), np.float32, stored.values.shape)
    attrs = {"axis": 0, "block_size": stored.size} if stored.size else {"axis": 1}
    name = names.fresh(f"{base}/DequantizeLinear")
    edit.insert_before(graph, node, gs.Node("DequantizeLinear", name, attrs, [values, scale, zeros[key]], [back]))
    edit.set_input(node, 1, back)
    if graphs.is_op(node, "Gemm"):
        node.attrs["transB"] = 0
    edit.remove_nodes(graph, (link for link in reversed(weight.chain) if not graphs.consumers(link.outputs[0])))
    form = f"blocks of {stored.size}" if stored.size else "a scale per output"
    return Changed(node.name, f"weight {list(stored.values.shape)} stored as {stored.format.upper()}, {form}")
