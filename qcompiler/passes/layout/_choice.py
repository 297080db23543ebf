"""In which layout each operator computes, so that the fewest Transposes are left.

A tensor costs one Transpose for each layout that it is read in and not written in. With two layouts that is a minimal
cut, which is found exactly; with more, pairs of them are tried in turn until none is better.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from qcompiler.passes.layout._axes import Layout

Place = int | Layout  # the number of an operator that may choose, or a layout that is given
_NEVER = 1 << 60
_END = -1


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor: what a Transpose of it costs, where it is written and where it is read."""

    weight: int
    written: Place
    read: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Operators that may choose, by number.

    Attributes:
        costs: of each operator, what each layout that it can take costs it.
        tensors: that they write and read.
    """

    costs: Sequence[Mapping[Layout, int]]
    tensors: Sequence[Moved]

    def total(self, chosen: Sequence[Layout]) -> int:
        """What is paid where operator i computes in `chosen[i]`."""
        paid = sum(costs.get(layout, _NEVER) for costs, layout in zip(self.costs, chosen, strict=True))
        for tensor in self.tensors:
            wanted = {_at(place, chosen) for place in tensor.read} - {_at(tensor.written, chosen)}
            paid += tensor.weight * len(wanted)
        return paid


def choose(problem: Problem, start: Sequence[Layout]) -> list[Layout]:
    """The layouts of all operators: those of `start` unless others cost less."""
    best, least = list(start), problem.total(start)
    given = {place for one in problem.tensors for place in (one.written, *one.read) if not isinstance(place, int)}
    pairs = list(combinations(sorted({layout for costs in problem.costs for layout in costs} | given), 2))
    better = True
    while better:
        better = False
        for pair in pairs:
            tried = _cut(problem, best, *pair)
            paid = problem.total(tried)
            if paid < least:
                best, least, better = tried, paid, True
    return best


def _at(place: Place, chosen: Sequence[Layout]) -> Layout:
    return chosen[place] if isinstance(place, int) else place


def _cut(problem: Problem, chosen: Sequence[Layout], one: Layout, other: Layout) -> list[Layout]:
    """The best choice where operators that compute in one of two layouts now may take the other."""
    free = {i for i, layout in enumerate(chosen) if layout in (one, other)}
    net = _Net()

    def spot(place: Place) -> int | None:
        """The number of an operator that may change, 0 for the first layout, the end for the second, else None."""
        if isinstance(place, int) and place in free:
            return place + 1
        return {one: 0, other: _END}.get(_at(place, chosen))

    for i in free:
        net.join(0, i + 1, problem.costs[i].get(other, _NEVER))
        net.join(i + 1, _END, problem.costs[i].get(one, _NEVER))
    inner = len(chosen)
    for tensor in problem.tensors:
        written, readers = spot(tensor.written), [spot(place) for place in tensor.read]
        inner += 2
        for reader in readers:
            if reader is not None:
                net.join(reader, inner, _NEVER)
                net.join(inner + 1, reader, _NEVER)
        # Another copy in the first layout where any reads it and it is not written so, and likewise in the second.
        net.join(inner, _END if written is None else written, tensor.weight)
        net.join(0 if written is None else written, inner + 1, tensor.weight)
    first = net.near_the_start()
    return [(one if i + 1 in first else other) if i in free else layout for i, layout in enumerate(chosen)]


class _Net:
    """Pipes between numbered places, from 0 to the end."""

    def __init__(self) -> None:
        self._left: dict[int, dict[int, int]] = {0: {}, _END: {}}

    def join(self, start: int, end: int, capacity: int) -> None:
        """Another pipe, which water leaves at `end`."""
        if start == end or not capacity:
            return
        pipes = self._left.setdefault(start, {})
        pipes[end] = pipes.get(end, 0) + capacity
        self._left.setdefault(end, {}).setdefault(start, 0)

    def near_the_start(self) -> set[int]:
        """What is on the side of the start where the pipes that let the least through are cut."""
        while True:
            came = self._reach()
            if _END not in came:
                return set(came)
            path, place = [], _END
            while place:
                path.append((came[place], place))
                place = came[place]
            most = min(self._left[start][end] for start, end in path)
            for start, end in path:
                self._left[start][end] -= most
                self._left[end][start] += most

    def _reach(self) -> dict[int, int]:
        """Every place that water gets to, with where it came from."""
        came, waiting = {0: 0}, deque([0])
        while waiting:
            start = waiting.popleft()
            for end, capacity in self._left[start].items():
                if capacity and end not in came:
                    came[end] = start
                    waiting.append(end)
                    if end == _END:
                        return came
        return came
