"""Multiply-accumulates of linear nodes, from the shapes that one real sample gives every tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_graphsurgeon as gs

from qcompiler.ir.operators import LINEAR

Shapes = Mapping[str, tuple[int, ...]]


def macs_of(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one run of a Conv, ConvTranspose, Gemm or MatMul; 0 where a shape is not known."""
    if node.op not in LINEAR or len(node.inputs) < 2:
        return 0
    first, second, out = (_shape(tensor, shapes) for tensor in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if first is None or second is None or out is None:
        return 0
    if node.op == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    depth = first[0] if node.op == "Gemm" and node.attrs.get("transA", 0) else first[-1] if first else 1
    return math.prod(out) * depth


def _shape(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...] | None:
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    return shapes.get(tensor.name)


def node_macs(graph: gs.Graph, shapes: Shapes) -> dict[str, int]:
    """Multiply-accumulates of every linear node of the main graph, by node name."""
    return {node.name: macs_of(node, shapes) for node in graph.nodes if node.op in LINEAR}


def tensors_for_shapes(graph: gs.Graph) -> list[str]:
    """Names of the tensors whose shapes `node_macs` and `too_small` need."""
    names = [
        tensor.name
        for node in graph.nodes
        if node.op in LINEAR
        for tensor in (*node.inputs[:2], *node.outputs)
        if not isinstance(tensor, gs.Constant)
    ]
    return list(dict.fromkeys(names))
