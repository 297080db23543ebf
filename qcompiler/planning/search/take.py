"""The plan that is taken from a front: by the goal, by the user's pick, or the next one where a gate was missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qcompiler.errors import UsageError
from qcompiler.planning.search.checks import Halves, Samples, by_metric, by_sqnr
from qcompiler.planning.search.goal import DEFAULT, METRIC, SQNR, Check, Goal, GoalReached, choose, counted, picked
from qcompiler.planning.search.moves import Step
from qcompiler.planning.search.qfem import Spared
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.verification.metrics.halves import MetricHalves

RECORDED = "recorded"
VAIN = "more layers in high precision would gain less than 1 dB, and leave the result in doubt all the same"
NEARER_DB = 1.0  # by how much more dB the next plan promises where a gate was missed, at least
NOTICED_DB = 1.0  # what layers must gain that go back although the result stays in doubt


@dataclass(frozen=True, eq=False)
class Judging:
    """How plans are held against the goal.

    Attributes:
        goal: what is asked.
        check: holds a plan against it; each plan is looked at once.
        samples: all that choose.
        halves: the user's metric; None where it is not the goal.
    """

    goal: Goal
    check: Callable[[Mapping[str, Use]], Check]
    samples: Samples
    halves: MetricHalves | None

    @classmethod
    def of(
        cls, goal: Goal, simulator: Simulator, samples: Samples, metric: Halves | None, min_sqnr: float | None
    ) -> Judging:
        """Measures the metric of the float model, where that is the goal.

        Args:
            goal: what is asked.
            simulator: runs the plans.
            samples: all that choose.
            metric: makes the user's metric on a float model; needed where it is the goal.
            min_sqnr: a gate of dB beside a metric; None for none.

        Raises:
            UsageError: the metric fails or returns no number.
        """
        if goal.kind != METRIC or metric is None:
            asked = goal.kind == SQNR  # a number of the user's is held with a margin; ours has room for it
            return cls(goal, counted(by_sqnr(samples, goal.target, margin=asked)), samples, None)
        halves = metric(lambda feeds: simulator.infer(dict(feeds), {}))
        least = None if min_sqnr is None else by_sqnr(samples, min_sqnr)
        return cls(goal, counted(by_metric(halves, simulator, goal.target, least)), samples, halves)

    def accepts(self, uses: Mapping[str, Use], quiet: bool) -> bool:
        """Whether a search may end with a plan: dB that few samples miss already are not looked at on all of them."""
        return (quiet or self.halves is not None) and self.check(uses).holds


@dataclass(frozen=True)
class Pinned:
    """A point of a front that is known already.

    Attributes:
        net: as if a search had ended there.
        spared: what QFeM decided then.
        reached: what to say of the goal; None where nothing is to say.
        calibrators: text form of the one that chose a range, by activation tensor; where the range is another one, and
            no calibrator of today offers it, it is `RECORDED`.
        rungs: of the ladder, those that were kept; None where nobody wrote them down.
    """

    net: SafetyNet
    spared: Spared
    reached: GoalReached | None = None
    calibrators: Mapping[str, str] = field(default_factory=dict)
    rungs: frozenset[str] | None = None

    def offers(
        self, groups: Mapping[str, object], spelled: Mapping[str, Mapping[Use, str]]
    ) -> tuple[dict[str, list[Use]], dict[str, dict[Use, str]]]:
        """Formats and ranges as they are known, and which calibrator each is of.

        Args:
            groups: the layers of today, by activation.
            spelled: what calibrators offer today.

        Raises:
            UsageError: a layer of today has no range.
        """
        missing = [name for name in groups if name not in self.net.uses and name not in self.spared.tensors]
        if missing:
            raise UsageError(
                f"the front has no range for '{missing[0]}', which a layer of this model reads: it is of another model "
                "or of another version; search again, without --pick"
            )
        offers = {name: [*self.net.uses.get(name, {}).values()] for name in groups}
        offers = {name: uses or [*spelled[name]][:1] for name, uses in offers.items()}
        for name, use in self._taken().items():
            offers[name] = [use, *(one for one in offers.get(name, []) if one != use)]
        words = {
            name: {use: spelled.get(name, {}).get(use, self.calibrators.get(name, RECORDED)) for use in uses}
            for name, uses in offers.items()
        }
        return offers, words

    def _taken(self) -> dict[str, Use]:
        return {name: Use(self.net.formats[name], amax) for name, amax in self.net.amax.items()}


def by_goal(
    net: SafetyNet, judging: Judging, pick: str | float | None, most: int, *, beyond: bool = False
) -> tuple[SafetyNet, GoalReached]:
    """The net with the point of its front that is taken.

    Args:
        net: where the search ended, with its front.
        judging: holds points against the goal.
        pick: which point the user wants; None for the cheapest that holds the goal.
        most: so many points are held against the goal.
        beyond: the cheapest point missed where it was judged, and is taken only where there is no other.

    Raises:
        UsageError: there is no point with the id that was picked.
    """
    goal, points = judging.goal, net.front
    if not points:
        return net, GoalReached(goal, None, "there is nothing to choose from")
    ended = next((at for at, one in enumerate(points) if one.chosen), 0)
    if pick is not None:
        at, why = picked(points, pick), f"picked: {pick}"
        check: Check | None = judging.check(points[at].uses)
        looks = 1
    else:
        start = max(0 if goal.kind == METRIC else ended, min(int(beyond), len(points) - 1))
        found = choose(points, lambda one: judging.check(one.uses), goal, start=start, most=most)
        looks = len(found.checks)
        lowered = goal.lowered(found.check)
        if lowered is not None:
            found = choose(points, lambda one: judging.check(one.uses), lowered, start=found.at, most=most)
            looks += len(found.checks) - 1
        at, check, why = found.at, found.check, found.why
        cheaper = _as_good(net, judging, at, check)
        if cheaper is not None:
            at, looks = cheaper, looks + 1
            check, why = judging.check(points[at].uses), f"{VAIN}; {found.why}"
    known = (
        check.figure if check is not None and goal.kind != METRIC else judging.samples.bound(points[at].uses).sqnr_db
    )
    taken = at_point(net, at, known)
    met = check is not None and check.holds
    whole = "" if judging.halves is None else judging.halves.why
    return replace(taken, met=met), GoalReached(goal, check, why, looks, whole)


def _as_good(net: SafetyNet, judging: Judging, at: int, check: Check | None) -> int | None:
    """The cheapest plan that is as good for whoever reads it, where one is in doubt and no other is beyond it.

    Below the line of doubt the goal is out of reach, and layers in high precision that gain next to nothing cost speed.
    What the next token is drawn by has no such line: each dB is heard there.

    Args:
        net: with its front.
        judging: holds points against the goal.
        at: the point that would be taken.
        check: how that stands.
    """
    goal, points = judging.goal, net.front
    drawn = goal.doubtful_db >= goal.target
    if goal.kind != DEFAULT or drawn or check is None or check.holds or check.figure >= goal.doubtful_db:
        return None
    near = [one for one in range(at) if points[one].sqnr_db >= points[at].sqnr_db - NOTICED_DB]
    found = next((one for one in near if points[one].measured), None)
    if found is None or judging.check(points[found].uses).figure < check.figure - NOTICED_DB:
        return None
    return found


def at_point(net: SafetyNet, at: int, sqnr_db: float | None = None) -> SafetyNet:
    """The net as if the search had ended at a point of its front.

    Args:
        net: with its front.
        at: the index of the point.
        sqnr_db: what the point reaches, where it was measured again; None for what the front says.
    """
    points = list(net.front)
    before = next((index for index, one in enumerate(points) if one.chosen), None)
    reached = points[at].sqnr_db if sqnr_db is None else sqnr_db
    points = [replace(one, chosen=index == at) for index, one in enumerate(points)]
    point = points[at] = replace(points[at], sqnr_db=reached, measured=points[at].measured or sqnr_db is not None)
    formats = {**net.formats, **{group: use.dtype for group, use in point.uses.items()}}
    step = Step(point.share, reached)
    return replace(
        net,
        amax={**net.amax, **{group: use.amax for group, use in point.uses.items()}},
        formats=formats,
        noise={group: net.alone[group][dtype] for group, dtype in formats.items() if dtype in net.alone.get(group, {})},
        restored=point.restored,
        curve=(*net.curve[:-1], step) if at == before else (*net.curve, step),
        met=reached >= net.target_db,
        front=tuple(points),
    )


def next_point(net: SafetyNet, short_db: float) -> int | None:
    """The next stricter point of a front; None where there is none.

    Args:
        net: with its front, one point of which was tried.
        short_db: dB that were missing where it was judged, 0 and more.
    """
    tried = next((at for at, one in enumerate(net.front) if one.chosen), None)
    if tried is None:
        return None
    least = net.front[tried].sqnr_db + max(short_db, NEARER_DB)
    later = [at for at in range(tried + 1, len(net.front)) if net.front[at].uses]
    return next((at for at in later if net.front[at].sqnr_db >= least), later[-1] if later else None)
