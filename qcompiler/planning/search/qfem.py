"""QFeM: which layers stay in high precision because single tokens of their input spike.

A layer's ratio is the mean over samples of (largest token / median token), a token being measured by its largest |x|
(Yang et al. 2024, "Mitigating Quantization Errors Due to Activation Spikes in GLU-Based LLMs", §4.1). Layers with a
ratio above alpha are not quantized; layers that read one activation decide together. The paper leaves open how alpha is
found. Here the observed ratios are walked from the largest down, the error of the model's outputs is measured at each
step against the share of multiply-accumulates that stays high, and the walk goes on as long as it pays. Where the user
gave a metric, it is measured at each step too, and what it loses decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import decibel
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.search.safety_net import Prices, best_start
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulation, Simulator, Use
from qcompiler.recipe.tables import QfemTable
from qcompiler.target import DType
from qcompiler.verification.metric import Score

RULE = "qfem"
LEAST = 4.0  # a ratio that layers without any spike reach too
SLOPE_DB = 0.5  # what each percent of the multiply-accumulates that stays high must gain
MOST_STEPS = 10
LEAST_LOSS = 1e-3  # relative loss of a metric below which samples differ more than thresholds do

Figure = Callable[[Sequence[str]], float]


@dataclass(frozen=True)
class Scoring:
    """The user's metric, as the walk asks for it.

    Attributes:
        name: what reports call it.
        float_score: of the float model.
        higher_is_better: its direction.
        measure: its value with the readers of these activations high and all others quantized.
    """

    name: str
    float_score: float
    higher_is_better: bool
    measure: Figure

    def loss(self, score: float) -> float:
        """What a score has lost, relative to the float score; 0 where it is no worse, infinite for NaN."""
        lost = self.float_score - score if self.higher_is_better else score - self.float_score
        if math.isnan(lost):
            return math.inf
        return max(0.0, lost) / max(abs(self.float_score), 1e-12)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold that was tried.

    Attributes:
        alpha: layers with a larger ratio stay high.
        share: their share of the linear multiply-accumulates, 0..1.
        sqnr_db: of the outputs, everything else being quantized; None where it was not measured.
        layers: how many activations that are.
        score: the user's metric; None without one, or where it was not measured.
        loss: what it has lost relative to float, 0 and more; likewise.
    """

    alpha: float
    share: float
    sqnr_db: float | None
    layers: int
    score: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Spared:
    """What QFeM decided.

    Attributes:
        alpha: the threshold; None where no layer stays high.
        why: how it was found.
        ratios: of each activation.
        tensors: activations whose readers stay high, the largest ratio first.
        curve: thresholds tried, from sparing nothing on.
        metric: what the scores in the curve are of.
    """

    alpha: float | None
    why: str
    ratios: Mapping[str, float]
    tensors: tuple[str, ...] = ()
    curve: tuple[Threshold, ...] = ()
    metric: str | None = None

    def reason(self, tensor: str) -> str:
        """Why the readers of one of `tensors` stay high."""
        return f"its largest token is {self.ratios[tensor]:.4g} times its median one, above alpha {self.alpha:.4g}"


def fixed(ratios: Mapping[str, float], macs: Mapping[str, int], total: int, alpha: float) -> Spared:
    """Every activation with a ratio above a threshold that the user gave."""
    chosen = [name for name in _ordered(ratios) if ratios[name] > alpha]
    point = Threshold(alpha, _share(chosen, macs, total), None, len(chosen))
    return Spared(alpha, "given by the user", dict(ratios), tuple(chosen), (point,))


