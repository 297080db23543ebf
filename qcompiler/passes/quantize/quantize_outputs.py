"""Conv ⇒ Q, DQ behind it too, and its bias in INT32: ONNX Runtime runs a node in INT8 only between quantized ends.

    DQ → Conv → Relu → {Q → DQ → Conv, Add}   ⇒   DQ → Conv → Q → DQ → {Conv, Add}

Where a tensor is quantized as a whole, every reader gets the quantized value. An Add whose inputs are both dequantized
then runs in INT8 as well if its own output is quantized as a whole. MatMul and Gemm need nothing behind them: their
fused kernels write floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.quantize.insert_qdq import pair
from qcompiler.plan import Plan
from qcompiler.target import DType

LARGEST_BIAS = 2.0**30  # an INT32 accumulator holds the products as well


@dataclass(frozen=True)
class QuantizeOutputs(Pass):
    """Quantize what the plan wants quantized as a whole, and the biases of nodes between Q/DQ pairs."""

    plan: Plan = field(default_factory=Plan, repr=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.QDQ})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor whose readers changed and per bias."""
        names = Names(graph)
        for tensor in list(graph.tensors().values()):
            quantizer = self.plan.quantizers.get(tensor.name)
            if quantizer is None or not quantizer.whole:
                continue
            readers = [
                (node, index)
                for node, index in graphs.consumers(tensor)
                if not graphs.is_op(node, "QuantizeLinear") and not graphs.subgraphs(node)
            ]
            if not readers:
                continue
            back = _dequantized(tensor) or pair(graph, names, tensor, quantizer)
            for node, index in readers:
                edit.set_input(node, index, back)
            yield Changed(tensor.name, f"quantized for all of its {len(readers)} further reader(s)")
        for node in graph.nodes:
            if self.plan.precision(node.name) is DType.INT8 and node.op in ("Conv", "Gemm"):
                yield from _quantize_bias(graph, names, node)
        edit.sort(graph)


def _dequantized(tensor: gs.Tensor) -> gs.Tensor | None:
    """What the pair behind a tensor gives back, if it has one."""
    for node, _ in graphs.consumers(tensor):
        if graphs.is_op(node, "QuantizeLinear"):
            for reader, _ in graphs.consumers(node.outputs[0]):
                if graphs.is_op(reader, "DequantizeLinear"):
                    return reader.outputs[0]
    return None


def _quantize_bias(graph: gs.Graph, names: Names, node: gs.Node) -> Iterator[Note]:
    """bias ⇒ DQ(INT32 bias, scale of x · scale of w), the unit of the accumulator."""
    bias = graphs.constant_value(node.inputs[2]) if graphs.is_present(node, 2) else None
    x, w = (graphs.producer(tensor) for tensor in node.inputs[:2])
    if bias is None or x is None or w is None or x.op != "DequantizeLinear" or w.op != "DequantizeLinear":
        return
    if bias.ndim != 1 or float(node.attrs.get("beta", 1.0)) != 1.0:
        yield Skipped(node.name, "its bias is not a vector that is added as it is")
        return
    scale = (x.inputs[1].values.astype(np.float32) * w.inputs[1].values.astype(np.float32)).astype(np.float32)
    if scale.size not in (1, bias.size):
        return
    scale = np.maximum(scale, np.finfo(np.float32).tiny)  # of a vanishing weight and a vanishing activation
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if np.abs(steps).max(initial=0.0) > LARGEST_BIAS:
        yield Skipped(node.name, "its bias is too large for the unit of its accumulator")
        return
    stored = edit.add_constant(names.fresh(f"{node.name}/bias/int32"), steps.astype(np.int32))
    unit = edit.add_constant(names.fresh(f"{node.name}/bias/scale"), scale)
    zero = edit.add_constant(names.fresh(f"{node.name}/bias/zero_point"), np.zeros(scale.shape, np.int32))
    back = gs.Variable(names.fresh(f"{node.name}/bias/dequantized"), np.float32, bias.shape)
    attrs = {"axis": 0} if scale.ndim else {}
    name = names.fresh(f"{node.name}/bias/DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", name, attrs, [stored, unit, zero], [back]))
    edit.set_input(node, 2, back)
    yield Changed(node.name, "bias in INT32")
