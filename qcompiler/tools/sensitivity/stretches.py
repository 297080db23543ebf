"""Where a model is cut, so that a trial of a layer runs only what is behind it.

    nodes      0 ......... p1 ......... p2 ......... end
    trial of a layer in front of p1:    runs all
                    between p1 and p2:  is fed with what crosses p1, and runs from there
                    behind p2:          is fed with what crosses p2, and runs from there

Each stretch has a session of its own from its first node to the end, so a cut saves a part of every trial behind it and
costs the time to open one more session. It is made where it saves more, and where the layers of a stretch would hold
too much memory; of the places between two groups of layers, where the fewest tensors cross.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from qcompiler.runtime import segments

OPENING: Final = 12  # runs of a session that take as long as opening it
BUDGET: Final = 128 << 20  # bytes that the groups of a stretch hold: activations of a sample, and rounded weights


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a group of layers lies.

    Attributes:
        first: the first node of the group.
        ready: the node behind the last one that makes what the group reads.
        size: bytes that it holds while it is measured.
    """

    first: int
    ready: int
    size: int


@dataclass(frozen=True, slots=True)
class TrialStretch:
    """Groups that are tried in one session.

    Attributes:
        start: the node that the session begins with.
        groups: by their activation, in graph order.
        share: of the work of the whole model, what a trial runs, 0..1.
    """

    start: int
    groups: tuple[str, ...]
    share: float


def stretches(
    proto: onnx.ModelProto, spots: Mapping[str, Spot], work: Sequence[float], trials: int
) -> list[TrialStretch]:
    """The cuts that pay.

    Args:
        proto: of the whole model.
        spots: of every group, one at least.
        work: of each node, in any unit.
        trials: of each group.
    """
    names = sorted(spots, key=lambda name: spots[name].first)
    tail = [*itertools.accumulate(reversed(work), initial=0.0)][::-1]
    whole = tail[0] or 1.0
    places = _places(segments.crossings(proto), [spots[name] for name in names])
    starts = {0: 0}  # by the index of its first group, where a stretch begins
    while True:
        best, gain = None, 0.0
        for first, stop in itertools.pairwise([*sorted(starts), len(names)]):
            full = sum(spots[name].size for name in names[first:stop]) > BUDGET
            for index in range(first + 1, stop):
                place = places[index]
                if place is None:
                    continue
                saved = trials * (stop - index) * (tail[starts[first]] - tail[place]) / whole
                left = saved - OPENING * tail[place] / whole + (2 * OPENING if full else 0.0)
                if left > gain:
                    best, gain = index, left
        if best is None:
            break
        starts[best] = places[best] or 0
    edges = [*sorted(starts), len(names)]
    return [
        TrialStretch(starts[first], tuple(names[first:stop]), tail[starts[first]] / whole)
        for first, stop in itertools.pairwise(edges)
    ]


def _places(crossing: Sequence[int | None], spots: Sequence[Spot]) -> list[int | None]:
    """By group, the place in front of it and behind the group before where the fewest tensors cross; None without one.

    What a group reads is fetched in its own stretch, or crosses into it; so no cut may lie within that.
    """
    found: list[int | None] = [None]
    for index in range(1, len(spots)):
        ready = max(spot.ready for spot in spots[:index])
        allowed = range(max(spots[index - 1].first + 1, ready), spots[index].first + 1)
        known = [(count, place) for place in allowed if (count := crossing[place]) is not None]
        found.append(min(known)[1] if known else None)
    return found
