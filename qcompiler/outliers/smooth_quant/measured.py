"""What a smoothed model reaches with all of its layers quantized, before anything is folded for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from qcompiler import calibrators
from qcompiler.calibrators.auto import AUTO
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import find_views, weighed
from qcompiler.numerics.sqnr import decibel
from qcompiler.plan import Candidate
from qcompiler.planning.placement.candidates import by_activation
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType

RANGES: Final = ("mse", "percentile{p=99.99}", "minmax")
RANGES_FP8: Final = ("mse{format=fp8}", "minmax")


def ranges_of(dtype: DType) -> tuple[str, ...]:
    """The calibrators whose ranges are tried."""
    return RANGES_FP8 if dtype is DType.FP8 else RANGES


def measure(
    model: models.Model,
    found: Sequence[Candidate],
    histograms: Mapping[str, Histogram],
    feeds: Sequence[Feeds],
    *,
    fitted: Sequence[Feeds],
    dtype: DType,
    calibrator: str,
    per_channel: bool,
    ignored: tuple[str, ...] = (),
    likelihood: bool = False,
) -> tuple[float, int]:
    """SQNR in dB of the worst view with all candidates quantized, in the best of the ranges that one calibrator gives.

    And how often the model was run for it.

    Args:
        model: the float model, normalised and smoothed or not.
        found: its candidates.
        histograms: of their activations.
        feeds: samples to measure on.
        fitted: samples for the means of bias correction.
        dtype: INT8 or FP8.
        calibrator: the recipe's; `auto` tries several.
        per_channel: weight scales per output channel, else per tensor.
        ignored: outputs that are not judged.
        likelihood: what the next token is drawn by is compared by the likelihood that it loses.
    """
    groups = by_activation(one for one in found if histograms[one.activation].amax > 0)
    texts = (calibrator,) if calibrator != AUTO else ranges_of(dtype)
    methods = [calibrators.parse(text) for text in texts]
    ranges = {name: [method.range(histograms[name]) for method in methods] for name in groups}
    shifts = Shifts(model, groups, ranges, fitted, per_channel=per_channel)
    views = find_views(model.graph, feeds[0], ignored)
    views = weighed(views) if likelihood else views
    simulator = Simulator(model, groups, shifts, per_channel=per_channel, dtypes=(dtype,), views=views)
    probe = Measure(simulator, feeds, len(feeds), None)
    reached = max(
        decibel(probe.noise({name: Use(dtype, offered[i]) for name, offered in ranges.items()}))
        for i in range(len(methods))
    )
    return reached, probe.runs
