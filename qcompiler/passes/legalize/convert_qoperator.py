"""QLinearConv(q, w₈) ⇒ Q(Conv(DQ(q), DQ(w₈))): operators on integers become Q/DQ around the float operator.

What ONNX Runtime calls the QOperator format, of ONNX (QLinearConv, QLinearMatMul) and of its own domain (QGemm,
QLinearAdd, ...). The numbers are the same but for rounding: both forms round the exact sum once, and where it lies
within FP32's resolution of the middle between two integers they may take different ones. That step then travels on,
which is what the tolerance is for.

    bias₃₂   counts in steps of input scale times weight scale  ⇒  float constant
    MatMulNBits(x, w₄), GatherBlockQuantized                    ⇒  MatMul(x, DQ(w₄)), or the weight in floats
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
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.legalize._few_bits import STORED, few_bits
from qcompiler.target import Target

FP32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Form:
    """How a quantized operator is written in floats.

    Attributes:
        op: the float operator.
        operands: index of each quantized input; its scale and zero point follow it.
        result: index of the scale of the result; its zero point follows it.
        bias: index of an INT32 bias, if the operator takes one.
        plain: indices of inputs that are no numbers (the condition of Where).
    """

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None
    plain: tuple[int, ...] = ()


FORMS = {
    "QLinearConv": Form("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": Form("MatMul", (0, 3), 6),
    "QGemm": Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": Form("Add", (0, 3), 6),
    "QLinearMul": Form("Mul", (0, 3), 6),
    "QLinearSigmoid": Form("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": Form("LeakyRelu", (0,), 3),
    "QLinearSoftmax": Form("Softmax", (0,), 3),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": Form("AveragePool", (0,), 3),
    "QLinearReduceMean": Form("ReduceMean", (0,), 3),
    "QLinearConcat": Form("Concat", (), 0),  # as many operands as there are
    "QLinearWhere": Form("Where", (1, 4), 7, plain=(0,)),
}
_OWN_ATTRIBUTES = ("channels_last", "opset")


@dataclass(frozen=True)
class ConvertQoperator(Pass):
    """Write operators on integers as Q/DQ pairs around float operators."""

    target: Target = field(default_factory=lambda: Target("tensorrt-rtx"))

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 5e-2  # a tie may round the other way, and each layer adds its own

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per operator, and one for each that has no such form here, with the reason."""
        for one in list(graphs.graphs(graph)):
            yield from quantized_operators(one, self.target)
            edit.sort(one)


