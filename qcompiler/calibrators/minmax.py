"""The largest value seen."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.calibrators.base import Calibrator
from qcompiler.statistics.histogram import Histogram


@dataclass(frozen=True)
class MinMax(Calibrator):
    """The largest |x| seen: nothing is clipped, and one outlier coarsens everything else."""

    def choose(self, h: Histogram) -> float:
        """The exact amax."""
        return h.amax
