"""What the values of a tensor depend on: which inputs, or nothing of the data at all. Pure functions of a graph."""

from __future__ import annotations

from collections.abc import Collection

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
OF_SHAPES = ("Shape", "Size", "ConstantOfShape", "EyeLike")  # whatever the values that they read


def unvarying(graph: gs.Graph, fixed: Collection[str]) -> dict[str, frozenset[str]]:
    """Tensors that are computed from tensors that do not change, by name, with the names of these.

    The set is empty where values depend on nothing that is fed: constants, shapes, and what is made of them.

    Args:
        graph: in topological order.
        fixed: names of inputs and of other tensors whose content was the same in all samples.
    """
    found = {tensor.name: frozenset([tensor.name]) for tensor in graph.inputs if tensor.name in fixed}
    found |= dict.fromkeys(_constants(graph), frozenset[str]())
    for node in graph.nodes:
        sources = _sources(node, found)
        for tensor in node.outputs:
            if sources is not None:
                found[tensor.name] = sources
            elif tensor.name in fixed:
                found[tensor.name] = frozenset([tensor.name])
    return found


def _constants(graph: gs.Graph) -> set[str]:
    """Names of the constants of a graph and of all that it nests."""
    return {t.name for one in graphs.graphs(graph) for t in graphs.tensors(one) if graphs.is_constant(t)}


def _sources(node: gs.Node, known: dict[str, frozenset[str]]) -> frozenset[str] | None:
    """What a node's results are computed from; None where that changes."""
    if graphs.is_op(node, *OF_SHAPES):
        return frozenset()
    inner = [one for graph in graphs.subgraphs(node) for one in graphs.walk(graph)]
    if any(graphs.is_op(one, *RANDOM) for one in (node, *inner)):
        return None
    reads = [tensor.name for tensor in node.inputs if tensor.name]
    reads += [name for graph in graphs.subgraphs(node) for name in graphs.free(graph)]
    if any(name not in known for name in reads):
        return None
    return frozenset().union(*(known[name] for name in reads))