def find_threshold(
    ratios: Mapping[str, float],
    macs: Mapping[str, int],
    total: int,
    measure: Figure,
    *,
    budget: float,
    target_db: float,
    metric: Callable[[], Scoring] | None = None,
    holds: Callable[[Sequence[str]], bool] | None = None,
) -> Spared:
    """Walks the observed ratios and stops at the target, at the knee of the curve, or at the budget.

    With a metric, the knee is that of its loss: ten times the logarithm of it stands where otherwise the power of the
    noise does, since a loss grows with the power. Where no step loses `LEAST_LOSS`, the metric cannot tell them apart,
    and the noise decides.

    Args:
        ratios: of each activation, 1 and more.
        macs: multiply-accumulates of its readers.
        total: those of the whole model.
        measure: SQNR in dB of the outputs with the readers of these activations high and all others quantized.
        budget: share of the multiply-accumulates that may stay high, 0..1.
        target_db: SQNR that is good enough.
        metric: gives the user's metric, if there is one; called where it is needed, since the float score costs a run.
        holds: whether the user's own goal holds with the readers of these activations high; the walk ends there.

    Returns:
        The smallest choice from which no larger one gains `SLOPE_DB` per percent.
    """
    order = [name for name in _ordered(ratios) if ratios[name] > LEAST]
    affordable = [n for n in range(len(order) + 1) if _share(order[:n], macs, total) <= budget + 1e-9]
    curve: list[Threshold] = []
    scoring: Scoring | None = None
    held = False
    for count in _steps(affordable[-1]):
        point = _point(order, count, ratios, macs, total, measure)
        enough = point.sqnr_db is not None and point.sqnr_db >= target_db
        held = not enough and holds is not None and bool(order) and holds(order[:count])
        enough = enough or held
        if metric is not None and order and (curve or not enough):
            scoring = scoring or metric()
            score = scoring.measure(order[:count])
            point = replace(point, score=score, loss=scoring.loss(score))
        curve.append(point)
        if enough:
            break
    told = [point.loss for point in curve if point.loss is not None]
    by_metric = len(told) == len(curve) and max(told) > LEAST_LOSS
    best = curve[-1] if held else _knee(curve, by_metric=by_metric)
    name = scoring.name if scoring is not None else None
    if not best.layers:
        judge = f"of {scoring.name}'s loss " if scoring is not None and by_metric else ""
        why = f"sparing layers gains less than {SLOPE_DB:g} dB {judge}a percent"
        if len(curve) == 1:
            met = held or (curve[0].sqnr_db is not None and curve[0].sqnr_db >= target_db)
            why = "the outputs meet the target without it" if met else "no layer's tokens spike"
        return Spared(None, why, dict(ratios), (), tuple(curve), name)
    reached = held or (best.sqnr_db is not None and best.sqnr_db >= target_db)
    limit = best is curve[-1] and not reached
    why = "the target is reached" if reached else "the budget ends here" if limit else "more layers gain too little"
    if scoring is not None and by_metric:
        why += f", by {scoring.name}"
    return Spared(best.alpha, why, dict(ratios), tuple(order[: best.layers]), tuple(curve), name)


def _ordered(ratios: Mapping[str, float]) -> list[str]:
    return sorted(ratios, key=lambda name: (-ratios[name], name))


def _share(names: Sequence[str], macs: Mapping[str, int], total: int) -> float:
    return sum(macs[name] for name in names) / total if total else 0.0


