"""The safety net: which layers must not be quantized, or not in the cheapest format, for the outputs to stay close.

1. All candidates are quantized at once on a few samples. Where there is one format and the outputs are close enough,
   nothing else is done.
2. Else every group of layers is quantized alone, in each format, and the noise it sends to the outputs is measured.
   Where several clipping ranges are offered for its activation, the worst groups try them all and keep the one with the
   least noise: what is best for the tensor is not always best for the outputs. A model too large to run that often is
   measured in blocks of groups, and the loudest block is halved as long as there is time.
3. Noise powers of independent layers add up. Every group starts in its cheapest format; then the change that removes
   most noise per cost (a better format, or high precision) is made, and the next, until the predicted noise meets the
   target; the prediction is corrected by a real run and the choice repeated. It stops where too little would be left
   quantized, unless the outputs are useless even there. Where time is what changes cost, those that turn out not to
   have been needed are taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qcompiler.ir.macs import Shapes
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import NOTHING, decibel, noise_power
from qcompiler.planning.search.blocks import Block, each_alone
from qcompiler.planning.simulation.noise import Advance, Measure
from qcompiler.planning.simulation.simulator import Simulation, Simulator, Use
from qcompiler.target import DType

__all__ = [
    "ENOUGH", "FEW", "HIGH", "Limits", "Noises", "Offers", "Prices", "SafetyNet", "Step",
    "cast", "enough", "find_net", "runs_for",
]  # fmt: skip

Offers = Mapping[str, Sequence[Use]]
Noises = dict[str, dict[DType, float]]
Blocks = dict[tuple[str, DType], "Block"]
Assignment = dict[str, "Use | None"]  # by group; None is high precision
Move = tuple[str, "Use | None"]  # a group and what it changes to
HIGH = "high"  # the key of high precision among costs
ROUNDS = 8
FEW = 4  # samples for single groups at most; less than that picks other ranges from one time to the next
ENOUGH = 8_000_000  # activation elements that are as good as more samples: a page of text lines, 4 sentences
WORK = 1_500_000_000_000  # multiply-accumulates for single groups, and again for ranges: half a minute on 2 cores
LEAST = 16  # measurements that are made all the same


@dataclass(frozen=True, slots=True)
class Step:
    """One plan that was tried: share of MACs that are quantized (0..1) and the SQNR of the outputs in dB."""

    share: float
    sqnr_db: float


@dataclass(frozen=True)
class SafetyNet:
    """What the search did.

    Attributes:
        amax: clipping range of every group, by activation tensor: the one it uses, or would have used.
        formats: INT8 or FP8 of every group in the same way.
        noise: noise-to-signal power that each group alone sends to the outputs in that format, by activation tensor;
            empty where all groups together were good enough.
        alone: the same for each format that was tried, and `uses` the range that goes with it.
        uses: by activation tensor and format, how it would be quantized.
        restored: activation tensors of the groups that go back to high precision, in the order of the choice; where
            costs were given, those first whose cheapest type is high precision.
        costs: what each format of each group costs, in seconds; the key "high" is high precision; empty where
            multiply-accumulates are the cost.
        blocks: by activation tensor, the block in which the noise of that group was measured; those that are missing
            were measured alone. Their `noise` and `alone` are a share of the block's, by multiply-accumulates.
        curve: the plans that were really run; the first with everything as cheap as possible.
        target_db: what was aimed at.
        met: whether the last plan meets it.
        runs: how often the model was run.
    """

    amax: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    restored: tuple[str, ...] = ()
    curve: tuple[Step, ...] = ()
    target_db: float = 0.0
    met: bool = True
    runs: int = 0
    formats: dict[str, DType] = field(default_factory=dict)
    alone: Noises = field(default_factory=dict)
    uses: dict[str, dict[DType, Use]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        target_db: SQNR of the outputs to reach.
        min_share: share of the model's MACs that stays quantized even where the target is not reached.
        useless_db: SQNR below which `min_share` gives way as well: fast and wrong is of no use to anybody.
        few: samples that single groups are measured on.
        range_groups: how many of the noisiest groups try the other ranges that are offered.
        high: whether groups may go to high precision at all.
        work: multiply-accumulates that may be spent on single groups, and again on their ranges.
    """

    target_db: float
    min_share: float
    useless_db: float
    few: int = FEW
    range_groups: int = 0
    high: bool = True
    work: int = WORK


