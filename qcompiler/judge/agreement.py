"""How far two discrete results agree: classes, positions, picked rows.

Where nothing was picked or ordered, element by element. Where rows were (by a threshold, by their rank), as sets: a row
of the float model counts as found where the other result has it too, wherever it stands. Floats of a row may differ by
`NEAR` of what their column spans.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


NEAR = 0.05
WIDEST_ROW = 8  # numbers of one thing, such as a box; a longer last axis counts things
MOST_ROWS = 4096  # of one sample; the first ones stand for more


def agreement(reference: NDArray[Any], got: NDArray[Any], *, selected: bool, amounts: bool = False) -> tuple[int, int]:
    """How many elements or rows agree, and of how many.

    Args:
        reference: of the float model.
        got: the other result, of any shape.
        selected: number and order may differ.
        amounts: whole numbers that were rounded, as in a picture of bytes: they may differ by `NEAR` of what they span,
            rounded down.
    """
    if not selected:
        if reference.shape != got.shape:
            return 0, max(reference.size, got.size)
        same = _close(reference, got) if amounts and reference.dtype.kind in "iu" else _equal(reference, got)
        return int(np.count_nonzero(same)), reference.size
    if reference.dtype.kind not in "fV":
        one, other = (Counter(array.reshape(-1).tolist()) for array in (reference, got))
        return (one & other).total(), max(one.total(), other.total())
    first, second = _rows(reference), _rows(got)
    most = max(len(first), len(second))
    if first.shape[1:] != second.shape[1:]:
        return 0, most
    return (_found(first, second) if len(first) and len(second) else 0), most


def _equal(reference: NDArray[Any], got: NDArray[Any]) -> NDArray[np.bool_]:
    same = np.asarray(reference == got)
    return same | (np.isnan(reference) & np.isnan(got)) if reference.dtype.kind == "f" else same


def _close(reference: NDArray[Any], got: NDArray[Any]) -> NDArray[np.bool_]:
    if not reference.size:
        return _equal(reference, got)
    one, other = reference.astype(np.float64), got.astype(np.float64)
    return np.asarray(np.abs(one - other) <= np.floor(NEAR * np.ptp(one)))


def _rows(array: NDArray[Any]) -> NDArray[np.float32]:
    width = array.shape[-1] if array.ndim >= 2 and array.shape[-1] <= WIDEST_ROW else 1
    return np.asarray(array, np.float32).reshape(-1, max(width, 1))[:MOST_ROWS]


def _found(first: NDArray[np.float32], second: NDArray[np.float32]) -> int:
    """Rows of the first that the second has as well, each of the second used once, the nearest first."""
    span = np.ptp(first, axis=0)
    span[span == 0] = np.maximum(np.abs(first[0]), 1e-6)[span == 0]
    free = np.ones(len(second), np.bool_)
    found = 0
    for row in first:
        far = np.max(np.abs(second - row) / span, axis=1, where=np.isfinite(second), initial=0.0)
        far[~free] = np.inf
        best = int(np.argmin(far))
        if far[best] <= NEAR:
            free[best] = False
            found += 1
    return found
