"""What varies from sample to sample, which is all that a result says of a sample; the rest is a constant.

    y = 3.1 + 0.4 x    power 9.8, of which 0.16 varies: noise at 28 dB of the power is at 10 dB of what varies

    share = sum (ref - mean)^2 * n / (n - 1) / sum ref^2       mean: of n values, at each position of a tensor

Positions are the places of an output as long as all samples have its shape. Axes along which samples differ in size are
pooled: of texts or pictures of many sizes each channel has one mean. So are axes of what is too large to be kept by
position. The sums merge: any order and any division give the same figure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.judge.tail import SOFT
from qcompiler.judge.views import Role, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


LARGEST: Final = 1 << 20  # positions that are kept: 16 MiB of sums a view
FEWEST: Final = 4  # values of a position: of fewer, chance alone puts one figure in ten 10 dB or more too low
NOTHING: Final = 1e-7  # of the power: what FP16 could not tell from a constant, as its own rounding is as large
COPIES: Final = 3e-4  # of the power: inputs that differ by less than 1.7 % of their size are copies of each other
_BLOCK: Final = 1 << 18  # elements that are held as float64 at a time


class Variation:
    """Sums of one quantity over samples.

    Attributes:
        samples: how many were added.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._count = 0  # values at each position
        self._mean: NDArray[Any] = np.zeros(0)
        self._apart: NDArray[Any] = np.zeros(0)  # sum of squared distances from the mean

    def add(self, value: NDArray[Any]) -> None:
        """One sample, floats of any shape; positions where any sample is not finite count nowhere."""
        if not value.size:
            return
        one = Variation()
        one.samples = one._count = 1
        one._mean = value if value.dtype.kind == "f" else np.asarray(value, np.float32)
        one._apart = np.broadcast_to(np.zeros(()), value.shape)
        for axis in _too_large(value.shape):
            one._pool(axis)
        one._mean = np.asarray(one._mean, np.float64)
        self.merge(one)

    def merge(self, other: Variation) -> None:
        """Adds the samples of another one, which is not used any more."""
        if not other.samples:
            return
        if not self.samples:
            self.samples, self._count, self._mean, self._apart = other.samples, other._count, other._mean, other._apart
            return
        if self._mean.ndim != other._mean.ndim:
            self._flatten()
            other._flatten()
        differ = [axis for axis, size in enumerate(self._mean.shape) if size != other._mean.shape[axis]]
        for axis in differ:
            self._pool(axis)
            other._pool(axis)
        count = self._count + other._count
        with np.errstate(invalid="ignore", over="ignore"):
            gap = other._mean - self._mean
            self._mean = self._mean + gap * (other._count / count)
            self._apart = self._apart + other._apart + gap * gap * (self._count * other._count / count)
        self.samples, self._count = self.samples + other.samples, count

    def share(self) -> float | None:
        """The share of the power that varies, about 0..1.

        Returns:
            None where that cannot be told: of one sample, or fewer than `FEWEST` values at each position; and where
            nothing varies that FP16 could tell from a constant.
        """
        if self.samples < 2 or self._count < FEWEST:
            return None
        known = np.isfinite(self._mean) & np.isfinite(self._apart)
        apart, mean = self._apart[known], self._mean[known]
        power = float(apart.sum() + self._count * np.dot(mean, mean))
        found = float(apart.sum()) * self._count / (self._count - 1)
        return found / power if math.isfinite(power) and found > NOTHING * power else None

    def _pool(self, axis: int) -> None:
        """All positions along an axis become one."""
        size = self._mean.shape[axis]
        if size == 1:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            mean = self._mean.mean(axis=axis, keepdims=True, dtype=np.float64)
            apart = self._apart.sum(axis=axis, keepdims=True)
            step = max(1, _BLOCK * size // self._mean.size)
            for start in range(0, size, step):
                gap = self._mean[(slice(None),) * axis + (slice(start, start + step),)] - mean
                apart += self._count * (gap * gap).sum(axis=axis, keepdims=True)
        self._mean, self._apart, self._count = mean, apart, self._count * size

    def _flatten(self) -> None:
        """Of tensors of another rank, as padding leaves them, the last axis is the same one: that of the channels."""
        last = self._mean.shape[-1] if self._mean.ndim else 1
        self._mean, self._apart = self._mean.reshape(-1, last), self._apart.reshape(-1, last)
        self._pool(0)


class Varying:
    """What varies in each of some views.

    Args:
        views: what is compared; only those of `asked` are looked at.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._of = {view: Variation() for view in asked(views)}
        self._inputs: dict[str, Variation] = {}

    def add(self, feed: Mapping[str, Any], values: Mapping[View, NDArray[Any]]) -> None:
        """One sample.

        Args:
            feed: its inputs, which tell whether samples differ at all.
            values: what the float model gives, by view.
        """
        for view, variation in self._of.items():
            if view in values:
                variation.add(values[view])
        for name, array in feed.items():
            if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.size:
                every = -(-array.size // LARGEST)
                self._inputs.setdefault(name, Variation()).add(np.asarray(array.reshape(-1)[::every], np.float64))

    def merge(self, other: Varying) -> None:
        """Adds the samples of another one of the same views, which is not used any more."""
        for view, variation in self._of.items():
            variation.merge(other._of[view])
        for name, variation in other._inputs.items():
            self._inputs.setdefault(name, Variation()).merge(variation)

    def shares(self) -> dict[View, float]:
        """By view, the share of the power that varies, 0..1; views where that cannot be told are missing.

        Where all inputs are copies of each other, nothing is told: what is a constant then is for lack of samples.
        """
        told = [variation.share() for variation in self._inputs.values()]
        if told and not any(share is not None and share > COPIES for share in told):
            return {}
        found = {view: variation.share() for view, variation in self._of.items()}
        return {view: min(share, 1.0) for view, share in found.items() if share is not None}


def asked(views: Sequence[View]) -> list[View]:
    """The views whose noise is held against what varies.

    Probabilities have a scale of their own, 0 to 1, on which a detector that has nothing to report may rest: what the
    Sigmoid reads is looked at instead. So are the parts of an output that was joined, instead of the whole. A
    likelihood has a scale of its own, too.
    """
    joined = {view.output for view in views if view.role is Role.PART}
    return [view for view in views if view.judged and not _own_scale(view) and not _joined(view, joined)]


def _own_scale(view: View) -> bool:
    return view.weighed or (view.role is not Role.SOURCE and view.step in SOFT)


def _joined(view: View, joined: Collection[str]) -> bool:
    return view.role is Role.OUTPUT and view.output in joined


def _too_large(shape: Sequence[int]) -> list[int]:
    """The axes that are pooled in a tensor of a shape: the longest first, that of the channels last."""
    channels = 1 if len(shape) > 3 else len(shape) - 1
    order = sorted(range(len(shape)), key=lambda axis: (axis == channels, -shape[axis]))
    return [axis for place, axis in enumerate(order) if math.prod(shape[kept] for kept in order[place:]) > LARGEST]
