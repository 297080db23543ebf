"""Plans held against a goal, on the simulator: all samples that choose, or the choosing half of the user's metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qcompiler.ir.signature import Feeds
from qcompiler.judge.margin import Bound, SampleTally
from qcompiler.judge.noise import Expected, shares_of
from qcompiler.planning.search.goal import Check
from qcompiler.planning.simulation.noise import Advance, errors_of, expected_of
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.verification.metrics.halves import MetricHalves

if TYPE_CHECKING:
    from qcompiler.verification.metric import Run

Halves = Callable[["Run"], MetricHalves]  # the user's metric on a float model


class Samples:
    """The samples that choose, with what the float model gives for them.

    Args:
        simulator: runs the plans.
        feeds: all samples that choose, never those that judge.
        advance: called with the number of runs done.

    Attributes:
        runs: how often the model was asked; what somebody has run on this simulator before is not run again, and
            counts all the same.
    """

    def __init__(self, simulator: Simulator, feeds: Sequence[Feeds], advance: Advance | None = None) -> None:
        self._simulator, self._feeds, self._advance = simulator, feeds, advance
        self._expected: list[Expected] = []
        self.runs = 0

    def bound(self, uses: Mapping[str, Use], *, varying: bool = False) -> Bound:
        """The SQNR of the worst view over all samples, with its margin, with these groups quantized.

        Args:
            uses: how the groups are quantized that are.
            varying: beside what varies from sample to sample, too, and the margin does not count.
        """
        if not self._expected:
            self._expected = [expected_of(self._simulator, feed, self._advance) for feed in self._feeds]
            self.runs += len(self._feeds)
        tally = SampleTally(shares_of(self._expected) if varying else None)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            tally.add_errors(expected, errors_of(self._simulator, feed, uses, self._advance))
        self.runs += len(self._feeds)
        return tally.worst(margin=not varying)


def by_sqnr(samples: Samples, target_db: float, *, margin: bool = True) -> Callable[[Mapping[str, Use]], Check]:
    """Holds plans against a number of dB.

    Args:
        samples: all that choose.
        target_db: the number.
        margin: less what other samples may take; not where the number has room for that already.
    """

    def check(uses: Mapping[str, Use]) -> Check:
        found = samples.bound(uses, varying=not margin)
        room = found.margin_db if margin else 0.0
        return Check(found.sqnr_db - room >= target_db, found.sqnr_db, room)

    return check


def by_metric(
    halves: MetricHalves, simulator: Simulator, limit: float, least: Callable[[Mapping[str, Use]], Check] | None = None
) -> Callable[[Mapping[str, Use]], Check]:
    """Holds plans against what a metric may lose.

    Args:
        halves: the metric on the float model.
        simulator: runs the plans.
        limit: what may be lost, relative to the float score.
        least: a gate of dB that must hold, too; None for none.
    """

    def check(uses: Mapping[str, Use]) -> Check:
        loss = halves.loss(lambda feeds: simulator.infer(dict(feeds), uses), limit=limit)
        holds = loss.within(limit) and (least is None or least(uses).holds)
        return Check(holds, loss.whole, loss.spare(limit))

    return check
