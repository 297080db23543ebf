"""How far a result is from float, view by view: noise-to-signal power, pooled over samples; the worst view counts.

    noise(view) = sum (ref - got)^2 / sum ref^2

Padding counts nowhere. An infinity that float and result share is meant, and no error; one that only the result has is
one. A view that is zero throughout has no figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.judge.views import View, Views
from qcompiler.numerics.sqnr import energy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.ir.signature import Feeds

    Arrays = Mapping[str, NDArray[Any]]


UNDERFLOW = 104  # exp(-104) is 0 in FP32


def cut(view: View, array: NDArray[Any]) -> NDArray[Any] | None:
    """What a view compares of a tensor; None where the tensor has not the shape that it was cut for."""
    piece = view.piece
    if piece is None:
        return array
    if array.ndim <= piece.axis or array.shape[piece.axis] < piece.stop:
        return None
    if piece.indices:
        return np.take(array, piece.indices, axis=piece.axis)
    return array[(slice(None),) * piece.axis + (slice(piece.start, piece.stop),)]


@dataclass(frozen=True, eq=False)
class Expected:
    """What the float model gives for one sample, by view.

    Attributes:
        values: what is compared, padding left out; views that do not fit are missing.
        signals: its sum of squares, infinities left out.
        padding: of the feed.
    """

    values: Mapping[View, NDArray[Any]]
    signals: Mapping[View, float]
    padding: Padding

    @staticmethod
    def of(views: Sequence[View], reference: Arrays, feed: Feeds) -> Expected:
        """Cuts the tensors of a run into views.

        Args:
            views: what is compared; those whose tensor is no float array are left out.
            reference: tensors by name.
            feed: its masks say what is padding.
        """
        padding = Padding(feed)
        found = {view: compared(view, reference.get(view.tensor), padding) for view in views}
        values = {view: value for view, value in found.items() if value is not None}
        return Expected(values, {view: signal_of(value) for view, value in values.items()}, padding)

    def error(self, view: View, got: Arrays) -> float:
        """Sum of squared errors of a view; infinite where shapes differ or a value is not finite that should be."""
        value = compared(view, got.get(view.tensor), self.padding)
        return math.inf if value is None else squared_error(self.values[view], value)


class Tally:
    """Sums over samples."""

    def __init__(self) -> None:
        self._signal: dict[View, float] = {}
        self._error: dict[View, float] = {}

    def add(self, expected: Expected, got: Arrays) -> None:
        """One sample."""
        for view, signal in expected.signals.items():
            self._signal[view] = self._signal.get(view, 0.0) + signal
            self._error[view] = self._error.get(view, 0.0) + expected.error(view, got)

    def ratios(self) -> dict[View, float]:
        """Tally-to-signal power of the views that have a signal."""
        return {view: self._error[view] / signal for view, signal in self._signal.items() if signal > 0}

    def worst(self) -> float:
        """Tally-to-signal power of the worst view; 0 where none has a signal."""
        return max(self.ratios().values(), default=0.0)


def judged(views: Views) -> Views:
    """Those that choices go by."""
    return tuple(view for view in views if view.judged)


def squared_error(reference: NDArray[Any], got: NDArray[Any]) -> float:
    """Sum of (reference - got)^2 where both are finite.

    Returns:
        infinite where shapes differ, where only one of the two is finite, or where infinities differ.
    """
    if reference.shape != got.shape:
        return math.inf
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.asarray(np.asarray(got, _wide(got)) - reference)
    if np.isfinite(error).all():
        return energy(error)
    meant = ~np.isfinite(reference)
    same = (reference == got) | (np.isnan(reference) & np.isnan(got))
    if not same[meant].all() or not np.isfinite(got[~meant]).all():
        return math.inf
    return energy(error[~meant])


def compared(view: View, value: Any, padding: Padding) -> NDArray[Any] | None:
    """What a view compares of a value; None of what is no float array, or has not the shape that it was cut for."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV":
        return None
    if view.level is not None and value.ndim:
        value = _levelled(value, view.level)
    part = cut(view, value)
    return padding.keep(part) if part is not None and padding else part


def _levelled(value: NDArray[Any], axis: int) -> NDArray[Any]:
    """What a Softmax sees: a constant along its axis does not count, nor by how far a position is masked.

    Probabilities of positions that far below the largest one are exactly 0. They become 0 here, and the others are
    less their mean; minus infinity and a mask of -30000 are the same.
    """
    with np.errstate(invalid="ignore"):
        lowest = value.max(axis=axis, keepdims=True) - value.dtype.type(UNDERFLOW)
        kept = np.isfinite(value) & (value >= lowest)
        count = np.maximum(kept.sum(axis=axis, keepdims=True), 1)
        mean = np.where(kept, value, 0).sum(axis=axis, keepdims=True) / count
        return np.asarray(np.where(kept | ~(value < np.inf), value - mean, value.dtype.type(0)))


def signal_of(value: NDArray[Any]) -> float:
    """Sum of squares of what is finite."""
    finite = np.isfinite(value)
    return energy(value) if finite.all() else energy(value[finite])


def _wide(array: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)
