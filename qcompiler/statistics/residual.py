"""Residual connections, and how far the ranges of what they add lie apart.

Where a feed-forward block writes values far larger than those of the stream it is added to, the sum has both to hold,
and one scale per tensor rounds the smaller of the two away (Bondarenko, Nagel, Blankevoort 2021, "Understanding and
Overcoming the Challenges of Efficient Transformer Quantization", section 4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import fill
from qcompiler.statistics.histogram import Histogram, Histograms


@dataclass(frozen=True, slots=True)
class Join:
    """An Add of a stream and of a branch that is computed from it.

    Attributes:
        add: name of the Add.
        kind: what the branch is: "attention", "feed-forward" or "convolution".
        branch: name of the tensor that the branch writes.
        stream: name of the tensor that goes around it.
        total: name of the sum.
    """

    add: str
    kind: str
    branch: str
    stream: str
    total: str


@dataclass(frozen=True, slots=True)
class Residual:
    """The ranges at one Add.

    Attributes:
        add: name of the Add.
        kind: see `Join`.
        ratio: `branch_amax` over `stream_amax`; far from 1 means that one scale cannot hold both. None where the
            stream is zero.
        branch_amax: largest |x| of the branch.
        branch_p99_99: |x| that 99.99 % of its elements do not exceed.
        stream_amax: the same of the stream around it.
        stream_p99_99: likewise.
        sum_amax: the same of the sum.
        sum_p99_99: likewise.
    """

    add: str
    kind: str
    ratio: float | None
    branch_amax: float
    branch_p99_99: float
    stream_amax: float
    stream_p99_99: float
    sum_amax: float
    sum_p99_99: float


def joins(graph: gs.Graph) -> list[Join]:
    """The residual Adds of a graph whose nodes are sorted, in graph order.

    An Add counts where both operands are computed, their shapes do not contradict each other, one is an ancestor of the
    other, and a linear node but no other such Add lies between: what an attention mask is added to depends on the mask
    too, by way of all layers before. A shortcut with a convolution of its own is no stream.
    """
    places = {id(node): place for place, node in enumerate(graph.nodes)}
    linear = [place for place, node in enumerate(graph.nodes) if graphs.is_linear(node)]
    found: list[Join] = []
    adds: set[int] = set()
    for node in graph.nodes:
        if not graphs.is_op(node, "Add") or any(map(graphs.is_constant, node.inputs)) or _contradict(*node.inputs):
            continue
        one, other = node.inputs
        for branch, stream in ((one, other), (other, one)):
            if _apart(stream, branch, places, linear):
                continue
            between = _between(stream, branch, places, adds)
            if any(map(graphs.is_linear, between)):
                adds.add(id(node))
                found.append(Join(node.name, _kind(between), branch.name, stream.name, node.outputs[0].name))
    return found


def tensors_of(found: Iterable[Join]) -> list[str]:
    """Names of the tensors whose histograms tell the ranges at these Adds."""
    return list(dict.fromkeys(name for join in found for name in (join.branch, join.stream, join.total)))


def residuals(found: list[Join], histograms: Mapping[str, Histogram]) -> list[Residual]:
    """The ranges at each Add, in order; those whose tensors were not all observed are left out."""
    return [
        _residual(one, *(histograms[name] for name in (one.branch, one.stream, one.total)))
        for one in found
        if {one.branch, one.stream, one.total} <= histograms.keys()
    ]


def measure(graph: gs.Graph, samples: Iterable[Feeds]) -> list[Residual]:
    """The ranges at the residual Adds of a graph over some samples; empty where it has none.

    Raises:
        DataError: a sample does not fit the graph.
        ModelError: a node fails on it.
    """
    found = joins(graph)
    if not found:
        return []
    seen = Histograms(tensors_of(found))
    fill(graph, [seen], samples)
    return residuals(found, seen.found)


def _residual(join: Join, branch: Histogram, stream: Histogram, total: Histogram) -> Residual:
    ratio = branch.amax / stream.amax if stream.amax else None
    ranges = (figure for one in (branch, stream, total) for figure in (one.amax, one.quantile(99.99)))
    return Residual(join.add, join.kind, ratio, *ranges)


def _apart(stream: gs.Tensor, branch: gs.Tensor, places: Mapping[int, int], linear: Sequence[int]) -> bool:
    """Whether a look at the places is enough to know that no linear node lies between the two, or no way at all.

    Args:
        stream: what goes around.
        branch: what may be computed from it.
        places: of the nodes, by identity.
        linear: places of the linear nodes, in order.
    """
    if len(stream.outputs) < 2:  # only the Add reads it
        return True
    first, last = _place(stream, places), _place(branch, places)
    return bisect_left(linear, last + 1) == bisect_left(linear, first + 1)


def _place(tensor: gs.Tensor, places: Mapping[int, int]) -> int:
    """Place of the node that writes a tensor; -1 where none of the graph does."""
    above = graphs.producer(tensor)
    return -1 if above is None else places.get(id(above), -1)


def _between(stream: gs.Tensor, branch: gs.Tensor, places: Mapping[int, int], adds: Collection[int]) -> list[gs.Node]:
    """Nodes that `branch` is computed by, behind `stream`; none where one of `adds` is among them.

    None as well where it is not computed from `stream`. Nothing that stands before the producer of `stream` can read
    it, and nothing behind one of `adds` is of interest, which bounds the way back.
    """
    first = _place(stream, places)
    nodes: dict[int, gs.Node] = {}
    reached, waiting = False, [branch]
    while waiting:
        tensor = waiting.pop()
        if tensor is stream:
            reached = True
            continue
        node = graphs.producer(tensor)
        if node is None or id(node) in nodes or places.get(id(node), -1) <= first:
            continue
        if id(node) in adds:
            return []
        nodes[id(node)] = node
        waiting.extend(node.inputs)
    return list(nodes.values()) if reached else []


def _contradict(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Whether two tensors are known to have different shapes."""
    left, right = graphs.shape_of(one), graphs.shape_of(other)
    if left is None or right is None:
        return False
    sizes = [(a, b) for a, b in zip(left, right, strict=False) if isinstance(a, int) and isinstance(b, int)]
    return len(left) != len(right) or any(a != b for a, b in sizes)


def _kind(between: list[gs.Node]) -> str:
    if any(graphs.is_op(node, "Softmax", "Attention") for node in between):
        return "attention"
    return "convolution" if any(graphs.is_op(node, "Conv") for node in between) else "feed-forward"
