"""QFeM on a model: the ratios of its layers, and the error of the outputs as more and more of them are spared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from qcompiler import qfem
from qcompiler.decide import Candidate, Refusal
from qcompiler.qfem import Scoring, Spared
from qcompiler.recipe import Qfem
from qcompiler.safety import Measure, Prices, best_start
from qcompiler.signature import Feeds
from qcompiler.simulate import Simulation, Simulator, Use
from qcompiler.sqnr import decibel
from qcompiler.target import DType
from qcompiler.verification import Score

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
    wanted: Qfem,
    target_db: float,
    judge: Judge | None = None,
    known: Scores = UNKNOWN,
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

    Returns:
        The choice, and all scores that are known by now.
    """
    seen = {name: ratios[name] for name in offers if name in ratios}
    linear = sum(prices.macs[name] for name in offers)
    if simulation is None or wanted.alpha == "off" or not seen:
        return NOTHING, known
    if not isinstance(wanted.alpha, str):
        return qfem.fixed(seen, prices.macs, linear, wanted.alpha), known
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
    spared = qfem.search(
        seen, prices.macs, linear, quantized, budget=wanted.budget, target_db=target_db, metric=scoring
    )
    return spared, scores


def refusals(spared: Spared, found: Iterable[Candidate]) -> list[Refusal]:
    """The candidates that stay in high precision for it."""
    return [
        Refusal(one.node, one.op, qfem.RULE, spared.reason(one.activation))
        for one in found
        if one.activation in spared.tensors
    ]


def stored(spared: Spared, groups: Mapping[str, Sequence[Candidate]], wanted: Qfem) -> dict[str, int | None]:
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
