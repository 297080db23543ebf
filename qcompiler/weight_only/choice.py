"""The choice among ways to round one weight, by rows that nothing was fitted to.

A weight of K input channels is fitted to rows of its inputs; the fewer there are, the better the fit and the less it
means. So each way is fitted to some rows and judged by others (`row_trials`), on at most 256 outputs of the layer, at
even distances: outputs are rounded independently of each other, so the rest can wait until it is known how.

How far GPTQ shrinks its Hessian is chosen likewise, once for all layers that read an activation, among

    σ     the share of the Hessian that is chance (`hessian.Moments.shrinkage`), the least error in the Frobenius norm
    √σ    that norm goes by the strongest directions, and GPTQ moves errors into the weakest, which are least sure
    1     nothing is made up for: each channel counts by its power
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.numerics import blocks
from qcompiler.statistics.rows import thinned
from qcompiler.weight_only import awq, gptq

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.numerics.blocks import Blocks, Format
    from qcompiler.statistics.hessian import Moments
    from qcompiler.statistics.rows import Rows
    from qcompiler.weight_only.row_trials import RowTrials

    Floats = NDArray[np.float32]


SHRINKAGES: tuple[Callable[[float], float], ...] = (lambda share: share, math.sqrt, lambda share: 1.0)


class Way(Enum):
    """A way to round a weight."""

    NEAREST = "rtn"
    MSE = "mse"
    CLIP = "awq"
    GPTQ = "gptq"


@dataclass(frozen=True)
class Settings:
    """What is asked of all layers.

    Attributes:
        half: scales are numbers that FP16 holds exactly.
        damp: of GPTQ, see `gptq.factor`, with the Hessian as it is; None to choose how far it is shrunk.
        act_order: of GPTQ.
    """

    half: bool
    damp: float | None = None
    act_order: bool = True

    @property
    def shrinkages(self) -> Sequence[Callable[[float], float]]:
        """Those to choose among, each as a function of the share of the Hessian that is chance."""
        return SHRINKAGES if self.damp is None else (lambda share: 0.0,)

    def factor(self, moments: Moments, size: int | None, rule: Callable[[float], float]) -> gptq.Factor:
        """A Hessian made ready for GPTQ."""
        damp = gptq.DAMP if self.damp is None else self.damp
        shrink = rule(moments.shrinkage)
        return gptq.factor(moments.hessian, size=size, damp=damp, shrink=shrink, act_order=self.act_order)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and its form: float32 [K, N], input channels that share a scale, `int4` or `int8`."""

    weight: Floats
    size: int | None
    format: Format

    def thin(self) -> Layer:
        """At most `rows.COLUMNS` of its outputs."""
        return Layer(thinned(self.weight), self.size, self.format)


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """What came out for a layer.

    Attributes:
        blocks: the integers and their scales.
        way: how they were rounded.
        error: noise-to-signal power of the outputs in the trials, estimated from some of the outputs; None without
            rows, or where the outputs are zero.
        shrink: how far GPTQ shrank the Hessian; None where it did not round the weight, or was told how to damp.
    """

    blocks: Blocks
    way: Way
    error: float | None
    shrink: float | None = None


@dataclass(frozen=True, eq=False)
class Shrunk:
    """How far the Hessian of an activation is shrunk.

    Attributes:
        factor: of all rows that may be fitted to.
        shrink: how far; None where the user said how to damp.
        errors: by layer, noise-to-signal power of its outputs in the trials; None where the outputs are zero.
    """

    factor: gptq.Factor
    shrink: float | None
    errors: Mapping[str, float | None]