@dataclass(frozen=True)
class Prices:
    """What the search trades accuracy for.

    Attributes:
        macs: multiply-accumulates of each group, by activation tensor.
        total: those of the whole model, groups or not.
        seconds: by activation tensor and format ("high" for high precision): time of the group; empty where
            multiply-accumulates in high precision are what is to be saved.
    """

    macs: Mapping[str, int]
    total: int
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, group: str, use: Use | None) -> float:
        """The cost of a group in a format, or in high precision."""
        if self.seconds:
            return self.seconds[group][HIGH if use is None else str(use.dtype)]
        return float(max(self.macs[group], 1)) if use is None else 0.0

    def share(self, chosen: Assignment) -> float:
        """Share of the model's multiply-accumulates that are quantized, 0..1."""
        return sum(self.macs[group] for group, use in chosen.items() if use) / self.total if self.total else 0.0


def find_net(
    simulator: Simulator,
    feeds: Sequence[Feeds],
    offers: Offers,
    prices: Prices,
    limits: Limits,
    advance: Advance | None = None,
    *,
    brief: Sequence[Feeds] | None = None,
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
        brief: shorter samples to measure single groups on instead.
    """
    measure = Measure(simulator, feeds, limits.few, advance, brief=brief)
    formats = list(dict.fromkeys(use.dtype for offered in offers.values() for use in offered))
    best: dict[str, dict[DType, Use]] = {group: {} for group in offers}
    everything = 0.0
    for dtype in formats:
        plan, everything = best_start(measure, offers, dtype)
        for group, use in plan.items():
            best[group][dtype] = use
    first = _cheapest(best, {}, prices, limits)
    if len(formats) > 1 or prices.seconds:
        everything = measure.noise(_quantized(first))
    curve = [Step(prices.share(first), decibel(everything))]
    if not best or (len(formats) == 1 and everything <= noise_power(limits.target_db)):
        return _net(first, best, {}, prices, limits, curve, measure.runs)
    runs = max(LEAST, runs_for(limits, prices, measure.shortness * measure.few))
    alone: Noises = {group: {} for group in best}
    blocks: Blocks = {}
    for dtype in formats:
        plan = {group: uses[dtype] for group, uses in best.items() if dtype in uses}
        noises, shared = each_alone(measure, plan, prices.macs, runs // len(formats))
        blocks |= {(group, dtype): block for group, block in shared.items()}
        for group, noise in noises.items():
            alone[group][dtype] = noise
    starts = [(best, alone)]
    most = min(limits.range_groups, runs)
    refined, quieter, again = _refine(measure, offers, best, alone, formats, most, runs)
    if refined != best:  # ranges that are best alone need not be so together
        starts.append((refined, quieter))
    ends = []
    for uses, noises_of in starts:
        begin = _cheapest(uses, noises_of, prices, limits)
        noise = everything if uses is best and begin == first else measure.noise(_quantized(begin))
        steps = [Step(prices.share(begin), decibel(noise))]
        chosen = _improve(measure, begin, uses, noises_of, prices, noise, limits, steps)
        end = _net(chosen, uses, noises_of, prices, limits, steps, 0)
        ends.append((end, sum(prices.of(group, use) for group, use in chosen.items())))
    winner, _ = max(ends, key=lambda end: (*_worth(end[0].curve[-1], limits), -end[1]))
    return replace(
        winner,
        curve=winner.curve if winner is ends[0][0] else (*curve, *winner.curve),
        runs=measure.runs,
        blocks=_blocks(winner, blocks, again if winner is not ends[0][0] else ()),
    )


def _blocks(net: SafetyNet, blocks: Blocks, again: Iterable[tuple[str, DType]]) -> dict[str, Block]:
    """The blocks that stand behind the figures of a net: of each group the one of the format that is shown."""
    left = {key: block for key, block in blocks.items() if key not in set(again)}
    return {group: left[group, dtype] for group, dtype in net.formats.items() if (group, dtype) in left}


def cast(
    simulation: Simulation,
    feeds: Sequence[Feeds],
    offers: Offers,
    prices: Prices,
    limits: Limits,
    advance: Advance | None = None,
) -> SafetyNet:
    """`find_net`, on shorter samples for single groups where there is no time to run them all on whole ones.

    Args:
        simulation: the layers.
        feeds: samples to measure on.
        offers: what is still to choose from, by activation tensor; other layers stay in high precision.
        prices: costs and shares.
        limits: when to stop.
        advance: called with the number of runs done.
    """
    wanted = sum(len({use.dtype for use in uses}) for uses in offers.values())
    share = runs_for(limits, prices, limits.few) / max(wanted, 1)
    # None where the length is wired into the model: whole samples, in blocks of groups
    brief = None if share >= 1 else simulation.shortened(feeds[: limits.few], share)
    return find_net(simulation.simulator, feeds, offers, prices, limits, advance, brief=brief)


def enough(shapes: Shapes, groups: Iterable[str], times: int, most: int) -> int:
    """Samples to measure on: what it takes to see `times` enough elements of the activations, `times` at least."""
    elements = sum(math.prod(shapes.get(name, (0,))) for name in groups)
    return min(most, max(times, math.ceil(times * ENOUGH / max(elements, 1))))


def runs_for(limits: Limits, prices: Prices, samples: float) -> int:
    """How many measurements on so many samples (or parts of one) `limits.work` pays for."""
    return int(limits.work // max(prices.total * samples, 1))


def _net(
    chosen: Assignment,
    uses: Mapping[str, Mapping[DType, Use]],
    alone: Noises,
    prices: Prices,
    limits: Limits,
    curve: Sequence[Step],
    runs: int,
) -> SafetyNet:
    shown = {group: chosen[group] or _quietest(found, alone.get(group, {})) for group, found in uses.items()}
    return SafetyNet(
        {group: use.amax for group, use in shown.items()},
        {group: alone[group][use.dtype] for group, use in shown.items() if group in alone},
        tuple(group for group, use in chosen.items() if use is None),
        tuple(curve),
        limits.target_db,
        met=curve[-1].sqnr_db >= limits.target_db,
        runs=runs,
        formats={group: use.dtype for group, use in shown.items()},
        alone={group: dict(noises) for group, noises in alone.items()},
        uses={group: dict(formats) for group, formats in uses.items()},
        costs={group: dict(prices.seconds[group]) for group in uses} if prices.seconds else {},
    )


def _quietest(uses: Mapping[DType, Use], alone: Mapping[DType, float]) -> Use:
    """The quietest way to quantize a group."""
    return min(uses.values(), key=lambda use: alone.get(use.dtype, 0.0))


def _worth(end: Step, limits: Limits) -> tuple[bool, bool, float, float]:
    """Usable before fast, fast enough before accurate, accurate enough before faster still."""
    near = min(end.sqnr_db, limits.target_db)
    return end.sqnr_db >= limits.useless_db, end.share >= limits.min_share, near, end.share


def _quantized(chosen: Assignment) -> dict[str, Use]:
    return {group: use for group, use in chosen.items() if use is not None}


def _cheapest(uses: Mapping[str, Mapping[DType, Use]], alone: Noises, prices: Prices, limits: Limits) -> Assignment:
    """Every group in its cheapest type; of equal ones, in the quietest."""
    chosen: Assignment = {}
    for group, formats in uses.items():
        options: list[Use | None] = [*formats.values(), *([None] if limits.high else [])]
        chosen[group] = min(options, key=lambda use: (prices.of(group, use), _noise(alone, group, use)))
    return chosen


def _noise(alone: Noises, group: str, use: Use | None) -> float:
    return 0.0 if use is None else alone.get(group, {}).get(use.dtype, 0.0)


def best_start(measure: Measure, offers: Offers, dtype: DType) -> tuple[dict[str, Use], float]:
    """The best of the plans of one format in which one and the same calibrator gave all ranges."""
    offered = {group: [use for use in uses if use.dtype is dtype] for group, uses in offers.items()}
    offered = {group: uses for group, uses in offered.items() if uses}
    most = max((len(uses) for uses in offered.values()), default=0)
    plans = [{group: uses[min(i, len(uses) - 1)] for group, uses in offered.items()} for i in range(max(most, 1))]
    tried = [(measure.noise(plan), i) for i, plan in enumerate(plans)]
    noise, best = min(tried)
    return plans[best], noise


def _refine(
    measure: Measure,
    offers: Offers,
    uses: Mapping[str, Mapping[DType, Use]],
    alone: Noises,
    formats: Sequence[DType],
    most: int,
    runs: int,
) -> tuple[dict[str, dict[DType, Use]], Noises, set[tuple[str, DType]]]:
    """Lets the noisiest groups try the other ranges.

    Returns:
        The best range of each group and format, its noise, and which of them were measured alone here.
    """
    best = {group: dict(found) for group, found in uses.items()}
    noise = {group: dict(found) for group, found in alone.items()}
    order = [(dtype, group) for dtype in formats for group in alone if dtype in alone[group]]
    order.sort(key=lambda one: -alone[one[1]][one[0]])
    seen, again = dict.fromkeys(formats, 0), set[tuple[str, DType]]()
    for dtype, group in order:
        offered = [use for use in dict.fromkeys(offers[group]) if use.dtype is dtype]
        seen[dtype] += 1
        if seen[dtype] > most or len(offered) > runs:
            continue
        runs -= len(offered)
        again.add((group, dtype))
        noise[group][dtype] = measure.noise({group: best[group][dtype]}, few=True)  # known, or its share of a block
        for use in offered:
            if use == best[group][dtype]:
                continue
            found = measure.noise({group: use}, few=True)
            if found < noise[group][dtype]:
                best[group][dtype], noise[group][dtype] = use, found
    return best, noise, again


def _improve(
    measure: Measure,
    begin: Assignment,
    uses: Mapping[str, Mapping[DType, Use]],
    alone: Noises,
    prices: Prices,
    noise: float,
    limits: Limits,
    curve: list[Step],
) -> Assignment:
    """Rounds of predicting and running until the target or the floor is met; appends to `curve`."""

    def allowed(chosen: Assignment) -> bool:
        return prices.share(chosen) >= limits.min_share

    total = max(sum(_noise(alone, group, use) for group, use in begin.items()), NOTHING)
    current, moves, missed = begin, list[Move](), 0
    best: tuple[float, Assignment, Step] = (noise, begin, curve[-1])
    for _ in range(ROUNDS):
        if noise <= noise_power(limits.target_db):
            break
        left = max(sum(_noise(alone, group, use) for group, use in current.items()), total * 1e-9)
        scale = noise / left  # how much more noise there really is than the sum predicts
        target = noise_power(limits.target_db) / scale
        more = _changes(current, uses, alone, prices, target, limits.high, allowed)
        if not more and noise > noise_power(limits.useless_db):
            useful = noise_power(limits.useless_db) / scale
            more = _changes(current, uses, alone, prices, useful, limits.high, lambda one: True)
        if not more:
            break
        missed = len(moves)
        moves += more
        current = _changed(begin, moves)
        noise = measure.noise(_quantized(current))
        curve.append(Step(prices.share(current), decibel(noise)))
        best = min(best, (noise, current, curve[-1]), key=lambda tried: tried[0])
    if moves and prices.seconds and noise <= noise_power(limits.target_db):
        return _take_back(measure, begin, moves, missed, prices, limits, curve)
    if best[1] != current:  # noise of layers can cancel: what was tried first may be the best
        curve.append(best[2])
    return best[1]


def _take_back(
    measure: Measure,
    begin: Assignment,
    moves: Sequence[Move],
    missed: int,
    prices: Prices,
    limits: Limits,
    curve: list[Step],
) -> Assignment:
    """The fewest of `moves` that meet the target, by halving: predictions that are too dark make too many.

    Where formats cost time, each change that was not needed is time lost.

    Args:
        measure: runs plans.
        begin: what the moves start from.
        moves: all of them together meet the target.
        missed: so many of them do not.
        prices: for the share of a step.
        limits: the target.
        curve: gets the plans that are run, and last the one that is chosen.
    """
    enough, last = len(moves), curve[-1]
    while enough - missed > 1:
        middle = (missed + enough) // 2
        chosen = _changed(begin, moves[:middle])
        noise = measure.noise(_quantized(chosen))
        curve.append(Step(prices.share(chosen), decibel(noise)))
        if noise <= noise_power(limits.target_db):
            enough, last = middle, curve[-1]
        else:
            missed = middle
    if curve[-1] != last:
        curve.append(last)
    return _changed(begin, moves[:enough])


def _changes(
    current: Assignment,
    uses: Mapping[str, Mapping[DType, Use]],
    alone: Noises,
    prices: Prices,
    wanted: float,
    high: bool,
    allowed: Callable[[Assignment], bool],
) -> list[Move]:
    """Changes by noise removed per cost until the sum of noises is down to `wanted`, but one at least.

    A change to high precision that is not allowed is passed over.
    """
    chosen, made = dict(current), list[Move]()
    left = sum(_noise(alone, group, use) for group, use in chosen.items())
    barred: set[str] = set()
    while left > wanted or not made:
        moves = [
            (gain / max(prices.of(group, to) - prices.of(group, use), NOTHING), group, to)
            for group, use in chosen.items()
            for to in (*uses[group].values(), *([None] if high and group not in barred else []))
            if (gain := _noise(alone, group, use) - _noise(alone, group, to)) > 0
        ]
        if not moves:
            break
        _, group, to = max(moves, key=lambda move: move[0])
        if to is None and not allowed({**chosen, group: to}):
            barred.add(group)
            continue
        left += _noise(alone, group, to) - _noise(alone, group, chosen[group])
        chosen[group] = to
        made.append((group, to))
    return made


def _changed(begin: Assignment, moves: Sequence[Move]) -> Assignment:
    """What moves lead to; groups that go to high precision stand last, in the order in which they go."""
    chosen = dict(begin)
    for group, to in moves:
        if to is None:
            del chosen[group]
        chosen[group] = to
    return chosen
