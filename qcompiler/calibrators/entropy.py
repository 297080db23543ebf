"""TensorRT's entropy calibration: the range that loses the least information."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrators.base import Calibrator
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram

_BLOCK = 128  # thresholds worked on at a time: their tables stay in the cache
_TINY = 1e-300  # for logarithms of masses that are multiplied by zero
_TIE = 1e-9  # nats; far above the rounding of the sums, far below what tells two ranges apart


@dataclass(frozen=True)
class Entropy(Calibrator):
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the real one.

    TensorRT's procedure (S. Migacz, "8-bit inference with TensorRT", GTC 2017, s7310), as `divergence` has it, on a
    histogram of |x| over the whole range seen, with every threshold tried. Among thresholds whose divergence is within
    1e-9 nats of the least, the largest wins: it clips the least.

    It judges uniform levels, so it is the wrong criterion for FP8: take `mse{format=fp8}` there.

    Attributes:
        bins: of the histogram; more than `levels`.
        levels: magnitudes that the quantized type tells apart: 128 for INT8.

    Raises:
        UsageError: bins or levels that leave nothing to search.
    """

    bins: int = 2048
    levels: int = 128

    def __post_init__(self) -> None:
        if self.levels < 2 or self.bins <= self.levels:
            raise UsageError(
                f"entropy needs at least 2 levels and more bins than levels, but got bins={self.bins}, "
                f"levels={self.levels}: with a single threshold there is nothing to search; write "
                "entropy{bins=2048,levels=128}"
            )

    def choose(self, h: Histogram) -> float:
        """The upper edge of the last bin that is kept."""
        curve = divergence(h.uniform_bins(self.bins, h.amax), self.levels)
        best = int(np.flatnonzero(curve <= curve.min() + _TIE)[-1]) + self.levels
        return h.amax * best / self.bins


def divergence(bins: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """KL(P‖Q) for every threshold i = levels .. len(bins).

    First bins[0] is set to bins[1], as TensorRT's tools do: zero is exact under every range, so the mass there (half
    of the elements behind a ReLU) must not take part in the choice. Then, for each i,

        P = bins[:i], with everything beyond i added to its last bin
        Q = bins[:i] merged into `levels` groups (bin k into group ⌊k · levels / i⌋), the mass of a group spread evenly
            over those of its bins that are not empty
        KL = Σ P log(P / Q), both normalised to 1; infinite where Q is 0 and P is not.

    With prefix sums over the bins this needs one logarithm for each group and threshold:
    N · KL = Σ P log P − Σ_g m_g log(m_g / n_g) − out · log(m_last / n_last) − N log N + N log S, where m_g and n_g are
    mass and non-empty bins of a group, out is the mass beyond i, N the whole mass and S the mass below i.

    Args:
        bins: counts, at least `levels` of them; the last one is not empty.
        levels: groups.

    Returns:
        float64 [len(bins) − levels + 1] in nats, never negative but for rounding.
    """
    bins = bins.copy()
    bins[0] = bins[1]
    mass, filled, information = _prefix(bins), _prefix((bins > 0).astype(np.float64)), _prefix(_xlogx(bins))
    edges = _edges(bins.size, levels)
    merged, logs = np.empty(len(edges)), np.empty(len(edges))
    for start in range(0, len(edges), _BLOCK):
        block = slice(start, start + _BLOCK)
        group = np.diff(mass[edges[block]], axis=1)
        log = np.log(np.maximum(group, _TINY) / np.maximum(np.diff(filled[edges[block]], axis=1), 1.0))
        merged[block] = np.einsum("ij,ij->i", group, log)
        logs[block] = log[:, -1]

    kept = np.arange(levels, bins.size + 1)
    total, below, last = mass[-1], mass[kept], bins[kept - 1]
    beyond = total - below
    reference = information[kept - 1] + _xlogx(last + beyond)
    curve = (reference - merged - beyond * logs) / total - np.log(total) + np.log(np.maximum(below, _TINY))
    return np.where((beyond > 0) & (last <= 0), np.inf, curve)


@lru_cache(maxsize=2)
def _edges(bins: int, levels: int) -> NDArray[np.intp]:
    """First bin of each group, and one past the last: [thresholds, levels + 1]."""
    kept = np.arange(levels, bins + 1, dtype=np.intp)[:, None]
    return -(-np.arange(levels + 1, dtype=np.intp) * kept // levels)


def _prefix(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _xlogx(x: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = x * np.log(np.where(x > 0, x, 1.0))
    return product