def quantized_operators(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """The rewrite of one graph; nodes that are added stand at its end."""
    if not any(node.op in FORMS or node.op in STORED for node in graph.nodes):
        return
    names = Names(graph)
    for node in list(graph.nodes):
        if node.domain not in (None, "", "ai.onnx", MICROSOFT):
            continue
        if node.op in STORED:
            yield few_bits(graph, names, node)
            continue
        form = FORMS.get(node.op)
        if form is None:
            continue
        why = why_not(graph, node, form)
        if why:
            yield Skipped(node.name, why)
            continue
        name, op = node.name, node.op
        _convert(graph, names, node, form)
        yield Changed(name, f"{op} written as {form.op} between Q/DQ pairs")


def why_not(graph: gs.Graph, node: gs.Node, form: Form) -> str:
    """Why a quantized operator cannot be written in floats exactly; empty where it can."""
    scales = [start + 1 for start in _operands(node, form)]
    if any(graphs.constant_value(node.inputs[index]) is None for index in scales):
        return f"{node.op} has a scale that is computed at run time"
    if node.attrs.get("channels_last", 0):
        return f"{node.op} has its channels on the last axis"
    if not graphs.is_present(node, form.result):
        return ""
    if graphs.constant_value(node.inputs[form.result]) is None:
        return f"{node.op} has a scale that is computed at run time"
    if graph.opset < 13 and any(_size(node, index) > 1 for index in scales):
        return f"DequantizeLinear of opset {graph.opset} has no scale per channel"
    return ""


def _operands(node: gs.Node, form: Form) -> tuple[int, ...]:
    return form.operands or tuple(range(2, len(node.inputs), 3))


def _size(node: gs.Node, index: int) -> int:
    values = graphs.constant_value(node.inputs[index])
    return 1 if values is None else values.size


def _convert(graph: gs.Graph, names: Names, node: gs.Node, form: Form) -> None:
    starts = _operands(node, form)
    data: list[gs.Tensor] = [node.inputs[index] for index in form.plain]
    data += [_dequantize(graph, names, node, start, form.op) for start in starts]
    if form.bias is not None and graphs.is_present(node, form.bias):
        data.append(_float_bias(names, node, form.bias))
    attrs = {name: value for name, value in node.attrs.items() if name not in _OWN_ATTRIBUTES}
    old_softmax = form.op == "Softmax" and int(node.attrs.get("opset", 13)) < 13
    if form.op == "ReduceMean" and graph.opset >= 18 and "axes" in attrs:
        data.append(gs.Constant(names.fresh(f"{node.name}/axes"), np.asarray(attrs.pop("axes"), np.int64)))
    out, name, at = node.outputs[0], node.name, edit.index_of(graph, node)
    if not graphs.is_present(node, form.result):  # QGemm without a result scale writes floats
        edit.remove_node(graph, node)
        made = gs.Node(form.op, name, attrs, data, [])
        list.append(made.outputs, out)
        list.append(out.inputs, made)
        edit.insert_at(graph, at, [made])
        return
    scale = node.inputs[form.result]
    zero = node.inputs[form.result + 1] if graphs.is_present(node, form.result + 1) else None
    if zero is None:  # omitted it would mean uint8
        dtype = graphs.dtype_of(node.inputs[starts[0]]) or np.dtype(np.uint8)
        zero = gs.Constant(names.fresh(f"{name}/zero_point"), np.zeros((), dtype))
    real = gs.Variable(names.fresh(f"{out.name}/float"), graphs.dtype_of(scale) or FP32, out.shape)
    quantize = gs.Node("QuantizeLinear", names.fresh(f"{name}/QuantizeLinear"), {}, [real, scale, zero])
    edit.remove_node(graph, node)
    list.append(quantize.outputs, out)
    list.append(out.inputs, quantize)
    made = gs.Node(form.op, name, attrs, data, [real])
    edit.insert_at(graph, at, [made, quantize])
    if old_softmax:
        _take_axes_as_one(graph, names, made)


def _take_axes_as_one(graph: gs.Graph, names: Names, node: gs.Node) -> None:
    """Softmax before opset 13 normalises over all axes from its own on."""
    x, out, axis = node.inputs[0], node.outputs[0], int(node.attrs.get("axis", -1))
    shape = graphs.shape_of(x)
    if axis == -1 or (shape is not None and axis % len(shape) == len(shape) - 1):
        return
    flat, whole, size = (
        gs.Variable(names.fresh(f"{out.name}/{kind}"), dtype)
        for kind, dtype in (("rows", FP32), ("normalised", FP32), ("shape", np.dtype(np.int64)))
    )
    edit.set_input(node, 0, flat)
    edit.set_output(node, 0, whole)
    node.attrs["axis"] = -1
    name = node.name
    graph.nodes.append(gs.Node("Flatten", names.fresh(f"{name}/Flatten"), {"axis": axis}, [x], [flat]))
    graph.nodes.append(gs.Node("Shape", names.fresh(f"{name}/Shape"), {}, [x], [size]))
    graph.nodes.append(gs.Node("Reshape", names.fresh(f"{name}/Reshape"), {}, [whole, size], [out]))


def _dequantize(graph: gs.Graph, names: Names, node: gs.Node, start: int, op: str) -> gs.Variable:
    tensor, scale = node.inputs[start : start + 2]
    parameters = [scale, *([node.inputs[start + 2]] if graphs.is_present(node, start + 2) else [])]
    out = gs.Variable(names.fresh(f"{tensor.name}/dequantized"), graphs.dtype_of(scale) or FP32, tensor.shape)
    attrs = {}
    if _size(node, start + 1) > 1:
        rank = len(tensor.shape or (1, 1))
        attrs = {"axis": 0 if op == "Conv" or (op == "Gemm" and node.attrs.get("transB", 0)) else rank - 1}
        parameters = [_flat(names, one) for one in parameters]
    name = names.fresh(f"{tensor.name}/DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", name, attrs, [tensor, *parameters], [out]))
    return out


def _flat(names: Names, tensor: gs.Tensor) -> gs.Tensor:
    """QLinearMatMul may have its scales per column as [1, N]."""
    values = graphs.constant_value(tensor)
    if values is None or values.ndim < 2:
        return tensor
    return gs.Constant(names.fresh(f"{tensor.name}/flat"), values.reshape(-1))


def _float_bias(names: Names, node: gs.Node, index: int) -> gs.Tensor:
    bias, x, w = (graphs.constant_value(node.inputs[i]) for i in (index, 1, 4))
    if bias is None or x is None or w is None:
        return node.inputs[index]
    steps = x.astype(np.float64).reshape(-1) * w.astype(np.float64).reshape(-1) * float(node.attrs.get("alpha", 1.0))
    return gs.Constant(names.fresh(f"{node.inputs[index].name}/float"), (bias * steps).astype(np.float32))
