"""Regions of a graph that Transposes part: tensors in one common order of axes, and the operators between them.

    Conv → Transpose → Clip → Transpose → Conv        one region with the order of both Convs and the Clip's own

A Transpose is no operator here: what it writes is another look at the tensor that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import consumers, is_constant, is_op, permutation, producer, shape_of, tensors
from qcompiler.passes.layout._axes import Layout, back, straight, then
from qcompiler.passes.layout._operators import Ordered, parts


@dataclass(frozen=True, eq=False)
class Look:
    """A tensor as Transposes show it.

    Attributes:
        tensor: itself, or what the last of its Transposes writes.
        source: what no Transpose writes.
        order: by which the source is transposed.
        node: the last Transpose; None for the source itself.
    """

    tensor: gs.Tensor
    source: gs.Tensor
    order: Layout
    node: gs.Node | None


@dataclass(eq=False)
class Neighbourhood:
    """What shares a common order of axes.

    Attributes:
        rank: of all its tensors.
        layouts: of every source, by identity: its own order as seen from the common one.
        sources: in the order in which they were found.
        movable: operators that can compute in another order, with their own.
    """

    rank: int
    layouts: dict[int, Layout] = field(default_factory=dict)
    sources: list[gs.Tensor] = field(default_factory=list)
    movable: dict[int, tuple[gs.Node, Layout]] = field(default_factory=dict)


class Looks:
    """All tensors of one graph, seen through their Transposes."""

    def __init__(self, graph: gs.Graph) -> None:
        self.nodes = {id(node) for node in graph.nodes}
        self._looks: dict[int, Look] = {}
        self.of: dict[int, list[Look]] = {}  # of every source that is transposed, in graph order
        for tensor in tensors(graph):
            look = self.at(tensor)
            if look is not None:
                self.of.setdefault(id(look.source), []).append(look)

    def at(self, tensor: gs.Tensor, rank: int | None = None) -> Look | None:
        """What a tensor shows; None for a tensor that no Transpose writes, unless its rank is given."""
        known = self._looks.get(id(tensor))
        if known is not None:
            return known
        node = producer(tensor)
        if node is None or id(node) not in self.nodes or not is_op(node, "Transpose") or is_constant(node.inputs[0]):
            return None if rank is None else Look(tensor, tensor, straight(rank), None)
        shape = shape_of(node.inputs[0])
        if not node.attrs.get("perm") and shape is None:
            return None if rank is None else Look(tensor, tensor, straight(rank), None)
        order = permutation(node, len(shape or ()))
        before = self.at(node.inputs[0], len(order))
        assert before is not None
        self._looks[id(tensor)] = Look(tensor, before.source, then(before.order, order), node)
        return self._looks[id(tensor)]

    def all_of(self, source: gs.Tensor, rank: int) -> list[Look]:
        """The source and every other look at it."""
        return [Look(source, source, straight(rank), None), *self.of.get(id(source), [])]

    def readers(self, source: gs.Tensor, rank: int) -> Iterator[tuple[Look, gs.Node, int]]:
        """Every use of a source, through whatever Transposes, as (look, node, index of its input)."""
        for look in self.all_of(source, rank):
            for node, index in consumers(look.tensor):
                if id(node) not in self.nodes or self.at(node.outputs[0] if node.outputs else node.inputs[0]) is None:
                    yield look, node, index


def regions(graph: gs.Graph, looks: Looks) -> list[Neighbourhood]:
    """The regions of a graph that Transposes lie in, each once."""
    stuck: set[int] = set()
    while True:
        found: list[Neighbourhood] = []
        seen: set[int] = set()
        before = len(stuck)
        for node in graph.nodes:
            look = looks.at(node.outputs[0]) if node.outputs else None
            if look is None or look.node is not node or id(look.source) in seen:
                continue
            region = _flood(look.source, len(look.order), looks, stuck)
            seen |= set(region.layouts)
            found.append(region)
        if len(stuck) == before:
            return found


def _flood(start: gs.Tensor, rank: int, looks: Looks, stuck: set[int]) -> Neighbourhood:
    """The region of a tensor; an operator that would have to stand in two orders at once is added to `stuck`."""
    region = Neighbourhood(rank)
    waiting: list[tuple[gs.Tensor, Layout]] = [(start, straight(rank))]
    while waiting:
        source, layout = waiting.pop()
        known = region.layouts.get(id(source))
        if known is not None:
            continue
        region.layouts[id(source)] = layout
        region.sources.append(source)
        touching = [(producer(source), layout)]
        touching += [(node, then(layout, look.order)) for look, node, _ in looks.readers(source, rank)]
        for node, own in touching:
            found = None if node is None or id(node) in stuck or id(node) not in looks.nodes else parts(node, rank)
            if node is None or found is None or not _concerns(node, found, source, looks):
                continue
            if region.movable.setdefault(id(node), (node, own))[1] != own:
                stuck.add(id(node))
                continue
            waiting += _around(node, found, own, looks)
    _hold(region, looks, stuck)
    return region


def _concerns(node: gs.Node, found: Ordered, source: gs.Tensor, looks: Looks) -> bool:
    """Whether a tensor is one of those of a node that share its order of axes."""
    if any(node.outputs[i] is source for i in found.outputs):
        return True
    seen = [looks.at(node.inputs[i], 0) for i in found.inputs]
    return any(look is not None and look.source is source for look in seen)


def _around(node: gs.Node, found: Ordered, own: Layout, looks: Looks) -> Iterator[tuple[gs.Tensor, Layout]]:
    for index in found.inputs:
        look = looks.at(node.inputs[index], len(own))
        if look is not None:
            yield look.source, then(own, back(look.order))
    for index in found.outputs:
        if node.outputs[index].name:
            yield node.outputs[index], own


def _hold(region: Neighbourhood, looks: Looks, stuck: set[int]) -> None:
    """Takes note of operators whose tensors do not agree on one order."""
    for node, own in region.movable.values():
        found = parts(node, region.rank)
        around = [] if found is None else list(_around(node, found, own, looks))
        if any(region.layouts.get(id(tensor)) != layout for tensor, layout in around):
            stuck.add(id(node))