def shrunk(layers: Mapping[str, Layer], moments: Sequence[Moments], seen: RowTrials, settings: Settings) -> Shrunk:
    """The shrinkage with which the layers that read an activation err least, all of one block size.

    Args:
        layers: by name, one at least.
        moments: of each fold, one at least.
        seen: rows of the activation; with several folds, each trial judges by one of them.
        settings: what is asked for.
    """
    thin = {name: one.thin() for name, one in layers.items()}
    size = next(iter(layers.values())).size
    total = sum(moments[1:], moments[0])
    fits = _fits(moments, total, len(seen.trials))
    best, least = settings.shrinkages[0], math.inf
    errors: dict[str, float | None] = dict.fromkeys(layers)
    kept: gptq.Factor | None = None
    tried: set[tuple[float, ...]] = set()
    for rule in settings.shrinkages:
        shares = tuple(rule(fit.shrinkage) for fit in fits)
        if shares in tried:
            continue
        tried.add(shares)
        powers = {name: np.zeros(2) for name in layers}
        for fit, trial in zip(fits, seen.trials, strict=True):
            factor = settings.factor(fit, size, rule)
            for name, one in thin.items():
                stored = gptq.gptq(one.weight, factor, size=size, format=one.format, half=settings.half)
                powers[name] += _powers(one.weight, stored, trial.judge)
        found = {name: _ratio(*power) for name, power in powers.items()}
        together = sum(error for error in found.values() if error is not None)
        if together < least:
            best, errors, least = rule, found, together
            kept = factor if all(fit is total for fit in fits) else None
    shrink = None if settings.damp is not None else best(total.shrinkage)
    return Shrunk(kept or settings.factor(total, size, best), shrink, errors)


def choose(
    layer: Layer, ways: Sequence[Way], seen: RowTrials | None, known: tuple[Shrunk, str] | None, settings: Settings
) -> RoundedWeight:
    """Rounds a weight the way that errs least in the trials, fitted to all rows that may be fitted to.

    Args:
        layer: the weight.
        ways: the ways to choose among, the simplest first: it wins where two err alike.
        seen: rows of what the layer reads; None without data, and then there is one way, which needs none.
        known: what `shrunk` found for the activation, and the name of the layer there; None where GPTQ is not in
            `ways`.
        settings: what is asked for.
    """
    errors: dict[Way, float | None] = {}
    for way in ways:
        if way is Way.GPTQ and known is not None:
            errors[way] = known[0].errors[known[1]]
        elif seen is not None:
            errors[way] = error_of(layer, way, seen, settings.half)
    way = min(ways, key=lambda one: math.inf if errors.get(one) is None else errors[one] or 0.0)
    if way is Way.GPTQ and known is not None:
        stored = gptq.gptq(layer.weight, known[0].factor, size=layer.size, format=layer.format, half=settings.half)
        return RoundedWeight(stored, way, errors.get(way), known[0].shrink)
    rows = None if seen is None else seen.rows
    return RoundedWeight(_rounded(layer, way, rows, settings.half), way, errors.get(way))


def error_of(layer: Layer, way: Way, seen: RowTrials, half: bool) -> float | None:
    """Noise-to-signal power of a layer's outputs in the trials, for any way but GPTQ; None where they are zero.

    Args:
        layer: the weight.
        way: how it is rounded.
        seen: rows of what it reads.
        half: scales are numbers that FP16 holds exactly.
    """
    thin, powers = layer.thin(), np.zeros(2)
    fixed = None if way is Way.CLIP else _rounded(thin, way, None, half)
    for trial in seen.trials:
        powers += _powers(thin.weight, fixed or _rounded(thin, way, trial.fitted, half), trial.judge)
    return _ratio(*powers)


def _fits(moments: Sequence[Moments], total: Moments, trials: int) -> list[Moments]:
    """What each trial fits to; an activation that one fold does not reach has a single trial, with all rows."""
    if len(moments) == 1 or trials != len(moments):
        return [total] * trials
    others = [[one for one in moments if one is not left] for left in moments]
    return [sum(some[1:], some[0]) for some in others]


def _rounded(layer: Layer, way: Way, rows: Rows | None, half: bool) -> Blocks:
    if way is Way.CLIP and rows is not None:
        return awq.clip(layer.weight, rows, size=layer.size, format=layer.format, half=half)
    if way is Way.NEAREST:
        return blocks.round_to_nearest(layer.weight, layer.size, layer.format, half=half)
    return blocks.clip_by_error(layer.weight, layer.size, layer.format, half=half)


def _powers(weight: Floats, stored: Blocks, rows: Rows) -> NDArray[np.float64]:
    """Noise and signal of the outputs over some rows."""
    found = (rows.values @ one for one in (blocks.dequantize(stored) - weight, weight))
    return np.array([float(np.dot(rows.counts, np.einsum("rn,rn->r", one, one))) for one in found])


def _ratio(noise: float, signal: float) -> float | None:
    return float(noise / signal) if signal > 0 else None
