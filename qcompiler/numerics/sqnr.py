"""The one place of dB, cosine and relative error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


NOTHING: Final = 1e-20  # noise-to-signal power below which two results are called equal
EXACT_DB: Final = 200.0  # the same in dB
APART_DB: Final = 3.0  # twice the noise: two figures that far apart are both told
TINY: Final = 1e-30  # power that stands for none where two errors are compared
STRETCH: Final = 1 << 14  # elements that are summed in FP32
# Elements that are held as float64 at a time. From 10,000 on OpenBLAS shares a dot product out to threads, and their
# synchronization takes longer than the sums
_BLOCK: Final = 1 << 13


def sqnr_db(signal: float, noise: float) -> float:
    """10 · log10(signal / noise) of two sums of squares, in dB.

    Returns:
        inf without any noise, -inf where the signal is zero beside it or the noise is not finite.
    """
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def sqnr_of(reference: NDArray[Any], error: NDArray[Any]) -> float:
    """`sqnr_db` of two tensors.

    Args:
        reference: what should have come out.
        error: the difference to it, not the other value.
    """
    return sqnr_db(power(reference), power(error))


def decibel(noise: float, least: float = NOTHING) -> float:
    """SQNR in dB of a noise-to-signal power.

    Args:
        noise: the power.
        least: powers below it count as this one: 200 dB stand for equal. With 0.0 equal is infinite.

    Returns:
        -inf where the noise is not finite.
    """
    if not math.isfinite(noise):
        return -math.inf
    counted = max(noise, least)
    return -10 * math.log10(counted) if counted > 0 else math.inf


def noise_power(db: float) -> float:
    """Noise-to-signal power of an SQNR in dB."""
    return 10 ** (-db / 10)


def gain_db(before: float, after: float) -> float:
    """By how many dB a power falls; one below TINY counts as TINY."""
    ratio = max(before, TINY) / max(after, TINY)
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def power(x: NDArray[Any]) -> float:
    """Σ x², summed in float64 a block at a time."""
    flat = x.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return total


def relative_error(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """max |other − reference| / max |reference|: 0.0 if equal, inf where only the reference is zero or NaN differs.

    Elements that are equal, infinities included, or NaN in both do not count; a NaN or infinity in only one of the
    two makes the result infinite.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differ.any():
        return 0.0
    gap = np.abs(a[differ] - b[differ])
    finite = np.abs(a[np.isfinite(a)])
    top = float(finite.max(initial=0.0))
    if not np.isfinite(gap).all() or top == 0:
        return float("inf")
    return float(gap.max()) / top


def cosine(product: float, first: float, second: float) -> float:
    """Cosine of the angle between two tensors taken as vectors, 0.0 if one is zero.

    Args:
        product: sum of the products of their elements.
        first: sum of squares of the one.
        second: sum of squares of the other.
    """
    lengths = math.sqrt(first) * math.sqrt(second)
    return product / lengths if lengths else 0.0


def energy(values: NDArray[Any]) -> float:
    """Sum of squares: short stretches in FP32, which costs a tenth, and their sums in double precision."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    with np.errstate(over="ignore"):
        total = float(sum(float(np.dot(part, part)) for part in np.split(flat, range(STRETCH, flat.size, STRETCH))))
    return total if math.isfinite(total) else power(np.asarray(values))


BLOCK = 1 << 20  # elements of a weight that are worked on at a time
