"""Choosing the alpha of one group of layers, by what the layers would compute with it.

Rows of the activation that were recorded once are divided, quantized with one static range, and multiplied with the
weights after these were multiplied and quantized; the result is compared with the float product. Errors count relative
to their row, as the norm behind the layer makes them. Where single tokens spike, that says little: everybody attends to
such a token, and what its norm leaves of the error decides. Those layers are judged again by the outputs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from qcompiler.outliers.smooth_quant.fitting import Remains
from qcompiler.passes.absorb.absorb import largest_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.rows import COLUMNS, Rows, thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray


ALPHAS = (0.3, 0.5, 0.7, 0.85, 1.0)  # tried first; then halfway between the best one and its neighbours
WORTH_DB = 0.2  # what a layer must gain for its graph to be touched
SMALLEST = 1e-5  # of the largest channel: dead channels are not blown up
LEAST_COLUMNS = 64  # outputs of each layer that alphas are tried on, however many layers share them
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
        plain: mean squared error of the rows of its layers without an alpha, relative to their power.
        error: the same with the alpha that was chosen.
    """

    alpha: float | None
    scales: NDArray[np.float32]
    gain_db: float
    spike: float = 1.0
    errors: Mapping[float, float] = field(default_factory=dict)
    plain: float = 0.0
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a group with what they read.

    Attributes:
        rows: recorded rows of the activation.
        weights: of each layer, float32 [C, outputs].
        per_channel: of each layer, whether its weight has a scale per output.
        channels: largest |x| of each channel over all data, float64 [C].
        others: by fold, the same without the samples of the fold; empty: rows are judged with `channels`.
        remains: what fitting will leave of the error of rounding the weights; None where they will not be fitted.
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
    remains: Remains | None = None

    def scales(self, alpha: float, without: int | None = None) -> NDArray[np.float32]:
        """The scales of equation 4 for this alpha; `without` a fold, as they would be had it not been seen."""
        channels = self.channels if without is None else self.others[without]
        return smooth_scales(channels, self._peaks, alpha, self.classes)

    def choose(self, alphas: Sequence[float]) -> Choice:
        """The alpha with the least error; one alone was asked for by the user and is taken whatever it gains.

        Errors have one lowest point between alphas that are too small for the activation and too large for the weights.
        So what lies behind a neighbour that is no better is not tried.
        """
        ones = np.ones(len(self.channels), np.float32)
        if not alphas:
            return Choice(None, ones, 0.0)
        trial = _Trial.of(self)
        if len(alphas) == 1:
            return Choice(alphas[0], self.scales(alphas[0]), 0.0, trial.spike)
        plain = trial.error(None)
        errors: dict[float, float] = {}

        def measure(alpha: float) -> float:
            if alpha not in errors:
                errors[alpha] = trial.error(alpha)
            return errors[alpha]

        best = _lowest(sorted(alphas), measure)
        below = max((a for a in alphas if a < best), default=best)
        above = min((a for a in alphas if a > best), default=best)
        best = min((best, round((below + best) / 2, 4), round((best + above) / 2, 4)), key=measure)
        gain = gain_db(plain, errors[best])
        if gain < WORTH_DB:
            return Choice(None, ones, 0.0, trial.spike, errors, plain, plain)
        return Choice(best, self.scales(best), gain, trial.spike, errors, plain, errors[best])

    @cached_property
    def _peaks(self) -> NDArray[np.float64]:
        peaks = [np.maximum(weight.max(axis=1), -weight.min(axis=1)) for weight in self.weights]
        return np.asarray(np.max(peaks, axis=0), np.float64)

    def known_scales(self, alpha: float | None, fold: int | None) -> NDArray[np.float32]:
        """The scales as they would be had a fold not been seen; ones without an alpha."""
        return np.ones(len(self.channels), np.float32) if alpha is None else self.scales(alpha, fold)

    def known(self, alpha: float | None, fold: int | None) -> tuple[NDArray[np.float32], Histogram]:
        """Scales, and the histogram of the divided rows, as they would be had a fold not been seen."""
        channels = self.channels if fold is None else self.others[fold]
        scales = self.known_scales(alpha, fold)
        others = self.rows.values if fold is None else self.rows.values[self.rows.folds != fold]
        seen = Histogram.of(others / scales)
        seen.update(np.asarray([(channels / scales).max()], np.float32))
        return scales, seen

    def stored(self, scales: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The multiplied weights after they were quantized; where they will be fitted, with the error that is left."""
        found = []
        left = 1.0 if self.remains is None else self.remains.share(scales) ** 0.5
        for weight, per_channel in zip(self.weights, self.per_channel, strict=True):
            axis, scaled = 1 if per_channel else None, weight * scales[:, None]
            values, steps = quantize_weight(scaled, axis, self.format)
            rounded = dequantize(values, steps, axis)
            if left < 1 and per_channel:
                rounded = np.asarray(scaled + left * (rounded - scaled), np.float32)
            found.append(rounded)
        return found


@dataclass(frozen=True, eq=False)
class _Trial:
    """What alphas of a group are tried on: its recorded rows, some outputs of its layers, and what these are exactly.

    Attributes:
        layers: with the weights of these outputs only.
        exact: the float product of each layer, float32 [rows, outputs].
        importance: what the squared error of each row of it counts; all rows together count 1.
        spike: power of the largest row of the result over that of the median row.
    """

    layers: Layers
    exact: Sequence[NDArray[np.float32]]
    importance: Sequence[NDArray[np.float32]]
    spike: float

    @staticmethod
    def of(layers: Layers) -> _Trial:
        most = max(LEAST_COLUMNS, COLUMNS // len(layers.weights))
        thin = replace(layers, weights=[thinned(weight, most) for weight in layers.weights])
        exact = [layers.rows.values @ weight for weight in thin.weights]
        power = np.asarray(sum(np.einsum("rn,rn->r", product, product) for product in exact))
        spike = float(power.max() / max(float(np.median(power)), 1e-30))
        whole = np.float32(max(float(layers.rows.counts.sum()) * len(exact), 1e-30))
        return _Trial(thin, exact, [_importance(layers.rows.counts, one) / whole for one in exact], spike)

    def error(self, alpha: float | None) -> float:
        """Mean squared error of the rows of all products, relative to their power, in the best range that is offered.

        Every row is divided by what the other folds know of scales, and clipped where they end. Weights and the best
        range are those of all: one fold more or less does not move them.
        """
        one = self.layers
        scales, seen = one.known(alpha, None)
        if seen.amax <= 0:
            return 0.0  # zeros, which round to themselves
        stored = [weight / scales[:, None] for weight in one.stored(scales)]
        parts = []
        for fold, rows in self._parts():
            own = scales if fold is None else one.known_scales(alpha, fold)
            channels = one.channels if fold is None else one.others[fold]
            parts.append((rows, own, float((channels / own).max())))
        grid = np.empty_like(one.rows.values)
        errors = []
        for amax in dict.fromkeys(method.range(seen) for method in _methods(one.calibrator, one.format)):
            for rows, own, reached in parts:
                range = min(amax, reached)
                grid[rows] = rounded(one.rows.values[rows] / own, range, one.format) * own if range > 0 else 0.0
            errors.append(self._compared(grid, stored))
        return min(errors)

    def _compared(self, grid: NDArray[np.float32], stored: Sequence[NDArray[np.float32]]) -> float:
        total = 0.0
        for weight, exact, importance in zip(stored, self.exact, self.importance, strict=True):
            gap = grid @ weight
            gap -= exact
            total += float(np.dot(importance, np.einsum("rn,rn->r", gap, gap)))
        return total

    def _parts(self) -> list[tuple[int | None, NDArray[np.bool_] | slice]]:
        """Rows by their fold; all at once where there are no folds."""
        folds = self.layers.rows.folds
        return [(fold, folds == fold) for fold in self.layers.others] or [(None, slice(None))]


def _lowest(alphas: Sequence[float], measure: Callable[[float], float]) -> float:
    """The alpha with the least error of an ascending list, from the middle downhill."""
    at = len(alphas) // 2
    for step in (-1, 1):
        while 0 <= at + step < len(alphas) and measure(alphas[at + step]) < measure(alphas[at]):
            at += step
    return alphas[at]


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
    if format != "int8":
        return dequantize(quantize(x, scale, None, format), scale)
    grid = np.asarray(x / np.float32(scale), np.float32)  # the same, with no integers in between
    np.rint(grid, out=grid)
    np.clip(grid, -128, 127, out=grid)
    grid *= np.float32(scale)
    return grid
