"""How much noise a plan of formats sends to the outputs, measured by the simulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import numerics
from qcompiler.session import Feeds
from qcompiler.simulate import Simulator, Use, Uses

if TYPE_CHECKING:
    from numpy.typing import NDArray

Advance = Callable[[int], None]
_Sample = tuple[Feeds, Feeds, dict[str, float]]  # inputs, float outputs, energy of each output
STRETCH = 1 << 14  # elements that are summed in FP32
NOTHING = 1e-20  # noise-to-signal power below which two results are called equal (200 dB)


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


def energy(values: NDArray[Any]) -> float:
    """Sum of squares: short stretches in FP32, which costs a tenth, and their sums in double precision."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    with np.errstate(over="ignore"):
        total = float(sum(float(np.dot(part, part)) for part in np.split(flat, range(STRETCH, flat.size, STRETCH))))
    return total if math.isfinite(total) else numerics.power(np.asarray(values))


def power(db: float) -> float:
    """Noise-to-signal power of an SQNR in dB."""
    return 10 ** (-db / 10)


def sqnr_db(noise: float) -> float:
    """SQNR in dB of a noise-to-signal power; 200 stands for equal."""
    return -10 * math.log10(max(noise, NOTHING))
