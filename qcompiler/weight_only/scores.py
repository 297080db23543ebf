"""Layers that compute the queries and keys of an attention.

What they err meets in a product and an exponential, so the error of their own outputs says less of what it costs than
it does of other layers. The authors of AWQ clip no weight of theirs.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.planning.placement.attention import find_attentions

_CONTRIBUTED = (
    "GroupQueryAttention",
    "MultiHeadAttention",
)  # ONNX Runtime's; the first two inputs are queries and keys


def scoring(graph: gs.Graph, layers: Collection[str]) -> frozenset[str]:
    """Names of those layers that give queries or keys, also together with values.

    Args:
        graph: normalised float graph.
        layers: names of linear nodes.
    """
    tensors = graph.tensors()
    waiting = [tensors[name] for one in find_attentions(graph) for name in one.reads[:2]]
    waiting += [tensor for node in graph.nodes if _attends(node) for tensor in node.inputs[:2]]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        tensor = waiting.pop()
        node = graphs.producer(tensor)
        if node is None or tensor.name in seen:
            continue
        seen.add(tensor.name)
        if node.name in layers:
            found.add(node.name)
        elif not graphs.is_linear(node):
            waiting += [one for one in node.inputs if one.name and not graphs.is_constant(one)]
    return frozenset(found)


def _attends(node: gs.Node) -> bool:
    return graphs.is_op(node, "Attention") or node.op in _CONTRIBUTED
