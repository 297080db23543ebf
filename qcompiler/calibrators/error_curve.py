"""The error of quantizing a histogram, as a function of amax."""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.rounding import INT8_MAX, LARGEST, Format
from qcompiler.statistics.histogram import Histogram


def quantization_error(h: Histogram, amax: float, format: Format) -> float:
    """Expected mean squared error of quantizing what a histogram has seen with range `amax`.

    Rounding and clipping are integrated exactly over each bucket, whose mass is spread evenly over its width. Signs
    being unknown, a negative value is taken to clip at -127 like a positive one at 127.

    Args:
        h: of |x|.
        amax: the range, positive; scale = amax / 127 or amax / 448.
        format: `int8` or `fp8` (E4M3FN).

    Returns:
        In the tensor's unit squared, per finite element; 0.0 without elements.
    """
    return ErrorCurve(h, format)(amax)


class ErrorCurve:
    """`quantization_error` of one histogram as a function of amax, for those who ask for many."""

    def __init__(self, h: Histogram, format: Format) -> None:
        self._finite = h.finite
        lower, upper = h.bounds()
        # Neighbours share an edge: integrate once up to each.
        self._knots, at = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        self._at_lower, self._at_upper = at[: lower.size], at[lower.size :]
        self._counts = h.counts()
        self._centers = (lower + upper) / 2
        self._point = upper <= lower
        self._density = self._counts / np.where(self._point, 1.0, upper - lower)
        self._largest = LARGEST[format]
        self._integral = _integral_int8 if format == "int8" else _integral_e4m3

    def __call__(self, amax: float) -> float:
        """Mean squared error at this range."""
        if not self._finite:
            return 0.0
        scale = amax / self._largest
        whole, distance = self._integral(self._knots / scale)
        total = scale * float(np.dot(self._density, whole[self._at_upper] - whole[self._at_lower]))
        if self._point.any():  # amax on the lower edge of its bucket leaves a point there, no interval
            total += float(np.dot(self._counts[self._point], distance[self._at_upper[self._point]] ** 2))
        return total * scale**2 / self._finite

    def clipping(self, amax: float) -> float:
        """A lower bound of the error at this range and at any smaller one: what clipping alone costs.

        The mass of a bucket is taken to lie at its centre, which makes the convex (x − amax)² no larger.
        """
        if not self._finite:
            return 0.0
        beyond = np.maximum(self._centers - amax, 0.0)
        return float(np.dot(self._counts, beyond * beyond)) / self._finite


def _integral_int8(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """∫₀ˣ (t − round(t))² dt with round saturating at 127, and x − round(x).

    Each whole step gives 1/12 and the rest r³/3, also where r is the distance beyond the last step.
    """
    step = np.minimum(np.rint(x), INT8_MAX)
    rest = x - step
    return step / 12 + rest**3 / 3, rest


def _integral_e4m3(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same over the uneven grid of E4M3, whose gaps of width d give d³/12 each."""
    grid, middle, whole = _e4m3_grid()
    at = np.searchsorted(middle, x)
    rest = x - grid[at]
    return whole[at] + rest**3 / 3, rest


@lru_cache(maxsize=1)
def _e4m3_grid() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The 127 values from 0 to 448, the middles between them, and the integral of the squared error up to each."""
    grid = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    gaps = np.diff(grid)
    return grid, grid[:-1] + gaps / 2, np.concatenate([[0.0], np.cumsum(gaps**3 / 12)])
