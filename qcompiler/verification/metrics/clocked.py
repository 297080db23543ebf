"""The user's metric on the float model, with a clock: what asking it again will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.data.samples import elements
from qcompiler.ir import model as models
from qcompiler.support.foreseen import ScoreWork
from qcompiler.verification.metric import runner_of
from qcompiler.verification.metrics.halves import MetricHalves

if TYPE_CHECKING:
    from qcompiler.verification.metric import Feeds, Metric
    from qcompiler.verification.metrics.halves import Answer


@dataclass(frozen=True, eq=False)
class Clocked:
    """A metric that was measured on a float model.

    Attributes:
        model: that it was measured on.
        halves: the metric, with the answers of that model.
        own: seconds of one score, without the runs of the model.
        fed: elements of all feeds of one score.
    """

    model: models.Model
    halves: MetricHalves
    own: float
    fed: int

    def scoring(self, elements: float) -> ScoreWork:
        """What one score takes, where a sample of the data has so many elements."""
        return ScoreWork(self.own, self.fed / elements, split=not self.halves.why)


def clocked(metric: str | Metric, model: models.Model) -> Clocked:
    """Measures a metric on a float model.

    Args:
        metric: as of `MetricHalves`.
        model: the float model.

    Raises:
        UsageError: the metric cannot be loaded, fails or returns no number.
        ModelError: the model cannot be run.
    """
    run, _ = runner_of(model, True, quick=True)
    running, fed = 0.0, 0

    def timed(feeds: Feeds) -> Answer:
        nonlocal running, fed
        started = time.perf_counter()
        answer = run(feeds)
        running += time.perf_counter() - started
        fed += elements(feeds)
        return answer

    started = time.perf_counter()
    halves = MetricHalves(metric, timed)
    took = time.perf_counter() - started
    return Clocked(
        model, halves, max(took - running, 0.0) / halves.scores, fed if halves.complete else fed // halves.scores
    )
