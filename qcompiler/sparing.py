"""QFeM on a model: the ratios of its layers, and the error of the outputs as more and more of them are spared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qcompiler import qfem
from qcompiler.qfem import Spared
from qcompiler.recipe import Qfem
from qcompiler.safety import Measure, Prices, best_start, sqnr_db
from qcompiler.session import Feeds
from qcompiler.simulate import Simulator, Use
from qcompiler.target import DType

NOTHING = Spared(None, "off", {})


def spare(
    simulator: Simulator,
    feeds: Sequence[Feeds],
    offers: Mapping[str, Sequence[Use]],
    prices: Prices,
    ratios: Mapping[str, float],
    wanted: Qfem,
    target_db: float,
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
    """
    known = {name: ratios[name] for name in offers if name in ratios}
    linear = sum(prices.macs[name] for name in offers)
    if wanted.alpha == "off" or not known:
        return NOTHING
    if not isinstance(wanted.alpha, str):
        return qfem.fixed(known, prices.macs, linear, wanted.alpha)
    if any(use.dtype is not DType.INT8 for uses in offers.values() for use in uses):
        return Spared(None, "left to the choice of formats", known)
    measure = Measure(simulator, feeds, len(feeds), None)
    plan, _ = best_start(measure, offers, DType.INT8)

    def quantized(spared: Sequence[str]) -> float:
        return sqnr_db(measure.noise({name: use for name, use in plan.items() if name not in spared}))

    return qfem.search(known, prices.macs, linear, quantized, budget=wanted.budget, target_db=target_db)


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
