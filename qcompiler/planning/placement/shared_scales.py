"""Which tensors share one scale: Concat, and what only moves values."""

from __future__ import annotations

from collections.abc import Collection

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import COMMUTING


def scale_groups(graph: gs.Graph, quantized: Collection[str]) -> list[list[str]]:
    """Groups of two or more quantized tensors that operators which commute with Q/DQ join, each in graph order.

    Tensors between them need no pair of their own: a pair moves through what it commutes with. Constants join nothing.
    """
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for node in graph.nodes:
        joined = [id(tensor) for tensor in _joined(node)]
        for other in joined[1:]:
            parents[root(joined[0])] = root(other)
    groups: dict[int, list[str]] = {}
    for tensor in graphs.tensors(graph):
        if tensor.name in quantized and id(tensor) in parents:
            groups.setdefault(root(id(tensor)), []).append(tensor.name)
    return [names for names in groups.values() if len(names) > 1]


def _joined(node: gs.Node) -> list[gs.Tensor]:
    """What a node passes on unchanged, and what it makes of it."""
    if not graphs.is_op(node, *COMMUTING):
        return []
    reads = node.inputs if node.op == "Concat" else node.inputs[:1]
    writes = node.outputs if node.op == "Split" else node.outputs[:1]
    return [tensor for tensor in (*reads, *writes) if tensor.name and not graphs.is_constant(tensor)]
