"""What noise changes of a decision: the share of right answers that it takes, by the float model's own probabilities.

    p = softmax(float), c = argmax float, d = argmax quantized        lost = sum (p[c] - p[d]) / sum p[c]

If the float model is as sure as it says, sum p[c] of its answers are right, and sum p[d] of the other's. Two classes
that were about as likely are exchanged at no cost. That is why a text recogniser reads at 10 dB as before, and why dB
alone cannot tell.

Most of a picture may be background, and most of a line of text blank: metrics count by class then. So the same is added
up for each class that the float model chooses, too, and the mean over classes counts where that is more.

A few samples have few decisions, and which of them the noise turns is chance. So errors are held against other rows,
too: row i with the error of row i + k, until there are enough. That takes errors for independent of what they meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENOUGH: Final = 1024  # decisions: more are not made out of those that there are
ROWS: Final = 512  # of a sample; evenly spaced ones stand for more
WIDEST: Final = 1 << 22  # elements of a view that are kept


class Decisions:
    """Rows that a Softmax reads, of both models.

    Args:
        axis: of the classes, from the end (below 0).
    """

    def __init__(self, axis: int) -> None:
        self._axis, self._held = axis, 0
        self._reference: list[NDArray[np.float64]] = []
        self._error: list[NDArray[np.float64]] = []

    def add(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        """One sample; rows of which a value is not finite are left out, and samples that there is no more room for."""
        if reference.shape != got.shape or reference.ndim < -self._axis or not reference.size:
            return
        first, second = self._rows(reference), self._rows(got)
        seen = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        first, second = first[seen], second[seen]
        if not first.size or self._held + first.size > WIDEST or self._width not in (0, first.shape[1]):
            return
        self._held += first.size
        self._reference.append(first)
        self._error.append(second - first)

    def lost(self) -> float | None:
        """The share of right answers that is lost, 0..1; None where nothing is decided: no row, or a single class."""
        if self._width < 2:
            return None
        reference, error = np.concatenate(self._reference), np.concatenate(self._error)
        sure, rows = _softmax(reference), np.arange(len(reference))
        best, classes = sure.max(axis=1), reference.argmax(axis=1)
        shifts = range(min(len(rows), -(-ENOUGH // len(rows))))
        chosen = [(reference + np.roll(error, shift, axis=0)).argmax(axis=1) for shift in shifts]
        cost = np.mean([best - sure[rows, one] for one in chosen], axis=0)
        right, missed = (np.bincount(classes, weights=one) for one in (best, cost))
        seen = right > 0
        return max(float(cost.sum() / best.sum()), float((missed[seen] / right[seen]).mean()))

    @property
    def _width(self) -> int:
        return self._reference[0].shape[1] if self._reference else 0

    def _rows(self, value: NDArray[Any]) -> NDArray[np.float64]:
        """[rows, classes]."""
        last = np.moveaxis(value, self._axis, -1)
        count = last.size // last.shape[-1]
        taken = np.linspace(0, count - 1, min(count, ROWS)).astype(np.intp)
        return np.asarray(last[np.unravel_index(taken, last.shape[:-1])] if last.ndim > 1 else last[None], np.float64)


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
