"""Ranges on offer: `auto` gives several to choose from, any other calibrator its own one."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler import calibrators
from qcompiler.calibrators import mse
from qcompiler.numerics.rounding import format_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType

AUTO = "auto"
AUTO_RANGES = ("mse", "percentile{p=99.99}", "percentile{p=99.999}", "minmax", "percentile{p=99.9}")
FP8_RANGES = ("mse{format=fp8}", "minmax")  # of a grid that spans 15 octaves


def offered(
    calibrator: str, histograms: Mapping[str, Histogram], dtype: DType = DType.INT8
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Clipping ranges to choose from by tensor, best guess first, and the calibrator that each came from.

    `auto` offers several, any other calibrator its own one only; that of least error works on the grid of the format.
    """
    several = FP8_RANGES if dtype is DType.FP8 else AUTO_RANGES
    methods = [calibrators.parse(text) for text in (several if calibrator == AUTO else (calibrator,))]
    methods = [mse.MSE(format_of(dtype)) if isinstance(one, mse.MSE) else one for one in methods]
    ranges = {name: [method.range(histogram) for method in methods] for name, histogram in histograms.items()}
    return ranges, {name: [str(method) for method in methods] for name in histograms}
