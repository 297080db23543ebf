"""All layers quantized at once, on one sample: how long such a run takes, and how near it comes to float.

That is no result: ranges are those of the sample itself. But where it is far above the goal, no search will have to
look at single layers, which is most of what a search takes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import find_views
from qcompiler.numerics.sqnr import decibel
from qcompiler.plan import Candidate
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Grids, Simulation, Use
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType

_SLIGHTLY = 0.999  # of a range: another plan of the same cost, for the second run


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What one sample has shown.

    Attributes:
        seconds: of a run with all layers quantized.
        opening: seconds until the simulator was there, with the weights rounded.
        sqnr_db: of the worst view; infinite where nothing can be quantized or judged.
        runs: of the model.
    """

    seconds: float
    opening: float
    sqnr_db: float
    runs: int


def first_look(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    histograms: Mapping[str, Histogram],
    feed: Feeds,
    *,
    dtype: DType,
    per_channel: bool,
    ignored: Collection[str] = (),
) -> FirstLook | None:
    """Quantizes all groups at once, in the whole range that the sample has; None where there is nothing to quantize.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation that they share; what came quantized is left out.
        histograms: of the activations on this sample.
        feed: the sample.
        dtype: INT8 or FP8.
        per_channel: a scale per output channel for weights.
        ignored: outputs that are not judged.
    """
    fresh = {
        name: members
        for name, members in groups.items()
        if name in histograms and histograms[name].amax > 0 and all(one.scales is None for one in members)
    }
    if not fresh:
        return None
    uses = {name: Use(dtype, histograms[name].amax) for name in fresh}
    slightly = {name: Use(dtype, one.amax * _SLIGHTLY) for name, one in uses.items()}
    started = time.perf_counter()
    grids = Grids(per_channel, False, None)
    offers = {name: (uses[name], slightly[name]) for name in fresh}
    views = find_views(model.graph, dict(feed), tuple(ignored))
    simulation = Simulation.of(model, fresh, offers, [feed], grids, {}, views)
    opened = time.perf_counter()
    measure = Measure(simulation.simulator, [feed], 1, None)
    noise = measure.noise(uses)
    warm = time.perf_counter()
    noise = min(noise, measure.noise(slightly))
    return FirstLook(time.perf_counter() - warm, opened - started, decibel(noise), measure.runs)
