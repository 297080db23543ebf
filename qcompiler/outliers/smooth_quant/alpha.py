"""Choosing the alpha of one group of layers, by what the layers would compute with it.

Rows of the activation that were recorded once are divided, quantized with one static range, and multiplied with the
weights after these were multiplied and quantized; the result is compared with the float product. Errors count relative
to their row, as the norm behind the layer makes them. Where single tokens spike, that says little: everybody attends to
such a token, and what its norm leaves of the error decides. Those layers are judged again by the outputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import calibrators
from qcompiler.calibrators import mse
from qcompiler.calibrators.base import Calibrator
from qcompiler.calibrators.minmax import MinMax
from qcompiler.numerics.rounding import LARGEST, Format, dequantize, quantize, quantize_weight
from qcompiler.numerics.sqnr import gain_db
from qcompiler.passes.absorb.absorb import largest_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.rows import Rows, thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray


ALPHAS = (0.3, 0.5, 0.7, 0.85, 1.0)  # tried first; then halfway between the best one and its neighbours
WORTH_DB = 0.2  # what a layer must gain for its graph to be touched
SMALLEST = 1e-5  # of the largest channel: dead channels are not blown up
SHARE = 0.1  # of the mean power of rows, below which the error of a row counts no more


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen for a group.

    Attributes:
        alpha: None where nothing is gained.
        scales: what the activation is divided by, float32 [C]; ones without an alpha.
        gain_db: by how much the error falls.
        spike: power of the largest row of the result over that of the median row.
        errors: of the alphas that were tried.
    """

    alpha: float | None
    scales: NDArray[np.float32]
    gain_db: float
    spike: float = 1.0
    errors: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a group with what they read.

    Attributes:
        rows: recorded rows of the activation.
        weights: of each layer, float32 [C, outputs].
        per_channel: of each layer, whether its weight has a scale per output.
        channels: largest |x| of each channel over all data, float64 [C].
        others: by fold, the same without the samples of the fold; empty: rows are judged with `channels`.
        classes: channels of one number need one scale, int64 [C]; None where all are free.
        calibrator: how the range will be chosen; `auto` takes the better of the least squared error and all of it.
        format: what they will compute in.
    """

    rows: Rows
    weights: Sequence[NDArray[np.float32]]
    per_channel: Sequence[bool]
    channels: NDArray[np.float64]
    classes: NDArray[np.int64] | None = None
    calibrator: str = "auto"
    format: Format = "int8"
    others: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)

    def scales(self, alpha: float, without: int | None = None) -> NDArray[np.float32]:
        """The scales of equation 4 for this alpha; `without` a fold, as they would be had it not been seen."""
        channels = self.channels if without is None else self.others[without]
        return smooth_scales(channels, self._peaks, alpha, self.classes)

    def choose(self, alphas: Sequence[float]) -> Choice:
        """The alpha with the least error; one alone was asked for by the user and is taken whatever it gains."""
        ones = np.ones(len(self.channels), np.float32)
        if not alphas:
            return Choice(None, ones, 0.0)
        thin = replace(self, weights=[thinned(weight) for weight in self.weights])
        exact = [self.rows.values @ weight for weight in thin.weights]
        power = np.asarray(sum(np.einsum("rn,rn->r", product, product) for product in exact))
        spike = float(power.max() / max(float(np.median(power)), 1e-30))
        if len(alphas) == 1:
            return Choice(alphas[0], self.scales(alphas[0]), 0.0, spike)
        plain = thin._error(exact, None)
        errors: dict[float, float] = {}

        def measure(alpha: float) -> float:
            if alpha not in errors:
                errors[alpha] = thin._error(exact, alpha)
            return errors[alpha]

        best = min(alphas, key=measure)
        below = max((a for a in alphas if a < best), default=best)
        above = min((a for a in alphas if a > best), default=best)
        best = min((best, round((below + best) / 2, 4), round((best + above) / 2, 4)), key=measure)
        gain = gain_db(plain, errors[best])
        if gain < WORTH_DB:
            return Choice(None, ones, 0.0, spike, errors)
        return Choice(best, self.scales(best), gain, spike, errors)

    @cached_property
    def _peaks(self) -> NDArray[np.float64]:
        peaks = [np.maximum(weight.max(axis=1), -weight.min(axis=1)) for weight in self.weights]
        return np.asarray(np.max(peaks, axis=0), np.float64)

    def _error(self, exact: Sequence[NDArray[np.float32]], alpha: float | None) -> float:
        """Squared error of the products, relative to their rows; every row with what the other folds know of scales."""
        if not self.others:
            return self._part(exact, alpha, None)
        return sum(self._part(exact, alpha, fold) for fold in self.others)

    def _part(self, exact: Sequence[NDArray[np.float32]], alpha: float | None, fold: int | None) -> float:
        """The error of the rows of one fold, with the best range that is offered."""
        chosen = slice(None) if fold is None else self.rows.folds == fold
        scales, seen = self.known(alpha, fold)
        if seen.amax <= 0:
            return 0.0  # these rows are zeros, which round to themselves
        x, stored, counts = self.rows.values[chosen] / scales, self.stored(scales), self.rows.counts
        errors = []
        for amax in dict.fromkeys(method.range(seen) for method in _methods(self.calibrator, self.format)):
            grid = rounded(x, amax, self.format)
            total = 0.0
            for weight, product in zip(stored, exact, strict=True):
                gap = grid @ weight - product[chosen]
                importance = _importance(counts, product)[chosen]
                total += float(np.dot(importance, np.einsum("rn,rn->r", gap, gap)))
            errors.append(total)
        return min(errors)

    def known(self, alpha: float | None, fold: int | None) -> tuple[NDArray[np.float32], Histogram]:
        """Scales, and the histogram of the divided rows, as they would be had a fold not been seen."""
        channels = self.channels if fold is None else self.others[fold]
        scales = np.ones(len(channels), np.float32) if alpha is None else self.scales(alpha, fold)
        others = self.rows.values if fold is None else self.rows.values[self.rows.folds != fold]
        seen = Histogram.of(others / scales)
        seen.update(np.asarray([(channels / scales).max()], np.float32))
        return scales, seen

    def stored(self, scales: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The multiplied weights after they were quantized."""
        found = []
        for weight, per_channel in zip(self.weights, self.per_channel, strict=True):
            axis = 1 if per_channel else None
            values, steps = quantize_weight(weight * scales[:, None], axis, self.format)
            found.append(dequantize(values, steps, axis))
        return found


