"""What measured seconds say: percentiles, the spread between rounds, and the comparison with the first model.

Rounds are interleaved: in each, every model is measured once. The comparison is made within each round and then the
median of the rounds is taken, so that what slows the whole machine down for a while slows both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How many times better than the first model: above 1 is faster. Median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """One metric of one model.

    Attributes:
        unit: `s`, `s/token`, `samples/s` or `tokens/s`.
        median: of the rounds' medians.
        low, high: quartiles of the rounds' medians.
        spread: (high - low) / median: how noisy the machine was.
        p50, p90, p99: percentiles of all single measurements; for rates, of the rounds.
        count: single measurements.
        better: against the first model; None for the first itself.
    """

    unit: str
    median: float
    low: float
    high: float
    spread: float
    p50: float
    p90: float
    p99: float
    count: int
    better: Ratio | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def seconds(rounds: Sequence[Sequence[float]], first: Sequence[Sequence[float]] | None, unit: str = "s") -> Figure:
    """A latency: one list of seconds for each round; `first` is the same of the first model, None for that itself."""
    medians = np.array([np.median(one) for one in rounds])
    before = None if first is None else np.array([np.median(one) for one in first])
    return _figure(
        unit, medians, np.concatenate([np.asarray(one) for one in rounds]), None if before is None else before / medians
    )


def rates(rounds: Sequence[float], first: Sequence[float] | None, unit: str) -> Figure:
    """Something a second, one value for each round."""
    values = np.asarray(rounds, np.float64)
    return _figure(unit, values, values, None if first is None else values / np.asarray(first))


def agreement(mine: Sequence[tuple[int, Sequence[int]]], first: Sequence[tuple[int, Sequence[int]]]) -> float | None:
    """Share of places where both models think the same token most likely; None without a common place.

    Args:
        mine: position and the choice of each row there.
        first: the same of the first model.
    """
    known = dict(first)
    pairs = [(a, b) for position, row in mine if position in known for a, b in zip(row, known[position], strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def _figure(unit: str, medians: np.ndarray, single: np.ndarray, better: np.ndarray | None) -> Figure:
    low, middle, high = (float(value) for value in np.percentile(medians, (25, 50, 75)))
    p50, p90, p99 = (float(value) for value in np.percentile(single, (50, 90, 99)))
    ratio = None
    if better is not None:
        below, median, above = (float(value) for value in np.percentile(better, (25, 50, 75)))
        ratio = Ratio(median, below, above)
    return Figure(unit, middle, low, high, (high - low) / middle if middle else 0.0, p50, p90, p99, len(single), ratio)
