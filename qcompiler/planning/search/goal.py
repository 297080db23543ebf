"""What a plan must hold, and which plan of the front is taken: the cheapest that holds it with its margin.

    metric    the choosing half of the user's metric loses no more than the limit (`verification.metrics.halves`)
    sqnr      all samples that choose reach so many dB, less what other samples may take (`judge.margin`)
    default   the same with a number of dB that is ours; it stops where too little would stay quantized

A front goes from the cheapest plan to the most accurate. Along it the error falls, but for noise; so where the goal
begins to hold is found by halving, in about log2 of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from qcompiler.errors import UsageError
from qcompiler.planning.simulation.simulator import Use
from qcompiler.recipe.budget import EFFORTS

METRIC: Final = "metric"
SQNR: Final = "sqnr"
DEFAULT: Final = "default"
DEFAULT_DROP: Final = 0.01  # that a metric may lose where nobody says how much, relative
CHECKS: Final[Mapping[str, int]] = {"quick": 3, "balanced": 6, "thorough": 12}  # plans that are held against a goal


def checks_for(effort: str, search_time: float | None) -> int:
    """How many plans are held against a goal: by the effort, or by the effort that the time comes closest to."""
    if search_time is not None:
        effort = min(EFFORTS, key=lambda name: abs(math.log(EFFORTS[name] / search_time)))
    return CHECKS[effort]


class PlanPoint(Protocol):
    """A plan of a front.

    Attributes:
        share: of the model's multiply-accumulates that are quantized, 0..1.
        sqnr_db: on the samples of the search, measured or predicted.
        seconds: predicted time; None where nobody knows.
        restored: activation tensors whose readers are in high precision.
        uses: how the others are quantized.
    """

    @property
    def share(self) -> float: ...  # noqa: D102 (above)
    @property
    def sqnr_db(self) -> float: ...  # noqa: D102
    @property
    def seconds(self) -> float | None: ...  # noqa: D102
    @property
    def restored(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def uses(self) -> Mapping[str, Use]: ...  # noqa: D102


P = TypeVar("P", bound=PlanPoint)


@dataclass(frozen=True, slots=True)
class Check:
    """A plan held against the goal.

    Attributes:
        holds: with the margin.
        figure: dB, or the relative loss of the metric.
        margin: in the same unit.
    """

    holds: bool
    figure: float
    margin: float


@dataclass(frozen=True)
class Goal:
    """What is asked of a plan.

    Attributes:
        kind: `metric`, `sqnr` or `default`.
        target: dB, or the relative loss that is allowed.
        objective: what is least among the plans that hold it.
        min_share: share of multiply-accumulates below which the default goal gives back no more; a gate on the share
            holds for all kinds.
        doubtful_db: dB below which `least_share` stands in for it; minus infinity for no such line.
        least_share: share that stays quantized then.
        likelihood: dB are of what the next token loses (`judge.likelihood`): 20 dB are a perplexity that is 1 % higher.
    """

    kind: str
    target: float
    objective: str = "share"
    min_share: float = 0.0
    doubtful_db: float = -math.inf
    least_share: float = 0.0
    likelihood: bool = False

    def lowered(self, check: Check | None) -> Goal | None:
        """With the lower floor, where a plan is in doubt at this one; None where it is not, or none is lower."""
        doubted = check is not None and not check.holds and check.figure < self.doubtful_db
        if not doubted or self.least_share >= self.min_share:
            return None
        return replace(self, min_share=self.least_share, doubtful_db=-math.inf)

    @property
    def unit(self) -> str:
        """Of target and margin."""
        return "relative" if self.kind == METRIC else "dB"


@dataclass(frozen=True)
class GoalReached:
    """Which plan was taken, and why.

    Attributes:
        goal: what was asked.
        check: of the plan that was taken; None where nothing was looked at.
        why: in a sentence.
        checks: how many plans were held against the goal.
        whole: why a metric could not be split, so that it was chosen by all of it; "" where it was, or is none.
    """

    goal: Goal
    check: Check | None
    why: str
    checks: int = 0
    whole: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        check = self.check
        return {
            "kind": self.goal.kind,
            "target": self.goal.target,
            "figure": None if check is None else check.figure,
            "margin": None if check is None else check.margin,
            "unit": self.goal.unit,
            "likelihood": self.goal.likelihood,
            "objective": self.goal.objective,
            "met": None if check is None else check.holds,
            "checks": self.checks,
            "in_sample": self.whole,
            "why": self.why,
        }


@dataclass(frozen=True)
class PointChoice:
    """A point of a front.

    Attributes:
        at: its index.
        check: as it was held against the goal; None where it was not.
        why: in a sentence.
        checks: by index, all that were looked at.
    """

    at: int
    check: Check | None
    why: str
    checks: Mapping[int, Check] = field(default_factory=dict)


def choose(
    points: Sequence[P], holds: Callable[[P], Check], goal: Goal, *, start: int = 0, most: int = 6
) -> PointChoice:
    """The cheapest point that holds the goal.

    Args:
        points: the cheapest first, one at least.
        holds: holds a point against the goal; costs time.
        goal: with its floor on the share.
        start: the point that is looked at first: where the search ended. What is cheaper is known not to hold.
        most: so many are looked at.

    Returns:
        Where none holds the goal, the most accurate one that the floor on the share allows.
    """
    start = min(start, len(points) - 1)
    ends = [at for at, one in enumerate(points) if at >= start and one.share >= goal.min_share - 1e-9] or [start]
    checks: dict[int, Check] = {start: holds(points[start])}
    if checks[start].holds:
        what = "the cheapest plan holds the goal" if start == 0 else "the search's plan holds the goal"
        return PointChoice(start, checks[start], what, checks)
    missed, held = 0, len(ends)  # places in `ends`
    missed = -1 if ends[0] != start else 0
    while held - missed > 1 and len(checks) < most:
        middle = (missed + held) // 2
        at = ends[middle]
        checks[at] = holds(points[at])
        if checks[at].holds:
            held = middle
        else:
            missed = middle
    if held < len(ends):
        at = ends[held]
        exact = held - missed == 1
        why = (
            "the cheapest plan of the front that holds the goal"
            if exact
            else f"the cheapest of the {len(checks)} plans that were looked at that holds the goal"
        )
        return PointChoice(at, checks[at], why, checks)
    at = ends[-1]
    floor = f" with {goal.min_share:.0%} quantized" if goal.min_share > 0 else ""
    why = f"no plan that was looked at{floor} holds the goal: the most accurate one is taken"
    return PointChoice(at, checks.get(at), why, checks)


def picked(points: Sequence[PlanPoint], pick: str | float) -> int:
    """The index of the point that the user picks.

    Args:
        points: the cheapest first, one at least.
        pick: `fastest`, `most-accurate`, `knee`, an id (int) or a share (float).

    Returns:
        Of plans without any quantized layer none is taken by a word, unless there is no other.

    Raises:
        UsageError: there is no point with that id.
    """
    if isinstance(pick, int):
        if pick >= len(points):
            raise UsageError(f"--pick {pick}: the front has {len(points)} points, with ids from 0 to {len(points) - 1}")
        return pick
    if isinstance(pick, float):
        return min(range(len(points)), key=lambda at: (abs(points[at].share - pick), at))
    some = [at for at, one in enumerate(points) if one.share > 0] or list(range(len(points)))
    if pick == "fastest":
        return min(some, key=lambda at: (_cost(points[at]), at))
    if pick == "most-accurate":
        return max(some, key=lambda at: (points[at].sqnr_db, -_cost(points[at])))
    return _knee(points, some)


def _knee(points: Sequence[PlanPoint], some: Sequence[int]) -> int:
    """The point furthest above the line from the cheapest to the most accurate one, both axes from 0 to 1."""
    finite = [at for at in some if math.isfinite(points[at].sqnr_db)] or list(some)
    costs, values = [_cost(points[at]) for at in finite], [points[at].sqnr_db for at in finite]
    across, up = max(costs) - min(costs), max(values) - min(values)
    if not across > 0 or not up > 0:
        return finite[0]
    above = [
        (value - min(values)) / up - (cost - min(costs)) / across for cost, value in zip(costs, values, strict=True)
    ]
    return finite[max(range(len(finite)), key=lambda at: (above[at], -at))]


def _cost(point: PlanPoint) -> float:
    return 1.0 - point.share if point.seconds is None else point.seconds


def counted(check: Callable[[Mapping[str, Use]], Check]) -> Callable[[Mapping[str, Use]], Check]:
    """The same, which looks at a plan once."""
    known: dict[tuple[tuple[str, Use], ...], Check] = {}

    def checked(uses: Mapping[str, Use]) -> Check:
        key = tuple(sorted(uses.items(), key=lambda one: one[0]))
        if key not in known:
            known[key] = check(uses)
        return known[key]

    return checked
