"""Quantized operators and weights in the form that TensorRT takes, with the same numbers.

* QLinearConv, QLinearMatMul ⇒ Q/DQ around Conv, MatMul
* DQ(i32 bias) ⇒ float constant
* quantized weights of LSTM, GRU, and of ConvTranspose without a kernel ⇒ float constants
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import graph as graphs
from qcompiler.pass_ import Changed, Note
from qcompiler.quantized import block_size, dequantized, is_dq, pairs, readers, scale_of, stored_type
from qcompiler.target import Target

_FP32 = np.dtype(np.float32)
_RECURRENT = ("LSTM", "GRU", "RNN")


def quantized_operators(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """QLinearConv and QLinearMatMul with constant scales are written out as Q/DQ around the float operator."""
    names = graphs.Names(graph)
    for node in list(graph.nodes):
        if not graphs.is_op(node, "QLinearConv", "QLinearMatMul"):
            continue
        if any(graphs.constant_value(node.inputs[i]) is None for i in (1, 4, 6)):
            continue
        op = node.op.removeprefix("QLinear")
        data = [_dequantize(graph, names, node, start, op) for start in (0, 3)]
        if op == "Conv" and graphs.is_present(node, 8):
            data.append(_float_bias(names, node))
        real = gs.Variable(names.fresh(f"{node.outputs[0].name}/float"), _FP32, node.outputs[0].shape)
        quantize = gs.Node("QuantizeLinear", names.fresh(f"{node.name}/QuantizeLinear"), {}, [real, *node.inputs[6:8]])
        out, attrs, name = node.outputs[0], dict(node.attrs), node.name
        at = graphs.index_of(graph, node)
        graphs.remove_node(graph, node)
        list.append(quantize.outputs, out)
        list.append(out.inputs, quantize)
        graph.nodes.insert(at, gs.Node(op, name, attrs, data, [real]))
        graph.nodes.insert(at + 1, quantize)
        yield Changed(name, f"QLinear{op} written as {op} between Q/DQ pairs")


def _dequantize(graph: gs.Graph, names: graphs.Names, node: gs.Node, start: int, op: str) -> gs.Variable:
    tensor, scale, zero = node.inputs[start : start + 3]
    values = graphs.constant_value(scale)
    out = gs.Variable(names.fresh(f"{tensor.name}/dequantized"), _FP32, tensor.shape)
    attrs = (
        {} if values is None or values.size == 1 else {"axis": 0 if op == "Conv" else len(tensor.shape or (1, 1)) - 1}
    )
    made = gs.Node(
        "DequantizeLinear", names.fresh(f"{tensor.name}/DequantizeLinear"), attrs, [tensor, scale, zero], [out]
    )
    graph.nodes.append(made)
    return out


def _float_bias(names: graphs.Names, node: gs.Node) -> gs.Tensor:
    """The INT32 bias counts in steps of activation scale times weight scale."""
    bias, x, w = (graphs.constant_value(node.inputs[i]) for i in (8, 1, 4))
    if bias is None or x is None or w is None:
        return node.inputs[8]
    values = bias.astype(np.float64) * x.astype(np.float64).reshape(-1) * w.astype(np.float64).reshape(-1)
    return gs.Constant(names.fresh(f"{node.inputs[8].name}/float"), values.astype(np.float32))


def float_biases(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """An INT32 constant behind DQ, which the parser refuses, becomes the float constant that it stands for."""
    yield from _unquantize(graph, lambda node: stored_type(node) == np.int32, "INT32 bias became its float values")


def float_without_kernel(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Weights of recurrent layers, and of ConvTranspose where the target has no kernel, become their float values."""
    ops = (*_RECURRENT, *(() if target.conv_transpose else ("ConvTranspose",)))

    def applies(node: gs.Node) -> bool:
        return any(graphs.is_op(reader, *ops) for reader, _, _ in readers(node.outputs[0]))

    yield from _unquantize(graph, applies, f"weight became its float values: {target.engine} has no kernel for it")


def _unquantize(graph: gs.Graph, applies: Callable[[gs.Node], bool], what: str) -> Iterator[Note]:
    names = graphs.Names(graph)
    for node in pairs(graph):
        constant = graphs.constant_value(node.inputs[0]) is not None and scale_of(node) is not None
        if not is_dq(node) or not constant or block_size(node) or not applies(node):
            continue
        out = node.outputs[0]
        if graphs.is_output(graph, out):
            continue
        values = dequantized(node, graphs.dtype_of(out) or _FP32)
        copy = gs.Constant(names.fresh(f"{node.inputs[0].name}/float"), values)
        for reader, index in graphs.consumers(out):
            graphs.set_input(reader, index, copy)
        graphs.remove_node(graph, node)
        yield Changed(node.name, what)
