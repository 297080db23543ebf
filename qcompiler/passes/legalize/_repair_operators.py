"""Quantized weights in the form that TensorRT takes, with the same numbers.

* DQ(i32 bias) ⇒ float constant
* DQ(constant) of operators without a quantized kernel ⇒ float constant
* quantized weights of LSTM, GRU, and of ConvTranspose without a kernel ⇒ float constants
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import RECURRENT
from qcompiler.ir.qdq import block_size, dequantized, is_dq, is_q, pairs, readers, scale_of, stored_type
from qcompiler.passes.base import Changed, Note
from qcompiler.target import Target

_FP32 = np.dtype(np.float32)


def float_biases(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """An INT32 constant behind DQ, which the parser refuses, becomes the float constant that it stands for."""
    yield from _unquantize(graph, lambda node: stored_type(node) == np.int32, "INT32 bias became its float values")


def float_without_kernel(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Weights of recurrent layers, and of ConvTranspose where the target has no kernel, become their float values."""
    ops = (*RECURRENT, *(() if target.conv_transpose else ("ConvTranspose",)))

    def applies(node: gs.Node) -> bool:
        return any(graphs.is_op(reader, *ops) for reader, _, _ in readers(node.outputs[0]))

    yield from _unquantize(graph, applies, f"weight became its float values: {target.engine} has no kernel for it")


def float_operands(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Quantized constants that nothing multiplies by a matrix or looks up in, such as the shift of an Add."""

    def applies(node: gs.Node) -> bool:
        ends = [(reader, index) for reader, index, _ in readers(node.outputs[0])]
        return bool(ends) and not any(_pays(reader, index) for reader, index in ends)

    yield from _unquantize(graph, applies, "quantized operand became its float values")


def _pays(reader: gs.Node, index: int) -> bool:
    return is_q(reader) or is_dq(reader) or graphs.is_op(reader, "Gather") or (graphs.is_linear(reader) and index < 2)


def _unquantize(graph: gs.Graph, applies: Callable[[gs.Node], bool], what: str) -> Iterator[Note]:
    names = Names(graph)
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
            edit.set_input(reader, index, copy)
        edit.remove_node(graph, node)
        yield Changed(node.name, what)
