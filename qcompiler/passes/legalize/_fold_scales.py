"""Scales and zero points that are computed from constants are constants.

    DequantizeLinear(w, Mul(a, b))                  ⇒  DequantizeLinear(w, a·b)
    DequantizeLinear(w: FP4, DequantizeLinear(s))   stays: TensorRT reads NVFP4 in these two levels

Exporters store scales in half behind a Cast, as a product of two, or quantized themselves. For the parser every scale
that is no initializer is one that is computed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from qcompiler.errors import QCompilerError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import FP4, is_dq, pairs, scale_of, stored_type
from qcompiler.passes.base import Changed, Note
from qcompiler.runtime.one_node import run_node
from qcompiler.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray


_DEEPEST = 8  # nodes in a row; a chain that is longer is not what an exporter writes for a scale


def folded_scales(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """What the scale or the zero point of a Q or DQ is computed from becomes its value."""
    names = Names(graph)
    for node in pairs(graph):
        for index in (1, 2):
            if not graphs.is_present(node, index) or (two_levels(node) and index == 1):
                continue
            tensor = node.inputs[index]
            value = None if graphs.constant_value(tensor) is not None else _value(tensor, int(graph.opset), _DEEPEST)
            if value is None:
                continue
            edit.set_input(node, index, gs.Constant(names.fresh(f"{tensor.name}/folded"), value))
            yield Changed(node.name, f"'{tensor.name}' is computed from constants: folded")


def two_levels(node: gs.Node) -> bool:
    """Whether a DQ of FP4 has scales that are dequantized themselves, which TensorRT takes as they are."""
    if not is_dq(node) or stored_type(node) != FP4:
        return False
    scale = graphs.producer(node.inputs[1])
    return scale is not None and is_dq(scale) and scale_of(scale) is not None


def _value(tensor: gs.Tensor, opset: int, deepest: int) -> NDArray[Any] | None:
    """What a tensor is, computed from constants alone; None where it is not, or where ONNX Runtime cannot."""
    value = graphs.constant_value(tensor)
    node = graphs.producer(tensor)
    if value is not None or node is None or not deepest or graphs.subgraphs(node):
        return value
    reads = [_value(one, opset, deepest - 1) if one.name else None for one in node.inputs]
    if any(one.name and held is None for one, held in zip(node.inputs, reads, strict=True)):
        return None
    inputs = [
        gs.Variable.empty() if held is None else gs.Constant(one.name, held)
        for one, held in zip(node.inputs, reads, strict=True)
    ]
    outputs = [gs.Variable(one.name, graphs.dtype_of(one)) for one in node.outputs]
    twin = gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain)
    at = next(i for i, one in enumerate(node.outputs) if one is tensor)
    try:
        return run_node(twin, opset)[at]
    except QCompilerError:
        return None  # the rules behind this say that the scale is not constant
