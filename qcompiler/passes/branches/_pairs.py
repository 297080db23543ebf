"""Which nodes of two branches are one and the same, seen from their results backwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs

Key = tuple[int, int]  # ids of a tensor of either branch


class Becomes(Enum):
    """What becomes of a pair of tensors."""

    SAME = "same"  # one tensor, or constants of one content
    MERGED = "merged"  # what one node writes that stands for two
    CHOSEN = "chosen"  # two, of which an If gives one
    APART = "apart"  # two that no If should give: indices, shapes, constants


@dataclass
class Pairs:
    """The pairs that two results consist of.

    Attributes:
        then: what the then branch makes, by id of the tensor: the node and the number of its output.
        other: likewise of the else branch.
        ways: by pair; a pair that is not there was not asked for.
        tensors: by pair.
    """

    then: dict[int, tuple[gs.Node, int]]
    other: dict[int, tuple[gs.Node, int]]
    ways: dict[Key, Becomes] = field(default_factory=dict)
    tensors: dict[Key, tuple[gs.Tensor, gs.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, then: gs.Graph, other: gs.Graph) -> Pairs:
        """Of two branches, none of whose results have been looked at."""
        first, second = (
            {id(t): (n, i) for n in one.nodes for i, t in enumerate(n.outputs) if t.name} for one in (then, other)
        )
        return cls(first, second)

    def look(self, a: gs.Tensor, b: gs.Tensor) -> Becomes:
        """Finds out about two tensors and all that they are computed from; without recursion, for models are deep."""
        waiting = [(a, b)]
        while waiting:
            one = waiting[-1]
            key = (id(one[0]), id(one[1]))
            below = (
                [] if key in self.ways else [p for p in self.reads(*one) or () if (id(p[0]), id(p[1])) not in self.ways]
            )
            if below:
                waiting += below
                continue
            waiting.pop()
            if key not in self.ways:
                self.tensors[key], self.ways[key] = one, self._way(*one)
        return self.ways[id(a), id(b)]

    def reads(self, a: gs.Tensor, b: gs.Tensor) -> list[tuple[gs.Tensor, gs.Tensor]] | None:
        """The pairs that two nodes alike read; None where the tensors do not come from such."""
        if a is b or id(a) not in self.then or id(b) not in self.other:
            return None
        (first, i), (second, j) = self.then[id(a)], self.other[id(b)]
        if i != j or not alike(first, second):
            return None
        return [(x, y) for x, y in zip(first.inputs, second.inputs, strict=True) if x.name or y.name]

    def _way(self, a: gs.Tensor, b: gs.Tensor) -> Becomes:
        if a is b or _equal(a, b):
            return Becomes.SAME
        reads = self.reads(a, b)
        if reads is not None and all(self.ways[id(x), id(y)] is not Becomes.APART for x, y in reads):
            return Becomes.MERGED
        return Becomes.CHOSEN if _can_be_chosen(a, b) else Becomes.APART


def alike(a: gs.Node, b: gs.Node) -> bool:
    """Whether two nodes compute the same of what they read."""
    if (a.op, a.domain or "", len(a.inputs), len(a.outputs)) != (b.op, b.domain or "", len(b.inputs), len(b.outputs)):
        return False
    if graphs.subgraphs(a) or graphs.subgraphs(b) or a.attrs.keys() != b.attrs.keys():
        return False
    if any(bool(x.name) != bool(y.name) for x, y in zip(a.inputs, b.inputs, strict=True)):
        return False
    return all(_same(value, b.attrs[name]) for name, value in a.attrs.items())


def _same(a: object, b: object) -> bool:
    if isinstance(a, gs.Tensor) or isinstance(b, gs.Tensor):
        return isinstance(a, gs.Tensor) and isinstance(b, gs.Tensor) and _equal(a, b)
    return type(a) is type(b) and bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _equal(a: gs.Tensor, b: gs.Tensor) -> bool:
    if not isinstance(a, gs.Constant) or not isinstance(b, gs.Constant):
        return False
    first, second = graphs.values_of(a), graphs.values_of(b)
    return first.dtype == second.dtype and first.shape == second.shape and bool(np.array_equal(first, second))


def _can_be_chosen(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Floats that are computed, of one type and as many axes."""
    if isinstance(a, gs.Constant) or isinstance(b, gs.Constant) or not graphs.is_float(a):
        return False
    first, second = graphs.shape_of(a), graphs.shape_of(b)
    ranks = first is not None and second is not None and len(first) == len(second)
    return graphs.dtype_of(a) == graphs.dtype_of(b) and ranks
