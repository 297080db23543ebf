"""What rounding to half does to the outputs, and which nodes are to blame: they stay FP32.

Ranges say whether a value fits; they do not say what its rounding costs. The logarithm of a small power, the difference
of two large numbers or the sine of an angle make an error of 2⁻¹¹ large, and an error that is common to all rows does
not average out. So it is measured, on the float model, with everything in half that fits. Where that is closer to float
than the goal, on few samples with their margin or on more, nothing more is done. Else the graph is halved again and
again, and every part is tried in half alone, the loudest first, until single nodes are found or the budget is spent.
What stands out goes back to FP32, loudest first, as far as the goal needs it; noise that is spread evenly stays, for no
few nodes are to blame for it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qcompiler.ir.signature import Feeds
from qcompiler.judge.margin import Bound, SampleTally
from qcompiler.judge.noise import Expected, Tally, shares_of
from qcompiler.numerics.sqnr import decibel, noise_power
from qcompiler.planning.simulation.half import HalfSimulator
from qcompiler.support.as_json import plain
from qcompiler.target import DType

# In the middle of what networks have whose noise nobody is to blame for: one rounding is 71 dB below the signal (FP16)
# or 53 dB (BF16), and a network adds up some dozens of them
USUAL_DB = {DType.FP16: 54.0, DType.BF16: 36.0}
BELOW_DB = 10.0  # what quantization noise stays above: half then adds 0.4 dB to it
ROOM_DB = 10.0  # of what quantization leaves above the goal, so much is kept: nobody has asked for more
TRIES = 64  # sets of nodes that are tried, however large the model is
SAMPLES = 8  # that are run with everything in half
FEW = 3  # samples of a try: of these, the ones on which half errs most
TELLS = (
    64  # elements of a view whose squared errors give its noise to a fifth (√(2 / n)): one sample does to find parts
)
_LAST = 8  # of the tries, for the choice among what was found
_FINEST = 512  # parts of a model at most: in a large one, a few neighbours go back together
_SHARE = 1 / 8  # of the allowed noise: what a part must exceed to be looked into
_STANDS_OUT = 4.0  # times the mean noise of the nodes that stay
_ONE_IN = 8  # nodes may go back, or eight in all: where more are to blame, it is the model and no part of it
_WORTH = 0.25  # what is left of the noise where giving nodes back is worth it, although the goal is not met


@dataclass(frozen=True)
class HalfNoise:
    """What was measured.

    Attributes:
        goal_db: SQNR in dB that rounding to half alone should leave in every view.
        fits_db: what it leaves with everything in half that fits; infinite where nothing changes.
        sqnr_db: what it leaves with `noisy` in FP32.
        noisy: by node that goes back to FP32, the SQNR in dB that its part leaves in half alone.
        tries: sets of nodes that were tried.
        samples: feeds that `fits_db` and `sqnr_db` were measured on: few, where these leave no doubt.
    """

    goal_db: float
    fits_db: float
    sqnr_db: float
    noisy: dict[str, float] = field(default_factory=dict)
    tries: int = 0
    samples: int = 0

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.sqnr_db >= self.goal_db

    def to_json(self) -> dict[str, Any]:
        """For the manifest: plain values, infinities as "inf"."""
        return dict(plain(asdict(self)))


def goal_of(dtype: DType, reached_db: float | None, gate_db: float | None, target_db: float = math.inf) -> float:
    """The SQNR in dB that rounding to half alone should leave.

    Args:
        dtype: FP16 or BF16.
        reached_db: what quantization leaves; None where nothing is quantized.
        gate_db: what the user demands of the result; None without a gate.
        target_db: what quantization was to leave; infinite where nothing was asked.
    """
    left = None if reached_db is None else min(reached_db, target_db + ROOM_DB)
    goal = USUAL_DB[dtype] if left is None else min(USUAL_DB[dtype], left + BELOW_DB)
    return goal if gate_db is None else max(goal, gate_db + (0.0 if reached_db is None else BELOW_DB))


def find(
    simulator: HalfSimulator,
    feeds: Sequence[Feeds],
    goal_db: float,
    advance: Callable[[float], None] | None = None,
    usual_db: float = USUAL_DB[DType.FP16],
) -> HalfNoise:
    """Measures, and finds the nodes that are to blame where the goal is missed.

    Args:
        simulator: of the float model.
        feeds: samples, one at least.
        goal_db: SQNR in dB that rounding to half alone should leave in every view.
        advance: called with the number of runs.
        usual_db: what the type always costs: nobody is to blame for that beside all of a signal, however little of it
            varies from sample to sample.
    """
    units = simulator.units
    if not units or not simulator.views:
        return HalfNoise(goal_db, math.inf, math.inf)
    least = min(1.0, noise_power(usual_db - goal_db))
    if len(feeds) > FEW:
        sure = _Measure(simulator, feeds[:FEW], advance, least).bound(units)
        if sure.least_db >= goal_db:
            return HalfNoise(goal_db, sure.sqnr_db, sure.sqnr_db, {}, 1, sure.samples)
    whole = _Measure(simulator, feeds[:SAMPLES], advance, least)
    allowed, everything = noise_power(goal_db), whole(units)
    measured = HalfNoise(goal_db, decibel(everything), decibel(everything), {}, 1, len(whole.feeds))
    if everything <= allowed:
        return measured
    few = _Measure(simulator, whole.loudest(units, FEW), advance, least)
    finding = few
    if whole.elements >= TELLS:
        finding = _Measure(simulator, whole.loudest(units, 1), advance, least)
    found = _blamed(few, _parts(finding, units, allowed), units, allowed)
    noisy = {name: decibel(part.noise) for part in found for name in part.units}
    left = whole([name for name in units if name not in noisy])
    ordered = {name: noisy[name] for name in units if name in noisy}
    return replace(measured, sqnr_db=decibel(left), noisy=ordered, tries=len({*few.tried, *finding.tried}) + 1)


@dataclass(frozen=True)
class _Part:
    """Neighbouring units, and the noise that they make alone."""

    units: tuple[str, ...]
    noise: float

    @property
    def density(self) -> float:
        return self.noise / len(self.units)


def _parts(measure: _Measure, units: Sequence[str], allowed: float) -> list[_Part]:
    """The graph in parts, the finer the louder they are."""
    done: list[_Part] = []
    everything = measure(units)
    waiting = [(-everything, 0, _Part(tuple(units), everything))]
    while waiting:
        _, start, part = heapq.heappop(waiting)
        half = len(part.units) // 2
        fine = len(part.units) * _FINEST <= len(units)
        if not half or fine or part.noise <= allowed * _SHARE or measure.tries + 2 > TRIES - _LAST:
            done.append(part)
            continue
        for at, names in ((start, part.units[:half]), (start + half, part.units[half:])):
            one = _Part(names, measure(names))
            heapq.heappush(waiting, (-one.noise, at, one))
    return done


def _blamed(measure: _Measure, parts: Sequence[_Part], units: Sequence[str], allowed: float) -> list[_Part]:
    """The parts that go back to FP32."""
    everything = measure(units)
    loud = sorted(parts, key=lambda part: (-part.density, part.units))
    counts = _outstanding(loud, len(units))
    if not counts:
        return []

    def left(count: int) -> float:
        back = {name for part in loud[:count] for name in part.units}
        return measure([name for name in units if name not in back])

    least = left(counts[-1])
    if least > allowed and least > _WORTH * everything:
        return []
    enough = max(allowed, 1.25 * least)
    few, many = -1, len(counts) - 1  # too few, and enough
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if left(counts[middle]) <= enough else (middle, many)
    return loud[: counts[many]]


def _outstanding(loud: Sequence[_Part], units: int) -> list[int]:
    """How many of the parts, the loudest first, may go back: all of them stand out from those that stay."""
    noise = [part.noise for part in loud]
    sizes = [len(part.units) for part in loud]
    found, most = [], max(8, units // _ONE_IN)
    for count, part in enumerate(loud, start=1):
        rest = sum(noise[count:]) / max(sum(sizes[count:]), 1)
        if part.noise > 0 and part.density >= _STANDS_OUT * rest and sum(sizes[:count]) <= most:
            found.append(count)
    return found


class _Measure:
    """Noise-to-signal power of the worst view, pooled over samples; known results are not run again."""

    def __init__(
        self,
        simulator: HalfSimulator,
        feeds: Sequence[Feeds],
        advance: Callable[[float], None] | None,
        least_share: float,
    ) -> None:
        self._simulator, self.feeds, self._advance = simulator, feeds, advance
        self._expected = [Expected.of(simulator.views, simulator.run(feed, ()), feed) for feed in feeds]
        self._shares = {view: max(share, least_share) for view, share in shares_of(self._expected).items()}
        self._known: dict[frozenset[str], tuple[float, list[float]]] = {}
        self.tries = 0

    def __call__(self, low: Collection[str]) -> float:
        return self._measured(low)[0]

    @property
    def tried(self) -> Collection[frozenset[str]]:
        """The sets of nodes that were run in half."""
        return self._known.keys() - {frozenset[str]()}

    @property
    def elements(self) -> int:
        """Of the smallest view of a sample."""
        return min((value.size for one in self._expected for value in one.values.values()), default=0)

    def bound(self, low: Collection[str]) -> Bound:
        """The SQNR of the worst view, with what other samples may take from it."""
        tally = SampleTally(self._shares)
        for feed, expected in zip(self.feeds, self._expected, strict=True):
            tally.add(expected, self._simulator.run(feed, low))
        self._advanced(len(self.feeds))
        return tally.worst()

    def loudest(self, low: Collection[str], count: int) -> list[Feeds]:
        """The samples with the most noise for their signal, in their order."""
        _, alone = self._measured(low)
        chosen = sorted(range(len(alone)), key=lambda i: (-alone[i], i))[:count]
        return [self.feeds[i] for i in sorted(chosen)]

    def _measured(self, low: Collection[str]) -> tuple[float, list[float]]:
        """Of all samples together, and of each by itself."""
        key = frozenset(low)
        if key not in self._known:
            self._known[key] = self._run(key) if key else (0.0, [0.0] * len(self.feeds))
        return self._known[key]

    def _run(self, low: frozenset[str]) -> tuple[float, list[float]]:
        self.tries += 1
        total, alone = Tally(self._shares), list[float]()
        for feed, expected in zip(self.feeds, self._expected, strict=True):
            got, one = self._simulator.run(feed, low), Tally(self._shares)
            total.add(expected, got)
            one.add(expected, got)
            alone.append(one.worst())
        self._advanced(len(self.feeds))
        return total.worst(), alone

    def _advanced(self, runs: int) -> None:
        if self._advance is not None:
            self._advance(runs)
