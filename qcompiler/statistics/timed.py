"""One feed of the data, run and counted as the observation will do it, with a clock: what estimates are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any

from qcompiler.data.batches import BatchAxes
from qcompiler.data.deal import Parts
from qcompiler.data.samples import elements
from qcompiler.data.source import Source, open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds, inputs_of
from qcompiler.runtime.stream import OpenModel, fill
from qcompiler.runtime.work import count_macs
from qcompiler.statistics.histogram import Histograms
from qcompiler.statistics.observe import Observations, observe
from qcompiler.statistics.points import Points
from qcompiler.support.foreseen import NO_SCORE, Clock, ScoreWork

LOOKED_AT = 8  # feeds among which one of middling size is looked for
KEPT = 16  # samples that outlive the observation, of each part that is kept
_ONCE = 1.0  # seconds of a first run from which on there is no second one: what warms up is small beside it


@dataclass(frozen=True, eq=False)
class Timed:
    """What one feed has shown, and how many there are.

    Attributes:
        clock: seconds of a run over one sample of middling size.
        seen: what the observation of that feed alone tells.
        macs: multiply-accumulates of the model on one sample.
        calibrate: samples of that part of the data.
        choose: samples of that part; 0 where it has none.
        judge: samples of that part; 0 where it has none.
        runs: how often the model was run for all this.
        scale: seconds of a sample of middling size, where one of the timed feed takes 1.
        sqnr_db: of the outputs with all layers quantized on it; None where nobody has looked.
        elements: of all inputs of a sample of middling size.
        scoring: what it takes to ask the user's metric once; nothing where there is none.
    """

    clock: Clock
    seen: Observations
    macs: int
    calibrate: float
    choose: float
    judge: float
    runs: int
    scale: float = 1.0
    sqnr_db: float | None = None
    elements: float = 1.0
    scoring: ScoreWork = NO_SCORE

    @property
    def kept(self) -> float:
        """How many of the samples that calibrate are kept."""
        return min(KEPT, self.calibrate)

    def looked(self, seconds: float, sqnr_db: float, runs: int) -> Timed:
        """The same where layers were quantized, too.

        Args:
            seconds: of a run over one sample of the timed feed.
            sqnr_db: of the outputs.
            runs: that it took.
        """
        clock = replace(self.clock, quantized=seconds * self.scale)
        return replace(self, clock=clock, sqnr_db=sqnr_db, runs=self.runs + runs)

    @property
    def choosing(self) -> float:
        """How many samples choices are made by."""
        return min(KEPT, self.choose) or self.kept


def timed(model: models.Model, points: Points, source: Source, parts: Parts, axes: BatchAxes) -> Timed:
    """Runs one feed: plainly, with histograms, and as the observation does it; each twice unless a run takes long.

    Args:
        model: the float model that will be observed.
        points: what will be observed.
        source: all of the data.
        parts: the same data, dealt.
        axes: which axes of the inputs are a batch.

    Raises:
        DataError: a feed does not fit the model, or is not finite.
        ModelError: the model cannot be run, or an output is NaN.
    """
    looked = list(islice(parts.calibrate, LOOKED_AT))
    sizes = [elements(feed) for feed in looked]
    feed = looked[sizes.index(sorted(sizes)[len(sizes) // 2])]
    count = axes.count(feed)
    started = time.perf_counter()
    session = OpenModel(model, quick=True)  # as simulators are opened, whose runs are the most
    opened = time.perf_counter() - started
    run, runs = _shortest(session, feed)
    del session
    laps = _Laps()
    fill(model, [Histograms(list(dict(points.outliers)))], [feed] * runs, advance=laps)
    counted = laps.last
    # Each is counted while the next one runs; what has to be compiled for it is there by now
    again = open_source([feed] * runs, inputs_of(model.graph), stored=model.ends)
    laps = _Laps()
    seen = observe(model, points, again, axes=axes, advance=laps)
    laps(1)
    scale = fmean(sizes) / max(elements(feed), 1)  # feeds differ in length
    each = scale / count
    calibrate, choose, judge = (part * count / (source.batch or 1) for part in parts.samples)
    return Timed(
        Clock(run * each, run * each, counted * each, laps.last * each, opened),
        seen,
        sum(count_macs(model.graph, seen.kept[0]).values()),
        calibrate,
        choose,
        judge,
        3 * runs,
        scale,
        elements=max(fmean(sizes) / count, 1.0),
    )


class _Laps:
    """Called now and then, it knows how long the last lap took."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self.last = 0.0

    def __call__(self, _: Any) -> None:
        now = time.perf_counter()
        self._at, self.last = now, now - self._at


def _shortest(session: OpenModel, feed: Feeds) -> tuple[float, int]:
    """Seconds of a run that is warm, and how many it took."""
    laps = _Laps()
    session.run(feed)
    laps(1)
    first = laps.last
    if first >= _ONCE:
        return first, 1
    session.run(feed)
    laps(1)
    return min(first, laps.last), 2
