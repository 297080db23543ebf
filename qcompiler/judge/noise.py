"""How far a result is from float, view by view: noise-to-signal power, pooled over samples; the worst view counts.

    noise(view) = sum (ref - got)^2 / sum ref^2            and, where only a share of the power varies from sample to
    noise(view) = sum (ref - got)^2 / (share * sum ref^2)  sample (`variation`), this: an error hides beside a constant

Padding counts nowhere. An infinity that float and result share is meant, and no error; one that only the result has is
one. A view that is zero throughout has no figure. Where the next token is drawn by a view, and choices are to go by
that (`views.weighed`), its noise is the likelihood that is lost: nats a row (`likelihood`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.judge import likelihood
from qcompiler.judge.variation import Varying
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
        views: what is compared.
        feed: the sample.
        values: what is compared, padding left out; views that do not fit are missing.
        signals: its sum of squares, infinities left out; of a weighed view, 2 for each row.
        padding: of the feed.
        kept: of views in front of a Softmax, where it sees anything; of weighed views, the roots of the probabilities.
    """

    views: Views
    feed: Feeds
    values: Mapping[View, NDArray[Any]]
    signals: Mapping[View, float]
    padding: Padding
    kept: Mapping[View, NDArray[Any]]

    @staticmethod
    def of(views: Sequence[View], reference: Arrays, feed: Feeds) -> Expected:
        """Cuts the tensors of a run into views.

        Args:
            views: what is compared; those whose tensor is no float array are left out.
            reference: tensors by name.
            feed: its masks say what is padding.
        """
        padding = Padding(feed)
        told = {view: kept_by(view, reference.get(view.tensor)) for view in views}
        found = {view: compared(view, reference.get(view.tensor), padding, told[view]) for view in views}
        values = {view: value for view, value in found.items() if value is not None}
        kept = {view: known for view in values if (known := told[view]) is not None}
        signals = {view: _signal(view, value) for view, value in values.items()}
        return Expected(tuple(views), feed, values, signals, padding, kept)

    def error(self, view: View, got: Arrays) -> float:
        """Sum of squared errors of a view; infinite where shapes differ or a value is not finite that should be."""
        value = compared(view, got.get(view.tensor), self.padding, self.kept.get(view))
        return math.inf if value is None else squared_error(self.values[view], value)

    def errors(self, got: Arrays) -> dict[View, float]:
        """The same of all views."""
        return {view: self.error(view, got) for view in self.signals}


class Tally:
    """Sums over samples.

    Args:
        shares: by view, which share of the signal varies from sample to sample, as `shares_of` finds it on all samples
            once; None finds it on those that are added, which takes time with every one.
    """

    def __init__(self, shares: Mapping[View, float] | None = None) -> None:
        self._shares = shares
        self._spread: Varying | None = None
        self._signal: dict[View, float] = {}
        self._error: dict[View, float] = {}

    def add(self, expected: Expected, got: Arrays) -> None:
        """One sample."""
        self.add_errors(expected, expected.errors(got))

    def add_errors(self, expected: Expected, errors: Mapping[View, float]) -> None:
        """One sample, by its sums of squared errors."""
        for view, signal in expected.signals.items():
            self._signal[view] = self._signal.get(view, 0.0) + signal
            self._error[view] = self._error.get(view, 0.0) + errors[view]
        if self._shares is None:
            self._spread = self._spread or Varying(expected.views)
            self._spread.add(expected.feed, expected.values)

    def signals(self) -> dict[View, float]:
        """The power that the noise of a view is divided by: what varies of it, or all where that cannot be told.

        Views without a signal are missing.
        """
        found = self._spread.shares() if self._spread is not None else {}
        shares = found if self._shares is None else self._shares
        return {view: signal * shares.get(view, 1.0) for view, signal in self._signal.items() if signal > 0}

    def ratios(self) -> dict[View, float]:
        """Noise-to-signal power of the views that have a signal."""
        return {view: self._error[view] / signal for view, signal in self.signals().items()}

    def worst(self) -> float:
        """Noise-to-signal power of the worst view; 0 where none has a signal."""
        return max(self.ratios().values(), default=0.0)


def shares_of(samples: Iterable[Expected]) -> dict[View, float]:
    """By view, the share of the signal that varies from sample to sample; views where that cannot be told are missing.

    Args:
        samples: of the same views.
    """
    spread: Varying | None = None
    for expected in samples:
        spread = spread or Varying(expected.views)
        spread.add(expected.feed, expected.values)
    return spread.shares() if spread is not None else {}


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


def compared(view: View, value: Any, padding: Padding, kept: NDArray[Any] | None = None) -> NDArray[Any] | None:
    """What a view compares of a value.

    Args:
        view: the view.
        value: a tensor; of anything but a float array there is nothing to compare.
        padding: of the feed.
        kept: of a view in front of a Softmax, and of a weighed one, `kept_by` of what the float model gives.

    Returns:
        None of what is no float array, or has not the shape that it was cut for.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV":
        return None
    if (view.level is not None or view.weighed) and value.ndim:
        kept = kept_by(view, value) if kept is None else kept
        if kept is None or kept.shape != value.shape:
            return None
        value = likelihood.weighed(value, kept) if view.weighed else _levelled(value, view.level or 0, kept)
    part = cut(view, value)
    return padding.keep(part) if part is not None and padding else part


def kept_by(view: View, reference: Any) -> NDArray[Any] | None:
    """What must be known of the float model's result to compare another one with it; None for most views.

    In front of a Softmax, where it sees anything: probabilities of positions that are further below the largest one
    than `UNDERFLOW` are exactly 0. Of a weighed view, the square roots of its probabilities.
    """
    if not isinstance(reference, np.ndarray) or not reference.ndim or reference.dtype.kind not in "fV":
        return None
    if view.weighed:
        return likelihood.roots_of(np.asarray(reference, _wide(reference)))
    if view.level is None:
        return None
    return np.asarray(np.isfinite(reference) & (reference >= _lowest(reference, view.level)))


def _levelled(value: NDArray[Any], axis: int, kept: NDArray[np.bool_]) -> NDArray[Any]:
    """What a Softmax sees: a constant along its axis does not count, nor by how far a position is masked.

    Where the float model keeps a position, it is less the mean of these; elsewhere it is 0 as long as nothing is seen
    of it here, too, and what it rises above that where something is. Rows that are masked as a whole are 0.
    """
    with np.errstate(invalid="ignore"):
        lowest = _lowest(value, axis)
        clipped = np.maximum(value, lowest)
        count = np.maximum(kept.sum(axis=axis, keepdims=True), 1)
        mean = np.where(kept, clipped, 0).sum(axis=axis, keepdims=True) / count
        found = np.where(kept, clipped - mean, clipped - lowest)
        return np.asarray(np.where(kept.any(axis=axis, keepdims=True) | np.isnan(found), found, 0), value.dtype)


def _lowest(value: NDArray[Any], axis: int) -> NDArray[Any]:
    """The value along an axis below which a probability is 0."""
    top = value.max(axis=axis, keepdims=True)
    return np.asarray(np.where(np.isfinite(top), top, 0) - value.dtype.type(UNDERFLOW))


def _signal(view: View, value: NDArray[Any]) -> float:
    """What the errors of a view are held against."""
    return 2.0 * value.size / value.shape[-1] if view.weighed and value.size else signal_of(value)


def signal_of(value: NDArray[Any]) -> float:
    """Sum of squares of what is finite."""
    finite = np.isfinite(value)
    return energy(value) if finite.all() else energy(value[finite])


def _wide(array: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)
