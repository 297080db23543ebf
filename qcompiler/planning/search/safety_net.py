"""The safety net: which layers must not be quantized, or not in the cheapest format, for the outputs to stay close.

1. All candidates are quantized at once on a few samples, in the ranges of one calibrator after the other, until one
   has room (`Limits.calm_db`). Where there is one format and the outputs are close enough, nothing else is done then.
2. Else the noise that each group of layers sends to the outputs alone is measured in each format, or solved for from
   few joint runs where there is no room for that (`group_tests`).
   Where several clipping ranges are offered, the loudest groups try them all and keep the one with the least noise:
   what is best for the tensor is not always best for the outputs.
3. Noise powers of independent layers add up. Every group starts in its cheapest format; then the change that removes
   most noise per cost (a better format, or high precision) is made, and the next, until the predicted noise meets the
   target in every view; the prediction is corrected by a real run and the choice repeated (`moves`). It stops where too
   little would be left quantized, unless the outputs are useless even there. Those that turn out not to have been
   needed are taken back. Below the line where the verdict is doubt, the floor is a lower one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.ir.macs import Shapes
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import decibel, noise_power
from qcompiler.planning.search.front import FrontPoint, front_of, single
from qcompiler.planning.search.group_tests import each_alone
from qcompiler.planning.search.moves import Board, Reached, Step, improve, quantized
from qcompiler.planning.search.prices import FEW, HIGH, Assignment, Limits, Prices
from qcompiler.planning.simulation.noise import Advance, Measure
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.support.foreseen import Foreseen, between
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Noise = NDArray[np.float64]  # [views]

__all__ = [
    "ENOUGH",
    "FEW",
    "HIGH",
    "Limits",
    "Offers",
    "Prices",
    "SafetyNet",
    "Step",
    "best_start",
    "enough",
    "find_net",
]

Offers = Mapping[str, Sequence[Use]]
Noises = dict[str, dict[DType, "Noise"]]
Uses = dict[str, dict[DType, Use]]
ENOUGH = 8_000_000  # activation elements that are as good as more samples: a page of text lines, 4 sentences
SURE_DB = 10.0  # above the goal on one sample: others will not miss it
ROUNDS_KEPT = 4  # runs over all samples that are left for the changes themselves
MATTERS = 0.01  # of all noise: of a quieter group no other range can be told to be better


@dataclass(frozen=True)
class SafetyNet:
    """What the search did.

    Attributes:
        amax: clipping range of every group, by activation tensor: the one it uses, or would have used.
        formats: INT8 or FP8 of every group in the same way.
        noise: noise-to-signal power that each group alone sends to the worst view in that format, by activation tensor;
            empty where all groups together were good enough.
        alone: the same for each format that was tried, and `uses` the range that goes with it.
        uses: by activation tensor and format, how it would be quantized.
        restored: activation tensors of the groups that go back to high precision, in the order of the choice; where
            costs were given, those first whose cheapest type is high precision.
        costs: what each format of each group costs, in seconds; the key "high" is high precision; empty where
            multiply-accumulates are the cost.
        joint: activation tensors of the groups whose noise was solved for from joint runs; the others were run alone.
        tried: by activation tensor and format, every clipping range that was really run for that group alone, with the
            noise that it sent to the worst view.
        curve: the plans that were really run; the first with everything as cheap as possible.
        target_db: what was aimed at.
        met: whether the last plan meets it.
        runs: how often the model was run.
        front: plans from the cheapest to the most accurate, those that were run and those that are predicted.
        likelihood: noise is the likelihood that the next token loses, in nats, and dB are of that.
    """

    amax: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    restored: tuple[str, ...] = ()
    curve: tuple[Step, ...] = ()
    target_db: float = 0.0
    met: bool = True
    runs: int = 0
    formats: dict[str, DType] = field(default_factory=dict)
    alone: dict[str, dict[DType, float]] = field(default_factory=dict)
    uses: dict[str, dict[DType, Use]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    joint: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    tried: dict[str, dict[DType, list[tuple[float, float]]]] = field(default_factory=dict)
    likelihood: bool = False


def find_net(
    simulator: Simulator,
    feeds: Sequence[Feeds],
    offers: Offers,
    prices: Prices,
    limits: Limits,
    advance: Advance | None = None,
    *,
    accept: Callable[[Mapping[str, Use], bool], bool] | None = None,
) -> SafetyNet:
    """Chooses the groups that go back to high precision, and the formats and ranges of the others.

    Args:
        simulator: the float model with a switch per group.
        feeds: samples to measure on; single groups are measured on `limits.few` of them.
        offers: formats and clipping ranges to choose from, by activation tensor; of each format, the first is the
            calibrator's own, and all tensors list the same calibrators in the same order.
        prices: costs and shares.
        limits: when to stop.
        advance: called with the number of runs done.
        accept: whether the search may end with everything quantized, given that plan and whether it reaches
            `limits.target_db` on `feeds`; None to go by the latter.
    """
    measure = Measure(simulator, feeds, limits.few, advance)
    begun = measure.runs
    formats = list(dict.fromkeys(use.dtype for offered in offers.values() for use in offered))
    best: Uses = {group: {} for group in offers}
    good = noise_power(limits.target_db)
    for dtype in formats:
        calm = good if limits.calm_db is None else noise_power(limits.calm_db)
        plan, _ = best_start(measure, offers, dtype, calm)
        for group, use in plan.items():
            best[group][dtype] = use
    board = Board(best, {}, prices, high=limits.high)
    first = board.cheapest()
    noises = measure.noises(quantized(first))
    step = Step(prices.share(first), decibel(float(noises.max(initial=0.0))))
    one, quiet = len(formats) == 1 and not prices.seconds, bool(noises.max(initial=0.0) <= good)
    if not best or (one and (quiet if accept is None else accept(quantized(first), quiet))):
        ended = Reached(first, (step,), np.ones_like(noises))
        return _net(ended, best, {}, prices, limits, measure, single(board, first, step.sqnr_db))
    alone, joint = _all_alone(measure, best, formats, limits.runs // 2)
    left = limits.runs - (measure.runs - begun) - ROUNDS_KEPT * len(feeds)
    starts = [_Start(best, alone, frozenset())]
    refined, quieter, again = _refined(measure, offers, best, alone, left)
    if refined != best:  # ranges that are best alone need not be so together: the search goes on from both
        starts.insert(0, _Start(refined, quieter, frozenset(again)))
    ends: list[tuple[_Start, Board, Assignment, Reached]] = []
    for start in starts:
        board = Board(start.uses, start.alone, prices, high=limits.high)
        begin = board.cheapest()
        reached = improve(measure, board, begin, measure.noises(quantized(begin)), limits)
        ends.append((start, board, begin, reached))
        if reached.curve[-1].sqnr_db >= limits.target_db and reached.curve[-1].share >= limits.min_share:
            break
    start, board, begin, reached = max(ends, key=lambda end: _worth(end[3], prices, limits))
    front = front_of(board, begin, reached.curve[0].sqnr_db, reached)
    ended = Reached(reached.chosen, _without_repeats([step, *reached.curve]), reached.scale)
    shown = _shown(reached.chosen, start.uses, start.alone)
    known = tuple(group for group in joint if (group, shown[group].dtype) not in start.again)
    return _net(ended, start.uses, start.alone, prices, limits, measure, front, known)


@dataclass(frozen=True, eq=False)
class _Start:
    """Ranges to search from.

    Attributes:
        uses: how each group is quantized in each format.
        alone: the noise of each.
        again: the groups and formats that were run alone with several ranges.
    """

    uses: Uses
    alone: Noises
    again: frozenset[tuple[str, DType]]


def _worth(reached: Reached, prices: Prices, limits: Limits) -> tuple[bool, bool, bool, float, float, float]:
    """Usable before anything, beyond doubt before fast, fast enough before accurate, accurate enough before faster."""
    end = reached.curve[-1]
    near = min(end.sqnr_db, limits.target_db)
    cost = sum(prices.of(group, use) for group, use in reached.chosen.items())
    usable, sure = end.sqnr_db >= limits.useless_db, end.sqnr_db >= limits.doubtful_db
    return usable, sure, end.share >= limits.min_share, near, end.share, -cost


def _without_repeats(curve: Sequence[Step]) -> tuple[Step, ...]:
    """The plans that were run, none of them twice in a row."""
    return tuple(one for at, one in enumerate(curve) if not at or one != curve[at - 1])


def enough(shapes: Shapes, groups: Iterable[str], times: int, most: int) -> int:
    """Samples to measure on: what it takes to see `times` enough elements of the activations, `times` at least."""
    elements = sum(math.prod(shapes.get(name, (0,))) for name in groups)
    return min(most, max(times, math.ceil(times * ENOUGH / max(elements, 1))))


def best_start(measure: Measure, offers: Offers, dtype: DType, good: float = 0.0) -> tuple[dict[str, Use], float]:
    """The best of the plans of one format in which one and the same calibrator gave all ranges.

    Args:
        measure: runs plans.
        offers: as of `find_net`.
        dtype: the format.
        good: noise-to-signal power that is good enough: where the first plan reaches it, that is taken.
    """
    offered = {group: [use for use in uses if use.dtype is dtype] for group, uses in offers.items()}
    offered = {group: uses for group, uses in offered.items() if uses}
    most = max((len(uses) for uses in offered.values()), default=0)
    plans = [{group: uses[min(i, len(uses) - 1)] for group, uses in offered.items()} for i in range(max(most, 1))]
    if good > 0 and measure.noise(plans[0]) <= good:
        return plans[0], measure.noise(plans[0])
    found = plans[measure.quietest(plans)]
    return found, measure.noise(found)


def _all_alone(measure: Measure, uses: Uses, formats: Sequence[DType], runs: int) -> tuple[Noises, tuple[str, ...]]:
    """The noise of each group in each format, and the groups of which it was solved for."""
    alone: Noises = {group: {} for group in uses}
    joint: dict[str, None] = {}
    for dtype in formats:
        plan = {group: found[dtype] for group, found in uses.items() if dtype in found}
        told = each_alone(measure, plan, runs // len(formats))
        for group, noise in told.noise.items():
            alone[group][dtype] = noise
        joint |= dict.fromkeys(plan if told.joint else ())
    return alone, tuple(joint)


def _refined(
    measure: Measure, offers: Offers, uses: Uses, alone: Noises, runs: int
) -> tuple[Uses, Noises, set[tuple[str, DType]]]:
    """Lets the loudest groups try the other ranges, as long as there are runs.

    Returns:
        The best range of each group and format, its noise, and which of them were run alone here.
    """
    best = {group: dict(found) for group, found in uses.items()}
    noise = {group: dict(found) for group, found in alone.items()}
    loud = {(group, dtype): _worst(one) for group, found in alone.items() for dtype, one in found.items()}
    least, again = MATTERS * sum(loud.values()), set[tuple[str, DType]]()
    for group, dtype in sorted(loud, key=lambda key: -loud[key]):
        offered = [use for use in dict.fromkeys(offers[group]) if use.dtype is dtype]
        price = len(offered) * max(measure.few, 1)
        if len(offered) < 2 or loud[group, dtype] < least:
            continue
        if price > runs:
            break
        runs -= price
        again.add((group, dtype))
        tried = [(measure.noises({group: use}, few=True), use) for use in offered]
        noise[group][dtype], best[group][dtype] = min(tried, key=lambda one: _worst(one[0]))
    return best, noise, again


def _net(
    reached: Reached,
    uses: Uses,
    alone: Noises,
    prices: Prices,
    limits: Limits,
    measure: Measure,
    front: tuple[FrontPoint, ...],
    joint: tuple[str, ...] = (),
) -> SafetyNet:
    shown, worst = (
        _shown(reached.chosen, uses, alone),
        {group: {dtype: _worst(noise) for dtype, noise in found.items()} for group, found in alone.items()},
    )
    return SafetyNet(
        {group: use.amax for group, use in shown.items()},
        {group: worst[group][use.dtype] for group, use in shown.items() if use.dtype in worst.get(group, {})},
        tuple(group for group, use in reached.chosen.items() if use is None),
        reached.curve,
        limits.target_db,
        met=reached.curve[-1].sqnr_db >= limits.target_db,
        runs=measure.runs,
        formats={group: use.dtype for group, use in shown.items()},
        alone=worst,
        uses={group: dict(formats) for group, formats in uses.items()},
        costs={group: dict(prices.seconds[group]) for group in uses} if prices.seconds else {},
        joint=joint,
        front=front,
        tried=measure.alone,
        likelihood=any(view.weighed for view in measure.views),
    )


def _shown(chosen: Assignment, uses: Uses, alone: Noises) -> dict[str, Use]:
    """How each group is quantized; of one in high precision, the quietest way to do it."""

    def quietest(group: str) -> Use:
        return min(uses[group].values(), key=lambda use: _worst(alone.get(group, {}).get(use.dtype, np.zeros(1))))

    return {group: chosen[group] or quietest(group) for group in uses}


def _worst(noise: Noise) -> float:
    return float(noise.max(initial=0.0))


def foreseen(
    *, groups: int, formats: int, ranges: int, few: float, samples: float, runs: int, target_db: float, sqnr_db: float
) -> Foreseen:
    """What `find_net` runs beyond the plans of single calibrators, which *calibrate* has run for it in that session.

    At best one plan is held against the goal on all samples, else there is what may be spent on single groups.

    Args:
        groups: of layers.
        formats: to choose from.
        ranges: that each offers.
        few: samples that single groups are measured on.
        samples: that plans are compared on.
        runs: that may be spent, as of `Limits`.
        target_db: what is aimed at.
        sqnr_db: what one sample with all groups quantized leaves; minus infinity where nobody looked.
    """
    least = Foreseen(quantized=2 * samples, copies=2)
    if formats == 1 and sqnr_db >= target_db + SURE_DB:
        return least
    alone = min(groups * formats * few, runs / 2)
    spent = min(alone + groups * formats * ranges * few + ROUNDS_KEPT * samples, runs)
    other = samples * ranges * (formats - 1)
    whole = Foreseen(quantized=2 * samples + other + spent, copies=2)
    return whole if sqnr_db < target_db - SURE_DB else between(least, whole)
