"""How much noise a plan of formats sends to what is judged, measured by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, Tally
from qcompiler.planning.simulation.simulator import Simulator, Use, Uses

Advance = Callable[[int], None]
_Sample = tuple[Feeds, Expected]  # inputs, what the float model gives


class Measure:
    """Tally-to-signal power of a plan at the worst view, pooled over samples.

    Args:
        simulator: runs the plans.
        feeds: samples.
        few: how many of them `noise(few=True)` runs.
        advance: called with the number of runs done.
        brief: the samples of `noise(few=True)`, where they are not the first of `feeds`.
    """

    def __init__(
        self,
        simulator: Simulator,
        feeds: Sequence[Feeds],
        few: int,
        advance: Advance | None,
        *,
        brief: Sequence[Feeds] | None = None,
    ) -> None:
        self._simulator, self._advance = simulator, advance
        self._all = [self._sample(feed) for feed in feeds]
        self._few = self._all[:few] if brief is None else [self._sample(feed) for feed in brief]
        self.few, self.runs = len(self._few), len(feeds) + len(brief or ())
        self.shortness = _elements(brief or feeds[:few]) / max(_elements(feeds[: self.few]), 1)
        self._known: dict[tuple[bool, tuple[tuple[str, Use], ...]], float] = {}

    def _sample(self, feed: Feeds) -> _Sample:
        return feed, Expected.of(self._simulator.views, self._simulator.run(feed, {}), feed)

    def noise(self, uses: Uses, *, few: bool = False) -> float:
        """Tally-to-signal power with these groups quantized, all others in float; known results are not run again."""
        key = (few, tuple(sorted(uses.items(), key=lambda one: one[0])))
        if key not in self._known:
            self._known[key] = self._run(uses, self._few if few else self._all)
        return self._known[key]

    def _run(self, uses: Uses, samples: Sequence[_Sample]) -> float:
        total = Tally()
        for feed, expected in samples:
            total.add(expected, self._simulator.run(feed, uses))
        self.runs += len(samples)
        if self._advance is not None:
            self._advance(len(samples))
        return total.worst()


def _elements(feeds: Sequence[Feeds]) -> int:
    return sum(np.size(array) for feed in feeds for array in feed.values())
