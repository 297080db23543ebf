"""What values the inputs of a model get: extremes, mean and spread of each, added up while the data streams by.

Two sets of data that were prepared in different ways show it here: pictures from 0 to 255 have another mean and spread
than pictures from 0 to 1 or with mean and standard deviation taken out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.batches import BatchAxes, samples_of
from qcompiler.data.samples import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENOUGH = 16  # different samples: fewer can neither be dealt into parts nor show what is rare
_CHUNK = 1 << 13  # elements that are held as float64 at a time; as in `numerics.sqnr`


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one input over all samples, in its own unit.

    Attributes:
        kind: what numpy calls the element type: `f`, `i`, `u`.
        bits: of an element.
        count: elements.
        minimum: smallest value.
        maximum: largest value.
        mean: over all elements.
        std: standard deviation over all elements.
        kurtosis: fourth central moment over that of `std`, 3 for a normal distribution: how much single elements count.
    """

    kind: str
    bits: int
    count: int
    minimum: float
    maximum: float
    mean: float
    std: float
    kurtosis: float = 3.0

    def to_json(self) -> dict[str, Any]:
        """For the manifest, in as many digits as do not depend on the order of the data."""
        figures = {name: float(f"{getattr(self, name):.6g}") for name in ("minimum", "maximum", "mean", "std")}
        return {"elements": self.count, **figures}


class Spreads:
    """Watches feeds; numbers only, and only values that are finite."""

    def __init__(self, axes: BatchAxes | None = None) -> None:
        """`axes` say how many samples a feed has; None where nobody will ask."""
        self._axes = axes
        self._sums: dict[str, _Sums] = {}
        self._prints: set[bytes] = set()

    @property
    def different(self) -> int:
        """How many different samples there were, counted up to `ENOUGH`."""
        return len(self._prints)

    def watch(self, feeds: Mapping[str, Any]) -> None:
        """Adds the values of one feed, of whatever size, and counts its samples while there are few."""
        for name, array in feeds.items():
            if isinstance(array, np.ndarray) and array.dtype.kind in "fiu" and array.size:
                self._sums.setdefault(name, _Sums(array.dtype)).add(array)
        if self._axes is None or self.different == ENOUGH:
            return
        for one in samples_of(dict(feeds), self._axes):
            self._prints.add(fingerprint(one))
            if self.different == ENOUGH:
                return

    def found(self) -> dict[str, Spread]:
        """By input, in the order in which they were seen first."""
        return {name: sums.spread() for name, sums in self._sums.items() if sums.count}


class _Sums:
    """Of one input; shifted by its first value, so that squares do not swallow a small spread around a large mean."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.kind, self.bits = dtype.kind, 8 * dtype.itemsize
        self.count = 0
        self.origin = 0.0
        self.total = self.squares = self.cubes = self.fourths = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, array: NDArray[Any]) -> None:
        for part in _parts(array):
            known = np.isfinite(part)
            values = part if known.all() else part[known]
            if not values.size:
                continue
            if not self.count:
                self.origin = float(values[0])
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))
            moved = values - self.origin
            self.count += values.size
            self.total += float(moved.sum())
            squared = moved * moved
            self.squares += float(squared.sum())
            self.cubes += float(squared @ moved)
            self.fourths += float(squared @ squared)

    def spread(self) -> Spread:
        mean, second, third, fourth = (
            moment / self.count for moment in (self.total, self.squares, self.cubes, self.fourths)
        )
        variance = max(second - mean**2, 0.0) if self.minimum < self.maximum else 0.0
        around = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        kurtosis = max(around / variance**2, 1.0) if variance else 1.0
        limits = self.minimum, self.maximum
        return Spread(self.kind, self.bits, self.count, *limits, self.origin + mean, math.sqrt(variance), kurtosis)


def _parts(array: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK].astype(np.float64)
