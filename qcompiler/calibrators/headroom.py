"""The largest value seen, times a factor: room for what other data will bring."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcompiler.calibrators.base import Calibrator
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram


@dataclass(frozen=True)
class Headroom(Calibrator):
    """The largest |x| seen, times a factor: for data whose loudest samples calibration has not seen.

    The largest of n samples is exceeded by one in n others. Where tails are heavy it is exceeded by far, and what is
    clipped then costs more than the coarser steps of a wider range.

    Attributes:
        times: the factor, 1 and more.

    Raises:
        UsageError: times out of its range.
    """

    times: float = 1.25

    def __post_init__(self) -> None:
        if not 1 <= self.times < math.inf:
            raise UsageError(f"headroom takes times of 1 and more, but got {self.times}: write headroom{{times=1.25}}")

    def choose(self, h: Histogram) -> float:
        """The exact amax, times the factor."""
        return h.amax * self.times
