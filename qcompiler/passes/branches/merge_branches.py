"""What both branches of an If compute is computed around it, once, and the If is left with what differs.

If(c){y = f(Concat(past, g(x)))} else {y = f(g(x))}  ⇒  k = g(x);  y = f(If(c){Concat(past, k)} else {k})

Exporters merge a decoder without and with a cache in this way: two copies of the whole network in one If, whose weights
stand outside. Then every layer stands in the graph itself, is quantized there, and is stored once; both ways work.
Nothing is computed that was not computed before, for the node that stands for two ran in either branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import MULTIPLYING
from qcompiler.passes.base import Changed, Fact, Note, Pass
from qcompiler.passes.branches._pairs import Becomes, Key, Pairs, alike
from qcompiler.runtime import shapes


@dataclass(frozen=True)
class MergeBranches(Pass):
    """Compute around an If what both of its branches compute, where layers are among that."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per If that layers came out of."""
        ifs = [node for node in graph.nodes if graphs.is_op(node, "If")]
        if not any(
            graphs.is_linear(node) for owner in ifs for inner in graphs.subgraphs(owner) for node in inner.nodes
        ):
            return
        shapes.infer(graph)
        names = Names(graph)
        changed = False
        for owner in ifs:
            merger = _Merger(graph, owner, names)
            if merger.layers and merger.sound():
                changed = True
                layers = merger.layers
                yield Changed(
                    owner.name, f"{layers} layers that both branches have, around {merger.apply()} smaller Ifs"
                )
        if changed:
            edit.sort(graph)
            shapes.infer(graph)