def smooth_scales(
    channels: NDArray[np.float64],
    weights: NDArray[np.float64],
    alpha: float,
    classes: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """s_j = max|x_j|^α / max|w_j|^(1-α), with a geometric mean of 1 so that magnitudes stay what they were.

    Source: Xiao et al. 2023, "SmoothQuant", equation 4.

    Args:
        channels: largest |x| of each input channel, [C].
        weights: largest |w| that multiplies each input channel, over all layers that read it, [C].
        alpha: 0 leaves the weights flat, 1 the activations.
        classes: channels of one number need one scale, [C]; their largest values decide.

    Returns:
        float32 [C], positive.
    """
    x, w = _floored(channels), _floored(weights)
    if classes is not None:
        x, w = largest_of(x, classes), largest_of(w, classes)
    scales = x**alpha / w ** (1 - alpha)
    scales /= np.exp(np.log(scales).mean())
    return np.asarray(scales, np.float32)


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    top = float(values.max(initial=0.0)) or 1.0
    return np.maximum(values, top * SMALLEST)


def _methods(calibrator: str, format: Format) -> list[Calibrator]:
    if calibrator != "auto":
        return [calibrators.parse(calibrator)]
    return [mse.MSE(format), MinMax()]


def _importance(counts: NDArray[np.float32], product: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the squared error of each row of a product counts."""
    power = np.einsum("rn,rn->r", product, product)
    return np.asarray(counts / (power + SHARE * power.mean() + 1e-30), np.float32)


def rounded(x: NDArray[np.float32], amax: float, format: Format) -> NDArray[np.float32]:
    """Values on the grid of a format with one range."""
    scale = amax / LARGEST[format]
    return dequantize(quantize(x, scale, None, format), scale)
