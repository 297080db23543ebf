"""Alphas judged by the outputs of the model, for the layers whose error reaches them most.

A layer's own error does not tell what it costs: in BERT the rounding of one token in one layer can be worth more than
that of all others together. So the results of all layers, as they would be with the alphas chosen so far, are given to
the model; halving finds the groups that make most of the noise, and only for those alphas are tried again, by the
outputs. Every sample is judged with the ranges and scales that the other samples would have given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import calibrators
from qcompiler.numerics.rounding import Format
from qcompiler.numerics.sqnr import gain_db
from qcompiler.outliers.smooth_quant.alpha import ALPHAS, WORTH_DB, Choice, Layers, rounded
from qcompiler.planning.simulation.probe import Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Results = list[list[NDArray[np.float32]]]


HEAVY = 0.04  # of the noise of all groups together, from which a group is looked at
RANGES: Mapping[Format, tuple[str, ...]] = {
    "int8": ("percentile{p=99.99}", "minmax"),
    "fp8": ("mse{format=fp8}", "minmax"),
}


class _Budget:
    """How many times the outputs may still be looked at."""

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, count: int) -> bool:
        """Takes that many if they are there."""
        if count > self.left:
            return False
        self.left -= count
        return True


def refine(
    probe: Probe, found: Mapping[str, tuple[Layers, Choice]], free: Sequence[str], most: int
) -> dict[str, Choice]:
    """Better choices for the groups that matter.

    Args:
        probe: runs the model with results given; knows all of `found`.
        found: the layers of each group, and what was chosen by their own error.
        free: the groups whose alpha may change.
        most: how many times the outputs may be looked at.

    Returns:
        By group, what is better.
    """
    budget = _Budget(most)
    better = {}
    for name in _heavy(probe, found, free, budget):
        layers, local = found[name]
        alphas = [None, *sorted({*ALPHAS[1:], *([] if local.alpha is None else [local.alpha])})]
        if not budget.spend(len(RANGES[layers.format]) * len(alphas)):
            break
        better[name] = _choose(probe, name, layers, local, alphas)
    return better


def least_looks(count: int, format: Format) -> int:
    """How many looks halve so many groups down to one and try alphas for that: fewer are spent in vain."""
    halving = 1 + 2 * max(count - 1, 0).bit_length()
    return halving + len(RANGES[format]) * (1 + len(ALPHAS[1:]))


def _heavy(probe: Probe, found: Mapping[str, tuple[Layers, Choice]], free: Sequence[str], budget: _Budget) -> list[str]:
    """The groups that make the most noise, the worst first."""
    results = {}
    for name in free:
        layers, choice = found[name]
        results[name] = _results(probe, name, layers, choice.alpha, RANGES[layers.format][0])
    whole = 0.0
    heavy: dict[str, float] = {}
    waiting = [list(free)] if free else []
    while waiting and budget.spend(1):
        part = waiting.pop(0)
        noise = probe.noise({name: results[name] for name in part})
        whole = whole or noise
        if noise < HEAVY * whole:
            continue
        if len(part) == 1:
            heavy[part[0]] = noise
        else:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return sorted(heavy, key=lambda name: -heavy[name])


def _choose(probe: Probe, name: str, layers: Layers, local: Choice, alphas: Sequence[float | None]) -> Choice:
    """The alpha with the least noise, everything else being float."""
    noises = {alpha: _noise(probe, name, layers, alpha) for alpha in alphas}
    best = min(noises, key=lambda alpha: noises[alpha])
    gain = gain_db(noises[None], noises[best])
    if best is None or gain < WORTH_DB:
        return replace(local, alpha=None, scales=np.ones(len(layers.channels), np.float32), gain_db=0.0)
    return replace(local, alpha=best, scales=layers.scales(best), gain_db=gain)


def _noise(probe: Probe, name: str, layers: Layers, alpha: float | None) -> float:
    """Noise at the outputs of the model with the better of a clipped and the whole range."""
    return min(probe.noise({name: _results(probe, name, layers, alpha, text)}) for text in RANGES[layers.format])


def _results(probe: Probe, name: str, layers: Layers, alpha: float | None, calibrator: str) -> Results:
    """What the layers of a group would give on each feed, had its fold of the data not been seen."""
    known = {}
    for fold in dict.fromkeys(probe.folds):
        scales, seen = layers.known(alpha, fold if fold in layers.others else None)
        known[fold] = scales, calibrators.parse(calibrator).range(seen), layers.stored(scales)
    results = []
    for x, fold in zip(probe.inputs[name], probe.folds, strict=True):
        scales, amax, stored = known[fold]
        flat = rounded(x.reshape(-1, x.shape[-1]) / scales, amax, layers.format)
        results.append([(flat @ weight).reshape(*x.shape[:-1], weight.shape[1]) for weight in stored])
    return results