@dataclass
class _Merger:
    """One If, and what becomes of it."""

    graph: gs.Graph
    owner: gs.Node
    names: Names
    pairs: Pairs = field(init=False)
    wanted: dict[Key, Becomes] = field(init=False, default_factory=dict)
    _others: set[int] = field(init=False, default_factory=set)
    _around: tuple[dict[int, Key], dict[int, Key]] = field(init=False, default_factory=lambda: ({}, {}))

    def __post_init__(self) -> None:
        """Looks at all results, and keeps the pairs that are needed for them."""
        then, other = self._branches()
        self.pairs = Pairs.of(then, other)
        self._others = {id(node) for node in other.nodes}
        ends = list(zip(then.outputs, other.outputs, strict=True))
        ways = [self.pairs.look(a, b) for a, b in ends]
        if Becomes.APART in ways:  # no If may give it by the rules here, and it does already
            return
        self._want(ends)
        for node in then.nodes:
            self._want(self._twins(node))

    def _want(self, ends: list[tuple[gs.Tensor, gs.Tensor]]) -> None:
        """Keeps pairs that have been looked at, and those that they are computed from."""
        waiting = list(ends)
        while waiting:
            a, b = waiting.pop()
            key = (id(a), id(b))
            if key in self.wanted:
                continue
            self.wanted[key] = self.pairs.ways[key]
            read = self.pairs.reads(a, b) or []
            if self.wanted[key] is Becomes.MERGED:
                for side, made in enumerate(self._around):
                    made[key[side]] = key
            else:  # such as a Reshape to two sizes: what it moves may be one thing
                read = [(x, y) for x, y in read if self.pairs.ways[id(x), id(y)] is Becomes.MERGED]
            waiting += read

    def _twins(self, node: gs.Node) -> list[tuple[gs.Tensor, gs.Tensor]]:
        """What a node of the then branch writes, with what one of the else branch makes of the very same tensors.

        Results lead to such pairs only where both branches go on alike: `k` of Concat(past, k) has its twin nowhere.
        """
        around = self._merged(0)
        if any(id(output) in around for output in node.outputs):
            return []
        found: gs.Node | None = None
        for tensor in node.inputs:
            counterpart = self.pairs.tensors[around[id(tensor)]][1] if id(tensor) in around else tensor
            readers = [one for one, _ in graphs.consumers(counterpart) if id(one) in self._others]
            found = next((one for one in readers if self._is_twin(node, one, around)), None)
            if found is not None:
                break
        if found is None:
            return []
        ends = list(zip(node.outputs, found.outputs, strict=True))
        return [(a, b) for a, b in ends if a.name and b.name and self.pairs.look(a, b) is Becomes.MERGED]

    def _is_twin(self, node: gs.Node, other: gs.Node, around: dict[int, Key]) -> bool:
        """Whether two nodes compute the same of what is the same."""
        if not alike(node, other):
            return False
        pairs = [(a, b) for a, b in zip(node.inputs, other.inputs, strict=True) if a.name]
        return all(around.get(id(a)) == (id(a), id(b)) or self.pairs.look(a, b) is Becomes.SAME for a, b in pairs)

    def _branches(self) -> tuple[gs.Graph, gs.Graph]:
        return self.owner.attrs["then_branch"], self.owner.attrs["else_branch"]

    def _of(self, way: Becomes) -> list[Key]:
        return [key for key, found in self.wanted.items() if found is way]

    @property
    def layers(self) -> int:
        """How many layers with weights are merged."""
        nodes = {
            (id(self.pairs.then[a][0]), id(self.pairs.other[b][0])): self.pairs.then[a][0]
            for a, b in self._of(Becomes.MERGED)
        }
        return sum(graphs.is_linear(node) and any(map(graphs.is_constant, node.inputs)) for node in nodes.values())

    def sound(self) -> bool:
        """Whether no product is left in more than one of the smaller Ifs, and none of them waits for itself."""
        for side, made in enumerate((self.pairs.then, self.pairs.other)):
            left: set[int] = set()
            for key in self._of(Becomes.CHOSEN):
                inside = self._needed(self.pairs.tensors[key][side], made, side)
                if any(map(graphs.subgraphs, inside)):
                    return False
                mine = {id(node) for node in inside if node.op in MULTIPLYING}
                if mine & left:
                    return False
                left |= mine
        return not self._circular()

    def _merged(self, side: int) -> dict[int, Key]:
        """The pair that a tensor of a branch is computed by around the If."""
        return self._around[side]

    def _needed(self, tensor: gs.Tensor, made: dict[int, tuple[gs.Node, int]], side: int) -> list[gs.Node]:
        """The nodes of a branch that compute a tensor out of what is around it."""
        around, waiting, found = self._merged(side), [tensor], dict[int, gs.Node]()
        while waiting:
            one = waiting.pop()
            if id(one) not in made or (id(one) in around and one is not tensor):
                continue
            node = made[id(one)][0]
            if id(node) not in found:
                found[id(node)] = node
                waiting += node.inputs
        return list(found.values())

    def _circular(self) -> bool:
        """Whether a pair would have to be there before itself."""
        around = [self._merged(side) for side in (0, 1)]
        needs: dict[Key, set[Key]] = {}
        for key, way in self.wanted.items():
            a, b = self.pairs.tensors[key]
            if way is Becomes.MERGED:
                needs[key] = {(id(x), id(y)) for x, y in self.pairs.reads(a, b) or ()}
            elif way is Becomes.CHOSEN:
                needs[key] = set()
                for side, (end, made) in enumerate(((a, self.pairs.then), (b, self.pairs.other))):
                    inside = self._needed(end, made, side)
                    read = {id(t) for node in inside for t in node.inputs} | {id(end)}
                    needs[key] |= {around[side][one] for one in read if one in around[side]}
        readers: dict[Key, list[Key]] = {}
        for key, needed in needs.items():
            for one in needed:
                readers.setdefault(one, []).append(key)
        missing = {key: len(needed) for key, needed in needs.items()}
        ready = [key for key in self.wanted if not missing.get(key)]
        for key in ready:  # grows meanwhile
            for reader in readers.get(key, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    ready.append(reader)
        return any(missing.values())

    def apply(self) -> int:
        """Rewrites the graph. The number of Ifs that are left."""
        at = edit.index_of(self.graph, self.owner)
        then, other = self._branches()
        around = self._tensors_around()
        condition, outputs = self.owner.inputs[0], list(self.owner.outputs)
        made = [*self._nodes_around(around)]
        made += [self._choice(key, condition, around) for key in self._of(Becomes.CHOSEN)]
        ends = [(id(a), id(b)) for a, b in zip(then.outputs, other.outputs, strict=True)]
        edit.remove_node(self.graph, self.owner)
        edit.insert_at(self.graph, at, made)
        for old, key in zip(outputs, ends, strict=True):
            if old.name:
                copied = gs.Node("Identity", self.names.fresh(f"{old.name}/Identity"), {}, [around[key]], [old])
                edit.insert_at(self.graph, at + len(made), [copied])
        return len(self._of(Becomes.CHOSEN))

    def _tensors_around(self) -> dict[Key, gs.Tensor]:
        """What stands around the If for each pair."""
        found: dict[Key, gs.Tensor] = {}
        for key, way in self.wanted.items():
            tensor = self.pairs.tensors[key][0]
            if way is Becomes.SAME:
                found[key] = tensor
            elif way in (Becomes.MERGED, Becomes.CHOSEN):
                what = "merged" if way is Becomes.MERGED else "chosen"
                found[key] = gs.Variable(self.names.fresh(f"{tensor.name}/{what}"), graphs.dtype_of(tensor))
        return found

    def _nodes_around(self, around: dict[Key, gs.Tensor]) -> Iterator[gs.Node]:
        done: set[tuple[int, int]] = set()
        for a, b in self._of(Becomes.MERGED):
            first, second = self.pairs.then[a][0], self.pairs.other[b][0]
            if (id(first), id(second)) in done:
                continue
            done.add((id(first), id(second)))
            reads = [
                around[id(x), id(y)] if x.name else gs.Variable.empty()
                for x, y in zip(first.inputs, second.inputs, strict=True)
            ]
            writes = [
                around.get((id(x), id(y)), gs.Variable.empty())
                for x, y in zip(first.outputs, second.outputs, strict=True)
            ]
            yield gs.Node(
                first.op, self.names.fresh(f"{first.name}/merged"), dict(first.attrs), reads, writes, first.domain
            )

    @cached_property
    def _empty(self) -> list[gs.Graph]:
        """The branches without what is in them."""
        empty = [branch.copy() for branch in self._branches()]
        for one in empty:
            one.nodes[:], one.outputs[:] = [], []
        return empty

    def _choice(self, key: Key, condition: gs.Tensor, around: dict[Key, gs.Tensor]) -> gs.Node:
        """An If that gives one of two tensors."""
        bodies = {}
        for side, (name, made) in enumerate((("then_branch", self.pairs.then), ("else_branch", self.pairs.other))):
            bodies[name] = self._body(self.pairs.tensors[key][side], made, side, around)
        return gs.Node("If", self.names.fresh(f"{around[key].name}/If"), bodies, [condition], [around[key]])

    def _body(
        self, end: gs.Tensor, made: dict[int, tuple[gs.Node, int]], side: int, around: dict[Key, gs.Tensor]
    ) -> gs.Graph:
        body: gs.Graph = self._empty[side].copy()
        inside = self._needed(end, made, side)
        outside = {one: around[key] for one, key in self._merged(side).items() if key in around}
        order = {id(node): place for place, node in enumerate(self._branches()[side].nodes)}
        own: dict[int, gs.Tensor] = {}
        for node in sorted(inside, key=lambda one: order[id(one)]):
            for output in node.outputs:
                own[id(output)] = gs.Variable(self.names.fresh(f"{output.name}/own"), output.dtype, output.shape)
            reads = [own.get(id(t)) or outside.get(id(t)) or t for t in node.inputs]
            name = self.names.fresh(f"{node.name}/own")
            writes = [own[id(t)] if t.name else gs.Variable.empty() for t in node.outputs]
            body.nodes.append(gs.Node(node.op, name, dict(node.attrs), reads, writes, node.domain))
        result = own.get(id(end))
        if result is None:  # it is made around the branch, whose outputs need nodes of their own
            result = gs.Variable(self.names.fresh(f"{end.name}/own"), end.dtype, end.shape)
            name = self.names.fresh(f"{end.name}/Identity")
            body.nodes.append(gs.Node("Identity", name, {}, [outside.get(id(end)) or end], [result]))
        body.outputs.append(result)
        return body
