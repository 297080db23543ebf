"""The safety net: which layers must not be quantized for the outputs to stay close to the float model's.

1. All candidates are quantized at once on a few samples. Where the outputs are close enough, nothing else is done.
2. Else every group of layers is quantized alone and the noise it sends to the outputs is measured. Where several
   clipping ranges are offered for its activation, the worst groups try them all and keep the one with the least noise:
   what is best for the tensor is not always best for the outputs.
3. Noise powers of independent layers add up, so layers are given back to high precision by noise removed per
   multiply-accumulate until the predicted noise meets the target; the prediction is corrected by a real run and the
   choice repeated. It stops where too little would be left in INT8, unless the outputs are useless even there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.session import Feeds
from qcompiler.simulate import Simulator, Use
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Advance = Callable[[int], None]
Ranges = Mapping[str, Sequence[float]]
ROUNDS = 8
FEW = 4  # samples for single groups at most; less than that picks other ranges from one time to the next
ENOUGH = 8_000_000  # activation elements that are as good as more samples: a page of text lines, 4 sentences
NOTHING = 1e-20  # noise-to-signal power below which two results are called equal (200 dB)


@dataclass(frozen=True, slots=True)
class Step:
    """One plan that was tried: share of MACs in INT8 (0..1) and the SQNR of the outputs in dB."""

    share: float
    sqnr_db: float


@dataclass(frozen=True)
class SafetyNet:
    """What the search did.

    Attributes:
        amax: clipping range of every group that stays quantized or not, by activation tensor.
        noise: noise-to-signal power that each group alone sends to the outputs, by activation tensor; empty where all
            groups together were good enough.
        restored: activation tensors of the groups that go back to high precision, in the order of the choice.
        curve: the plans that were really run, the first with everything quantized.
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


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        target_db: SQNR of the outputs to reach.
        min_share: share of the model's MACs that stays INT8 even where the target is not reached.
        useless_db: SQNR below which `min_share` gives way as well: fast and wrong is of no use to anybody.
        few: samples that single groups are measured on.
        range_groups: how many of the noisiest groups try the other ranges that are offered.
    """

    target_db: float
    min_share: float
    useless_db: float
    few: int = FEW
    range_groups: int = 0


def search(
    simulator: Simulator,
    feeds: Sequence[Feeds],
    ranges: Ranges,
    macs: Mapping[str, int],
    total_macs: int,
    limits: Limits,
    advance: Advance | None = None,
) -> SafetyNet:
    """Chooses the groups that go back to high precision, and the ranges of the others.

    Args:
        simulator: the float model with a switch per group.
        feeds: samples to measure on; single groups are measured on `limits.few` of them.
        ranges: clipping ranges to choose from, by activation tensor; the first is the calibrator's own.
        macs: multiply-accumulates of each group, by activation tensor.
        total_macs: those of the whole model, groups or not.
        limits: when to stop.
        advance: called with the number of runs done.
    """
    measure = _Measure(simulator, feeds, limits.few, advance)

    def share(restored: Collection[str]) -> float:
        return sum(macs[group] for group in ranges if group not in restored) / total_macs if total_macs else 0.0

    amax, everything = _best_start(measure, ranges)
    curve = [Step(share(()), sqnr_db(everything))]
    if not amax or everything <= power(limits.target_db):
        return SafetyNet(amax, {}, (), tuple(curve), limits.target_db, met=True, runs=measure.runs)
    alone = {group: measure.noise({group: value}, few=True) for group, value in amax.items()}
    starts = [(amax, alone, everything)]
    refined, quieter = _refine(measure, ranges, amax, alone, limits.range_groups)
    if refined != amax:  # ranges that are best alone need not be so together
        starts.append((refined, quieter, measure.noise(refined)))
    ends = []
    for chosen, noises, noise in starts:
        steps = [Step(share(()), sqnr_db(noise))]
        restored = _restore(measure, chosen, noises, macs, share, noise, limits, steps)
        ends.append(SafetyNet(dict(chosen), dict(noises), tuple(restored), tuple(steps), limits.target_db))
    best = max(ends, key=lambda end: _worth(end.curve[-1], limits))
    return replace(
        best,
        curve=best.curve if best is ends[0] else (*curve, *best.curve),
        met=best.curve[-1].sqnr_db >= limits.target_db,
        runs=measure.runs,
    )


def _worth(end: Step, limits: Limits) -> tuple[bool, bool, float, float]:
    """Usable before fast, fast enough before accurate, accurate enough before faster still."""
    near = min(end.sqnr_db, limits.target_db)
    return end.sqnr_db >= limits.useless_db, end.share >= limits.min_share, near, end.share


def _best_start(measure: _Measure, ranges: Ranges) -> tuple[dict[str, float], float]:
    """The best of the plans in which one and the same calibrator gave all ranges."""
    most = max((len(offered) for offered in ranges.values()), default=0)
    plans = [
        {group: offered[min(i, len(offered) - 1)] for group, offered in ranges.items()} for i in range(max(most, 1))
    ]
    tried = [(measure.noise(plan), i) for i, plan in enumerate(plans)]
    noise, best = min(tried)
    return plans[best], noise


def _refine(
    measure: _Measure, ranges: Ranges, amax: Mapping[str, float], alone: Mapping[str, float], most: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Lets the noisiest groups try the other ranges; returns the best range of each group and its noise."""
    best, noise = dict(amax), dict(alone)
    for group in sorted(alone, key=lambda name: -alone[name])[:most]:
        for value in dict.fromkeys(ranges[group]):
            found = noise[group] if value == best[group] else measure.noise({group: value}, few=True)
            if found < noise[group]:
                best[group], noise[group] = value, found
    return best, noise


