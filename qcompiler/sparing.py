"""QFeM on a model: the ratios of its layers, and the error of the outputs as more and more of them are spared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qcompiler import qfem
from qcompiler.qfem import Scoring, Spared
from qcompiler.recipe import Qfem
from qcompiler.safety import Measure, Prices, best_start
from qcompiler.signature import Feeds
from qcompiler.simulate import Simulator, Use
from qcompiler.sqnr import decibel
from qcompiler.target import DType
from qcompiler.verification import Score

Judge = Callable[[Callable[[Feeds], Mapping[str, Any]]], Score]
Scores = dict[frozenset[str] | None, Score]

NOTHING = Spared(None, "off", {})


def spare(
    simulator: Simulator,
    feeds: Sequence[Feeds],
    offers: Mapping[str, Sequence[Use]],
    prices: Prices,
    ratios: Mapping[str, float],
    wanted: Qfem,
    target_db: float,
    judge: Judge | None = None,
    known: Scores | None = None,
) -> Spared:
    """Chooses the activations whose readers stay in high precision because single tokens spike in them.

    With several formats to choose from, or FP8 alone, nothing is searched: the search over formats has a better answer
    to a spike than high precision.

    Args:
        simulator: the float model with a switch per group.
        feeds: samples to measure on.
        offers: formats and ranges, by activation.
        prices: multiply-accumulates.
        ratios: largest token over median token, by activation.
        wanted: the recipe's table.
        target_db: SQNR that is good enough.
        judge: the user's metric, given a function that runs the model; None without one.
        known: its scores so far, by what was spared (None: the float model); they are added to.
    """
    seen = {name: ratios[name] for name in offers if name in ratios}
    linear = sum(prices.macs[name] for name in offers)
    if wanted.alpha == "off" or not seen:
        return NOTHING
    if not isinstance(wanted.alpha, str):
        return qfem.fixed(seen, prices.macs, linear, wanted.alpha)
    if any(use.dtype is not DType.INT8 for uses in offers.values() for use in uses):
        return Spared(None, "left to the choice of formats", seen)
    measure = Measure(simulator, feeds, len(feeds), None)
    plan, _ = best_start(measure, offers, DType.INT8)

    def but(spared: Sequence[str]) -> dict[str, Use]:
        return {name: use for name, use in plan.items() if name not in spared}

    def quantized(spared: Sequence[str]) -> float:
        return decibel(measure.noise(but(spared)))

    scoring = None if judge is None else _scoring(simulator, judge, but, {} if known is None else known)
    return qfem.search(seen, prices.macs, linear, quantized, budget=wanted.budget, target_db=target_db, metric=scoring)


def _scoring(
    simulator: Simulator, judge: Judge, but: Callable[[Sequence[str]], Mapping[str, Use]], known: Scores
) -> Callable[[], Scoring]:
    """The metric on the simulator; scores that are known are not measured again."""

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


def rows(spared: Spared, outliers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the manifest says of QFeM; None where it was off.

    Args:
        spared: what was decided.
        outliers: the manifest's rows of activations, for the tokens that spike.
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
