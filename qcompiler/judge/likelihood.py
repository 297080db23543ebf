"""What noise takes from a distribution that is read as it is: how much less likely the next token becomes.

    p = softmax(float), q = softmax(quantized)        KL = sum p (ln p - ln q) nats        rises = exp(mean KL) - 1

A language model is judged by the likelihood of what comes, not by its first choice: perplexity = exp(mean -ln q). If
the float model is as sure as it says, what comes is drawn from p, and the perplexity rises by a factor of exp(KL). It
takes no label, and has none of the chance that labels bring: each token of the vocabulary is weighed at each place.

Choices need errors that add up from layer to layer, as powers do. For small errors e of the logits,

    2 KL = sum p (e - sum p e)^2        the power of sqrt(p) (e - sum p e)

so logits are compared as `weighed` gives them. A number that is added to all of them counts nothing then, nor does
what befalls tokens that nobody draws: both make most of the plain power of an error. The signal is 2 a row: noise at
20 dB is a KL of .01, a perplexity that is 1 % higher.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 20  # elements that are held as float64 at a time


class Likelihood:
    """Sums over the rows of one view, of both models."""

    def __init__(self) -> None:
        self._nats, self._rows = 0.0, 0

    def add(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        """One sample [..., tokens of the vocabulary]; rows of which a value is not finite are left out."""
        if reference.shape != got.shape or not reference.ndim or reference.shape[-1] < 2 or not reference.size:
            return
        width = reference.shape[-1]
        first, second = reference.reshape(-1, width), got.reshape(-1, width)
        step = max(1, _CHUNK // width)
        for start in range(0, len(first), step):
            self._add(first[start : start + step], second[start : start + step])

    def rises(self) -> float | None:
        """By how much the perplexity rises, 0.01 for 1 %; None without a row."""
        if not self._rows:
            return None
        mean = self._nats / self._rows
        return math.expm1(mean) if mean < math.log(1e300) else math.inf

    def _add(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        seen = np.isfinite(reference).all(axis=1) & np.isfinite(got).all(axis=1)
        first, second = (_log_softmax(one[seen].astype(np.float64)) for one in (reference, got))
        self._nats += float((np.exp(first) * (first - second)).sum())
        self._rows += len(first)


def roots_of(reference: NDArray[Any]) -> NDArray[Any]:
    """Square roots of the probabilities that logits [..., vocabulary] stand for, of the same shape and type."""
    with np.errstate(invalid="ignore", over="ignore"):
        level = reference - reference.max(axis=-1, keepdims=True)
        np.exp(level, out=level)
        level /= level.sum(axis=-1, keepdims=True)
        return np.asarray(np.sqrt(level, out=level))


def weighed(value: NDArray[Any], roots: NDArray[Any]) -> NDArray[Any]:
    """Logits as their errors count: sqrt(p) (z - sum p z).

    Args:
        value: of either model, [..., vocabulary].
        roots: sqrt(p) of the float model, of that shape. Where it is 0, as at a masked token, nothing counts.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.where(roots > 0, value * roots, 0)
        found -= roots * np.einsum("...v,...v->...", found, roots)[..., None]
    return np.asarray(found, roots.dtype)


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    level = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(level - np.log(np.exp(level).sum(axis=1, keepdims=True)))