def _restore(
    measure: _Measure,
    amax: Mapping[str, float],
    alone: Mapping[str, float],
    macs: Mapping[str, int],
    share: Callable[[Collection[str]], float],
    noise: float,
    limits: Limits,
    curve: list[Step],
) -> list[str]:
    """Rounds of predicting and running until the target or the floor is met; appends to `curve`."""
    order = sorted(amax, key=lambda group: -alone[group] / max(macs[group], 1))
    total = max(sum(alone.values()), NOTHING)
    restored: list[str] = []
    best: tuple[float, list[str], Step] = (noise, [], curve[-1])
    for _ in range(ROUNDS):
        if noise <= power(limits.target_db):
            break
        left = max(sum(alone[group] for group in amax if group not in restored), total * 1e-9)
        scale = noise / left  # how much more noise there really is than the sum predicts
        chosen = _choose(order, alone, restored, scale, power(limits.target_db), lambda r: share(r) >= limits.min_share)
        if len(chosen) == len(restored) and noise > power(limits.useless_db):
            chosen = _choose(order, alone, restored, scale, power(limits.useless_db), lambda r: True)
        if len(chosen) == len(restored):
            break
        restored = chosen
        noise = measure.noise({group: value for group, value in amax.items() if group not in restored})
        curve.append(Step(share(restored), sqnr_db(noise)))
        best = min(best, (noise, restored, curve[-1]), key=lambda tried: tried[0])
    if best[1] != restored:  # noise of layers can cancel: what was tried first may be the best
        curve.append(best[2])
    return best[1]


def _choose(
    order: Sequence[str],
    alone: Mapping[str, float],
    restored: Sequence[str],
    scale: float,
    wanted: float,
    allowed: Callable[[Collection[str]], bool],
) -> list[str]:
    """More groups of `order` until the predicted noise is down to `wanted`; one that is not allowed is passed over."""
    chosen = list(restored)
    left = sum(noise for group, noise in alone.items() if group not in chosen) * scale
    for group in order:
        if left <= wanted and len(chosen) > len(restored):
            break
        if group in chosen or not allowed([*chosen, group]):
            continue
        chosen.append(group)
        left -= alone[group] * scale
    return chosen


class _Measure:
    """Noise-to-signal power of a plan at the float outputs: pooled over samples, the mean over outputs."""

    def __init__(self, simulator: Simulator, feeds: Sequence[Feeds], few: int, advance: Advance | None) -> None:
        self.few = min(few, len(feeds))
        self.runs = len(feeds)
        self._simulator, self._feeds, self._advance = simulator, feeds, advance
        self._reference = [simulator.run(feed, {}) for feed in feeds]
        self._energy = [{name: energy(outputs[name]) for name in simulator.outputs} for outputs in self._reference]

    def noise(self, amax: Mapping[str, float], *, few: bool = False) -> float:
        count = self.few if few else len(self._feeds)
        error = dict.fromkeys(self._simulator.outputs, 0.0)
        for feed, reference in zip(self._feeds[:count], self._reference, strict=False):
            outputs = self._simulator.run(feed, {name: Use(DType.INT8, value) for name, value in amax.items()})
            for name in error:
                error[name] += energy(np.asarray(outputs[name], np.float64) - reference[name])
        self.runs += count
        if self._advance is not None:
            self._advance(count)
        signal = {name: sum(row[name] for row in self._energy[:count]) for name in error}
        ratios = [error[name] / signal[name] for name in error if signal[name] > 0]
        return sum(ratios) / len(ratios) if ratios else 0.0


def energy(values: NDArray[Any]) -> float:
    """Sum of squares, in double precision."""
    flat = np.asarray(values, np.float64).ravel()
    return float(flat @ flat)


def power(db: float) -> float:
    """Noise-to-signal power of an SQNR in dB."""
    return 10 ** (-db / 10)


def sqnr_db(noise: float) -> float:
    """SQNR in dB of a noise-to-signal power; 200 stands for equal."""
    return -10 * math.log10(max(noise, NOTHING))
