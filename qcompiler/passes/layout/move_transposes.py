"""Transposes go where they meet their inverse; what they parted stands together.

    Conv → Transpose → Clip → Transpose → Conv  ⇒  Conv → Clip → Conv

Models that came from TensorFlow have them around every convolution. An operator that computes the same in another
order of axes is told so (axes, pads, constants) where fewer Transposes are left. Where as many are left, it stays as it
is, but an activation goes to the convolution that it belongs to: Conv → Transpose → Relu ⇒ Conv → Relu → Transpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import (
    detach,
    insert_after,
    insert_at,
    remove_nodes,
    replace_uses,
    set_input,
    set_output,
    sort,
    why_not_replace,
)
from qcompiler.ir.graph import consumers, graphs, is_constant, is_op, is_output, permutation, producer, shape_of, walk
from qcompiler.ir.names import Names
from qcompiler.ir.operators import LINEAR
from qcompiler.judge.views import tensors_of, views_of
from qcompiler.passes.base import Changed, Fact, Note, Pass
from qcompiler.passes.layout._axes import Layout, between, straight, then
from qcompiler.passes.layout._choice import Moved, Place, Problem, choose
from qcompiler.passes.layout._operators import BROADCASTING, UNARY, fits, parts
from qcompiler.passes.layout._regions import Look, Looks, Neighbourhood, regions
from qcompiler.passes.layout._reorder import Reorder

_OLDEST = 13  # before it, Softmax means another thing and axes are attributes
_SMALL = 16  # so many Transposes of tensors with one long axis, which move nothing, cost as much as another one


@dataclass(frozen=True)
class MoveTransposes(Pass):
    """Move Transposes to where they cancel, out from between a convolution and what belongs to it."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per operator that computes in another order, and per Transpose that is gone or new."""
        if graph.opset < _OLDEST or not any(is_op(node, "Transpose") for node in walk(graph)):
            return
        names, changed = Names(graph), False
        judged = frozenset(tensors_of(views_of(graph)))
        for inner in graphs(graph):
            looks = Looks(inner)
            for region in regions(inner, looks):
                for note in _Choice(inner, names, looks, region, judged).improve():
                    changed = True
                    yield note
        if changed:
            sort(graph)


