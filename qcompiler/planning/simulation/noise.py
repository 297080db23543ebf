"""How much noise a plan of formats sends to the outputs, measured by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import energy
from qcompiler.planning.simulation.simulator import Simulator, Use, Uses

Advance = Callable[[int], None]
_Sample = tuple[Feeds, Feeds, dict[str, float]]  # inputs, float outputs, energy of each output


class Measure:
    """Noise-to-signal power of a plan at the float outputs: pooled over samples, the mean over outputs.

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
        reference = self._simulator.run(feed, {})
        return feed, reference, {name: energy(reference[name]) for name in self._simulator.outputs}

    def noise(self, uses: Uses, *, few: bool = False) -> float:
        """Noise-to-signal power with these groups quantized, all others in float; known results are not run again."""
        key = (few, tuple(sorted(uses.items(), key=lambda one: one[0])))
        if key not in self._known:
            self._known[key] = self._run(uses, self._few if few else self._all)
        return self._known[key]

    def _run(self, uses: Uses, samples: Sequence[_Sample]) -> float:
        error = dict.fromkeys(self._simulator.outputs, 0.0)
        for feed, reference, _ in samples:
            outputs = self._simulator.run(feed, uses)
            for name in error:
                error[name] += energy(np.asarray(outputs[name]) - reference[name])
        self.runs += len(samples)
        if self._advance is not None:
            self._advance(len(samples))
        signal = {name: sum(row[name] for _, _, row in samples) for name in error}
        ratios = [error[name] / signal[name] for name in error if signal[name] > 0]
        return sum(ratios) / len(ratios) if ratios else 0.0


def _elements(feeds: Sequence[Feeds]) -> int:
    return sum(np.size(array) for feed in feeds for array in feed.values())
