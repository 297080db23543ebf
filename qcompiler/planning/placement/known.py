"""Ranges that the user knows: which tensors of a graph they are of, and which layers they leave without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import REARRANGES
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement.candidates import Candidates

RULE = "no-range"
_KEEPS = (*REARRANGES, "Dropout", "MaxPool")  # the same largest value behind as in front


def spread(graph: gs.Graph, spans: Mapping[str, Span]) -> dict[str, Span]:
    """The ranges of tensors of a graph, also of those that only rearrange one whose range is known.

    What stands behind a Relu has that of what it reads, from 0 up. Behind a MaxPool it is no smaller than it need be:
    engines give both the same scale.

    Args:
        graph: in topological order.
        spans: by name; names that the graph does not have are left out.
    """
    there = {tensor.name for tensor in graphs.tensors(graph)}
    found = {name: span for name, span in spans.items() if name in there}
    for node in graph.nodes:
        source, target = _ends(node)
        if source in found and target and target not in found:
            found[target] = found[source]
        elif graphs.is_op(node, "Relu"):
            behind = _behind_relu(found.get(node.inputs[0].name), found.get(node.outputs[0].name))
            found |= {} if behind is None else {node.outputs[0].name: behind}
    for node in reversed(graph.nodes):
        source, target = _ends(node) if not graphs.is_op(node, "MaxPool") else ("", "")
        if target in found and source and source not in found:
            found[source] = found[target]
    return found


def _behind_relu(before: Span | None, behind: Span | None) -> Span | None:
    """What is known of a tensor that is never below 0."""
    if behind is not None:
        return Span(max(behind.low, 0.0), behind.high)
    return Span(max(before.low, 0.0), before.high) if before is not None and before.exact and before.high > 0 else None


def _ends(node: gs.Node) -> tuple[str, str]:
    """What a node reads and writes, where the largest value of both is the same; empty where it is not."""
    if not graphs.is_op(node, *_KEEPS) or graphs.is_constant(node.inputs[0]):
        return "", ""
    return node.inputs[0].name, node.outputs[0].name


def told(layers: Candidates, graph: gs.Graph, spans: Mapping[str, Span]) -> Candidates:
    """The candidates with what is known of their activations; a pair that one came with keeps its own scale."""
    if not spans:
        return layers
    here = spread(graph, spans)
    found = (
        replace(one, known=here[one.activation].amax) if one.amax is None and one.activation in here else one
        for one in layers.found
    )
    return Candidates(tuple(found), layers.refused)


def refusal(one: Candidate, tensor: str) -> Refusal:
    """The refusal of a layer that needs a range of a tensor, where nothing gives one."""
    return Refusal(one.node, one.op, RULE, f"no range is given for '{tensor}', and there is no data to measure it")


def grid(span: Span) -> tuple[float, float] | None:
    """Ends of an unsigned grid for a tensor that is never below 0; None where both signs occur or nobody knows."""
    return (0.0, span.high) if span.exact and span.low >= 0 and math.isfinite(span.high) else None