def _steps(most: int) -> list[int]:
    """How many layers to spare: 0, 1, 2, 3, then in growing steps up to the most."""
    steps, at = [0], 1
    while at < most and len(steps) < MOST_STEPS:
        steps.append(at)
        at += max(1, at // 3)
    return [*steps, most] if most else steps


def _point(
    order: Sequence[str], count: int, ratios: Mapping[str, float], macs: Mapping[str, int], total: int, measure: Figure
) -> Threshold:
    """A threshold halfway between the last ratio that is spared and the first that is not, by their product."""
    above = ratios[order[count - 1]] if count else None
    below = ratios[order[count]] if count < len(order) else LEAST
    alpha = (above * below) ** 0.5 if above is not None else max(ratios.values(), default=1.0)
    chosen = order[:count]
    return Threshold(alpha, _share(chosen, macs, total), measure(chosen), count)


def _knee(curve: Sequence[Threshold], *, by_metric: bool) -> Threshold:
    best = curve[0]
    for point in curve[1:]:
        gained = _worth(point, by_metric=by_metric) - _worth(best, by_metric=by_metric)
        if gained > 0 and gained >= SLOPE_DB * 100 * (point.share - best.share):
            best = point
    return best


def _worth(point: Threshold, *, by_metric: bool) -> float:
    """In dB: SQNR, or how small the loss is."""
    if not by_metric or point.loss is None:
        return point.sqnr_db or 0.0
    return decibel(min(point.loss, 1e9), LEAST_LOSS)


Judge = Callable[[Callable[[Feeds], Mapping[str, Any]]], Score]
Scores = Mapping[frozenset[str] | None, Score]

UNKNOWN: Final[Scores] = MappingProxyType({})
NOTHING = Spared(None, "off", {})


def spare(
    simulation: Simulation | None,
    feeds: Sequence[Feeds],
    offers: Mapping[str, Sequence[Use]],
    prices: Prices,
    ratios: Mapping[str, float],
    wanted: QfemTable,
    target_db: float,
    judge: Judge | None = None,
    known: Scores = UNKNOWN,
    holds: Callable[[Mapping[str, Use]], bool] | None = None,
) -> tuple[Spared, Scores]:
    """Chooses the activations whose readers stay in high precision because single tokens spike in them.

    With several formats to choose from, or FP8 alone, nothing is searched: the search over formats has a better answer
    to a spike than high precision.

    Args:
        simulation: the layers; None where there are none.
        feeds: samples to measure on.
        offers: formats and ranges, by activation.
        prices: multiply-accumulates.
        ratios: largest token over median token, by activation.
        wanted: the recipe's table.
        target_db: SQNR that is good enough.
        judge: the user's metric, given a function that runs the model; None without one.
        known: its scores so far, by what was spared (None: the float model).
        holds: whether a plan holds the user's own goal; None where that is dB.

    Returns:
        The choice, and all scores that are known by now.
    """
    seen = {name: ratios[name] for name in offers if name in ratios}
    linear = sum(prices.macs[name] for name in offers)
    if simulation is None or wanted.alpha == "off" or not seen:
        return NOTHING, known
    if not isinstance(wanted.alpha, str):
        return fixed(seen, prices.macs, linear, wanted.alpha), known
    if any(use.dtype is not DType.INT8 for uses in offers.values() for use in uses):
        return Spared(None, "left to the choice of formats", seen), known
    simulator, scores = simulation.simulator, dict(known)
    measure = Measure(simulator, feeds, len(feeds), None)
    plan, _ = best_start(measure, offers, DType.INT8)

    def but(spared: Sequence[str]) -> dict[str, Use]:
        return {name: use for name, use in plan.items() if name not in spared}

    def quantized(spared: Sequence[str]) -> float:
        return decibel(measure.noise(but(spared)))

    scoring = None if judge is None else _scoring(simulator, judge, but, scores)
    spared = find_threshold(
        seen,
        prices.macs,
        linear,
        quantized,
        budget=wanted.budget,
        target_db=target_db,
        metric=scoring,
        holds=None if holds is None else lambda spared: holds(but(spared)),
    )
    return spared, scores


def refusals(spared: Spared, found: Iterable[Candidate]) -> list[Refusal]:
    """The candidates that stay in high precision for it."""
    return [
        Refusal(one.node, one.op, RULE, spared.reason(one.activation))
        for one in found
        if one.activation in spared.tensors
    ]


def stored(spared: Spared, groups: Mapping[str, Sequence[Candidate]], wanted: QfemTable) -> dict[str, int | None]:
    """Of the spared layers whose weights are stored as INT8 all the same, by name: the axis that has the scales."""
    return {one.node: one.axis for name in spared.tensors for one in groups[name]} if wanted.weights == "int8" else {}


def _scoring(
    simulator: Simulator,
    judge: Judge,
    but: Callable[[Sequence[str]], Mapping[str, Use]],
    known: dict[frozenset[str] | None, Score],
) -> Callable[[], Scoring]:
    """The metric on the simulator; scores that are known are not measured again, others become known."""

    def score(spared: Sequence[str] | None) -> Score:
        key = None if spared is None else frozenset(spared)
        if key not in known:
            uses = {} if spared is None else but(spared)
            known[key] = judge(lambda feeds: simulator.infer(dict(feeds), uses))
        return known[key]

    def scoring() -> Scoring:
        found = score(None)
        return Scoring(found.name, found.float_score, found.higher_is_better, lambda spared: score(spared).float_score)

    return scoring


def record_of(spared: Spared, outliers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the manifest says of QFeM; None where it was off.

    Args:
        spared: what was decided.
        outliers: the manifest's records of activations, for the tokens that spike.
    """
    if not spared.ratios:
        return None
    tokens = {row["tensor"]: row for row in outliers}
    return {
        "alpha": spared.alpha,
        "rule": spared.why,
        "metric": spared.metric,
        "curve": [dataclasses.asdict(point) for point in spared.curve],
        "chosen": [
            {
                "tensor": name,
                "ratio": spared.ratios[name],
                "readers": tokens.get(name, {}).get("readers", []),
                "tokens": tokens.get(name, {}).get("top_tokens", []),
            }
            for name in spared.tensors
        ],
    }
