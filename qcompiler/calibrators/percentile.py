"""The value that all but a few elements stay below."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.calibrators.base import Calibrator
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram


@dataclass(frozen=True)
class Percentile(Calibrator):
    """The |x| that p percent of all elements do not exceed.

    It is the percentile of everything seen, not a mean over batches of each one's percentile, so it depends neither
    on the batch size nor on the order. Zeros count as elements. Where p percent of a tensor are zeros it falls back
    to the largest |x|.

    Attributes:
        p: percent, above 0 up to 100; 99.99 is what NVIDIA's pytorch-quantization takes.

    Raises:
        UsageError: p out of its range.
    """

    p: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.p <= 100:
            raise UsageError(f"percentile takes p above 0 and up to 100, but got {self.p}: write percentile{{p=99.99}}")

    def choose(self, h: Histogram) -> float:
        """The percentile, interpolated within its bucket; p = 100 is the exact amax."""
        return h.quantile(self.p) or h.amax
