"""The Pareto front: plans from the cheapest to the most accurate, each with what it costs and what it errs.

Points that were run are told from those that are predicted: the sum of what their groups send to the outputs alone,
scaled by how far that sum was off where plans were run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.numerics.sqnr import decibel
from qcompiler.planning.search.moves import Board, Reached, changed
from qcompiler.planning.search.prices import Assignment
from qcompiler.planning.simulation.simulator import Use

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_POINTS = 24  # of a front that people look at


@dataclass(frozen=True)
class FrontPoint:
    """A plan of the front.

    Attributes:
        share: of the model's multiply-accumulates that are quantized, 0..1.
        sqnr_db: of the worst view, on the samples that choose.
        seconds: what all groups cost by the table of costs, which no listing has confirmed; None where nobody knows.
        restored: activation tensors whose readers are in high precision.
        uses: how the others are quantized.
        measured: it was run; else predicted.
        chosen: it is what the search ended with.
        size: bytes of the weights of all groups; None where nobody knows.
    """

    share: float
    sqnr_db: float
    seconds: float | None
    restored: tuple[str, ...]
    uses: Mapping[str, Use] = field(default_factory=dict)
    measured: bool = False
    chosen: bool = False
    size: int | None = None

    def to_json(self, number: int) -> dict[str, Any]:
        """For the manifest; `number` is its place on the front."""
        return {
            "id": number,
            "share": self.share,
            "sqnr_db": self.sqnr_db,
            "predicted_s": self.seconds,
            "bytes": self.size,
            "high": list(self.restored),
            "formats": {name: str(use.dtype) for name, use in self.uses.items()},
            "measured": self.measured,
            "chosen": self.chosen,
        }


def front_of(board: Board, begin: Assignment, first: float, reached: Reached) -> tuple[FrontPoint, ...]:
    """The front, cheapest first: what the search began with and ended with, what it ran, and plans on from both ends.

    What the search ended with is the least that meets its goal on its few samples. Where all that choose think less of
    it, the next that was run is closer to it than anything that is predicted.

    Args:
        board: what groups may become.
        begin: the cheapest plan.
        first: SQNR in dB of that plan, as run.
        reached: where the search ended, as run.
    """
    ended, sqnr_db = reached.chosen, reached.curve[-1].sqnr_db
    nothing = np.zeros_like(reached.scale)
    before = board.changes(begin, nothing, lambda one: True, 4 * len(board.groups))
    plans: list[tuple[Assignment, float | None]] = [(begin, first)]
    plans += [(changed(begin, before[: at + 1]), None) for at in range(len(before))]
    behind = board.changes(ended, nothing, lambda one: True, 4 * len(board.groups))
    plans += [(ended, sqnr_db), *((changed(ended, behind[: at + 1]), None) for at in range(len(behind)))]
    plans += [(plan, db) for plan, db in reached.ran if plan not in (begin, ended) and db > sqnr_db]
    points = [_point(board, plan, db, reached.scale, chosen=plan == ended) for plan, db in plans]
    return _thinned(_undominated(points, by_size=board.prices.by_size))


def single(board: Board, chosen: Assignment, sqnr_db: float) -> tuple[FrontPoint, ...]:
    """The front of a search that ended where it began."""
    return (_point(board, chosen, sqnr_db, np.ones(1), chosen=True),)


def _point(
    board: Board, plan: Assignment, sqnr_db: float | None, scale: NDArray[np.float64], *, chosen: bool
) -> FrontPoint:
    known = sqnr_db if sqnr_db is not None else decibel(float((board.left(plan) * scale).max(initial=0.0)))
    return FrontPoint(
        share=board.prices.share(plan),
        sqnr_db=known,
        seconds=board.prices.time(plan),
        restored=tuple(group for group, use in plan.items() if use is None),
        uses={group: use for group, use in plan.items() if use is not None},
        measured=sqnr_db is not None,
        chosen=chosen,
        size=board.prices.size(plan),
    )


def _undominated(points: list[FrontPoint], *, by_size: bool = False) -> list[FrontPoint]:
    """Cheapest first, each more accurate than all before; what was run or chosen stays whatever is predicted."""

    def cost(one: FrontPoint) -> float:
        if by_size and one.size is not None:
            return float(one.size)
        return -one.share if one.seconds is None else one.seconds

    kept: list[FrontPoint] = []
    for one in sorted(points, key=lambda point: (cost(point), not point.measured, -point.sqnr_db)):
        if one.measured or one.chosen or not kept or one.sqnr_db > max(other.sqnr_db for other in kept):
            kept += [one] if not any(_same(one, other) for other in kept) else []
    return kept


def _same(one: FrontPoint, other: FrontPoint) -> bool:
    return one.uses == other.uses and set(one.restored) == set(other.restored)


def _thinned(points: list[FrontPoint]) -> tuple[FrontPoint, ...]:
    """So many that people can look at them; what was run stays."""
    free = [one for one in points if not one.measured]
    room = max(MOST_POINTS - (len(points) - len(free)), 0)
    step = max(1, -(-len(free) // room)) if room else len(free) + 1
    left = {id(one) for one in free[::step]}
    return tuple(one for one in points if one.measured or id(one) in left)