@dataclass
class _Choice:
    """One region: what its operators may choose, and the graph made so.

    Attributes:
        judged: names of tensors that the result is judged by: they stay as they are, and are read so.
        here: for each source, by identity, the tensors that hold it, by their layout.
    """

    graph: gs.Graph
    names: Names
    looks: Looks
    region: Neighbourhood
    judged: frozenset[str]
    here: dict[int, dict[Layout, gs.Tensor]] = field(default_factory=dict)

    def improve(self) -> Iterator[Note]:
        """Moves what is better moved; nothing where nothing is."""
        nodes = list(self.region.movable.values())
        number = {id(node): i for i, (node, _) in enumerate(nodes)}
        own = [layout for _, layout in nodes]
        few = 4 * len(nodes) + 1  # more than all preferences together
        tensors = [self._tensor(source, number, few) for source in self.region.sources]
        given = {place for one in tensors for place in (one.written, *one.read) if not isinstance(place, int)}
        problem = Problem([self._costs(node, layout, given | set(own)) for node, layout in nodes], tensors)
        chosen = choose(problem, own)
        now = problem.total(own) + self._surplus(number, own, few)
        if problem.total(chosen) >= now:
            return
        yield from self._move({id(node): layout for (node, _), layout in zip(nodes, chosen, strict=True)})

    def _tensor(self, source: gs.Tensor, number: dict[int, int], few: int) -> Moved:
        own, node = self.region.layouts[id(source)], producer(source)
        looks = self.looks.all_of(source, self.region.rank)
        read: list[Place] = [then(own, look.order) for look in looks if self._stays(look.tensor)]
        read += [
            number.get(id(reader), then(own, look.order))
            for look, reader, _ in self.looks.readers(source, self.region.rank)
        ]
        written: Place = own if node is None else number.get(id(node), own) if self._writes(node, source) else own
        return Moved(self._weight(source, few), written, tuple(dict.fromkeys(read)))

    def _writes(self, node: gs.Node, source: gs.Tensor) -> bool:
        found = parts(node, self.region.rank)
        return found is not None and any(node.outputs[i] is source for i in found.outputs)

    def _weight(self, source: gs.Tensor, few: int) -> int:
        shape = shape_of(source)
        short = shape is not None and sum(size != 1 for size in shape) <= 1
        return few if short else few * _SMALL

    def _surplus(self, number: dict[int, int], own: list[Layout], few: int) -> int:
        """What is paid today for Transposes beyond one for each layout that a source is read in."""
        paid = 0
        for source in self.region.sources:
            one = self._tensor(source, number, few)
            wanted = {own[place] if isinstance(place, int) else place for place in one.read}
            needed = len(wanted - {own[one.written] if isinstance(one.written, int) else one.written})
            paid += one.weight * (len(self.looks.of.get(id(source), [])) - needed)
        return paid

    def _costs(self, node: gs.Node, own: Layout, layouts: set[Layout]) -> dict[Layout, int]:
        """Every layout that a node can take with what speaks against it: it stays, or goes to its convolution."""
        wanted = self._of_linear(node)
        moves = not any(tensor.name in self.judged for tensor in node.inputs)
        return {
            layout: (layout != own) + (2 if wanted is not None and layout != wanted else 0)
            for layout in layouts
            if layout == own or (moves and fits(node, between(own, layout)))
        }

    def _stays(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor must be there under its name, in its own order."""
        return is_output(self.graph, tensor) or tensor.name in self.judged

    def _of_linear(self, node: gs.Node) -> Layout | None:
        """The order in which a linear node writes what only activations and constants lie between it and this one."""
        while id(node) in self.region.movable and (node.op in UNARY or node.op in BROADCASTING):
            read = [tensor for tensor in node.inputs if tensor.name and not is_constant(tensor)]
            look = self.looks.at(read[0], self.region.rank) if len(read) == 1 else None
            before = None if look is None else producer(look.source)
            if look is None or before is None:
                return None
            if is_op(before, *LINEAR, "BatchNormalization"):
                return self.region.layouts.get(id(look.source))
            node = before
        return None

    # --- The graph made so ------------------------------------------------------------------------------------------

    def _move(self, chosen: dict[int, Layout]) -> Iterator[Note]:
        uses = {id(source): list(self.looks.readers(source, self.region.rank)) for source in self.region.sources}
        reorder = Reorder(self.graph, self.names)
        for source in self.region.sources:
            self.here[id(source)] = self._written(source, chosen)
        old = [look for source in self.region.sources for look in self.looks.of.get(id(source), []) if look.node]
        before = {id(look.node): _spelled(look.node) for look in old if look.node is not None}
        made: list[gs.Node] = []
        for source in self.region.sources:
            made += self._outputs(source)
            own = self.region.layouts[id(source)]
            for look, reader, index in uses[id(source)]:
                layout = chosen.get(id(reader), then(own, look.order))
                set_input(reader, index, self._in(source, layout, made))
        for node, own in self.region.movable.values():
            if chosen[id(node)] != own:
                order = between(own, chosen[id(node)])
                reorder(node, order)
                yield Changed(node.name, f"{node.op} computes with axes {list(order)} of what it read")
        yield from self._tidy(old, before, made)

    def _written(self, source: gs.Tensor, chosen: dict[int, Layout]) -> dict[Layout, gs.Tensor]:
        """Has the tensor written in the layout of its node, under a new name where that is not its own."""
        own, node = self.region.layouts[id(source)], producer(source)
        layout = own if node is None or not self._writes(node, source) else chosen.get(id(node), own)
        if node is None or layout == own:
            return {own: source}
        stored = self._variable(source, between(own, layout))
        index = next(i for i, tensor in enumerate(node.outputs) if tensor is source)
        set_output(node, index, stored)
        return {layout: stored}

    def _variable(self, like: gs.Tensor, order: Layout) -> gs.Variable:
        shape = shape_of(like)
        name = self.names.fresh(f"{like.name}/{''.join(map(str, order)) if len(order) < 11 else 'moved'}")
        return gs.Variable(name, like.dtype, None if shape is None else [shape[axis] for axis in order])

    def _outputs(self, source: gs.Tensor) -> list[gs.Node]:
        """Transposes for looks that stay; an Identity where nothing is left to transpose."""
        own, made = self.region.layouts[id(source)], []
        for look in self.looks.all_of(source, self.region.rank):
            (layout, stored), *_ = self.here[id(source)].items()
            if not self._stays(look.tensor) or look.tensor is stored:
                continue
            wanted = then(own, look.order)
            node = look.node
            if node is None:
                node = gs.Node(
                    "Transpose", self.names.fresh(f"{look.tensor.name}/Transpose"), {}, [stored], [look.tensor]
                )
                self._place(stored, node)
                made.append(node)
            _point(node, stored, between(layout, wanted))
            self.here[id(source)].setdefault(wanted, look.tensor)
        return made

    def _in(self, source: gs.Tensor, layout: Layout, made: list[gs.Node]) -> gs.Tensor:
        """The tensor in this layout; by a Transpose that is there already, else by a new one."""
        here = self.here[id(source)]
        if layout in here:
            return here[layout]
        (stored_in, stored), *_ = here.items()
        order = between(stored_in, layout)
        own = self.region.layouts[id(source)]
        for look in self.looks.of.get(id(source), []):
            if look.node is not None and then(own, look.order) == layout:
                _point(look.node, stored, order)
                here[layout] = look.tensor
                return look.tensor
        free = layout == own and not source.inputs
        tensor = source if free else self._variable(stored, order)
        node = gs.Node(
            "Transpose", self.names.fresh(f"{tensor.name}/Transpose"), {"perm": list(order)}, [stored], [tensor]
        )
        self._place(stored, node)
        made.append(node)
        here[layout] = tensor
        return tensor

    def _place(self, stored: gs.Tensor, node: gs.Node) -> None:
        before = producer(stored)
        if before is not None and id(before) in self.looks.nodes:
            insert_after(self.graph, before, node)
        else:
            insert_at(self.graph, 0, [node])

    def _tidy(self, old: list[Look], before: dict[int, str], made: list[gs.Node]) -> Iterator[Note]:
        """Takes out Transposes that nobody reads, and those that are none any more."""
        gone: list[gs.Node] = []
        for look in reversed(old):
            node, tensor = look.node, look.tensor
            if node is None:
                continue
            straightened = permutation(node, self.region.rank) == straight(self.region.rank)
            if not consumers(tensor) and not self._stays(tensor):
                yield Changed(node.name, "Transpose removed: it meets its inverse, or nobody reads it any more")
            elif straightened and why_not_replace(self.graph, tensor, node.inputs[0]):
                node.op, node.attrs = "Identity", {}
                yield Changed(node.name, "Transpose removed: it meets its inverse")
                continue
            elif straightened:
                replace_uses(self.graph, tensor, node.inputs[0])
                yield Changed(node.name, "Transpose removed: it meets its inverse")
            else:
                if _spelled(node) != before[id(node)]:
                    yield Changed(node.name, _spelled(node))
                continue
            detach(node)  # at once, so that one in front of it is seen to be read no more
            gone.append(node)
        remove_nodes(self.graph, gone)
        for node in made:
            yield Changed(node.name, _spelled(node))


def _point(node: gs.Node, stored: gs.Tensor, order: Layout) -> None:
    node.attrs["perm"] = list(order)
    set_input(node, 0, stored)


def _spelled(node: gs.Node) -> str:
    return f"Transpose of '{node.inputs[0].name}' by {node.attrs.get('perm')}"
