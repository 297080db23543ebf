"""Numbers of other float types as float32: 16 bits exactly, double rounded once."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from qcompiler.ir import made
from qcompiler.ir.made import WidenedWeights
from qcompiler.ir.weights import Array
from qcompiler.support.memory import PIECE, release

FP16, BF16, FP64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)
FP32 = np.dtype(np.float32)
HALVES = frozenset({FP16, BF16})
OTHERS = HALVES | {FP64}  # what a float32 graph is made of
_LIMITS = np.finfo(np.float32)


def widened(values: Array) -> Array:
    """A read-only float32 array of the same values, made 4 MiB at a time; a mapped file is not kept in memory for it.

    Of doubles, what is beyond float32's range becomes its end, as in masks of -1.8e308, and a single number that would
    vanish the smallest normal one, as where it guards a division.
    """
    if values.dtype != FP64:
        return made.widened(values)
    flat = np.ascontiguousarray(values).reshape(-1)
    found = np.empty(flat.size, FP32)
    step = PIECE // values.dtype.itemsize
    for at in range(0, flat.size, step):
        piece = flat[at : at + step]
        found[at : at + step] = _rounded(piece)
        release(piece)
    result = found.reshape(values.shape)
    result.flags.writeable = False
    return result


def held_wide(values: Array) -> Array | WidenedWeights:
    """The same, made whenever somebody looks where there is no room for all weights."""
    return WidenedWeights(values) if values.dtype in HALVES and made.later(values) else widened(values)


def _rounded(values: Array) -> Array:
    finite = np.isfinite(values)
    held = np.where(finite, np.clip(values, _LIMITS.min, _LIMITS.max), values)
    if values.size == 1 and finite.all() and 0 < abs(float(values[0])) < _LIMITS.tiny:
        held = np.copysign(np.full_like(values, _LIMITS.tiny), values)
    return held.astype(FP32)


def beyond(values: Array) -> int:
    """How many finite doubles float32 cannot hold."""
    return 0 if values.dtype != FP64 else int(np.count_nonzero(np.isfinite(values) & (np.abs(values) > _LIMITS.max)))


def as_type(values: Array, dtype: np.dtype[Any]) -> Array:
    """The values in another float type; beyond its range they are infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(dtype)
