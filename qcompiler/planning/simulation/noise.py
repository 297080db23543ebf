"""How much noise a plan of formats sends to what is judged, measured by the simulator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from qcompiler.ir.signature import Feeds
from qcompiler.judge.margin import SampleTally
from qcompiler.judge.noise import Expected, Tally, compared, shares_of
from qcompiler.judge.views import View
from qcompiler.planning.simulation.simulator import Simulation, Simulator, Use, Uses
from qcompiler.support.each import Others
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Advance = Callable[[int], None]
_Sample = tuple[Feeds, Expected]  # inputs, what the float model gives
_Plan = tuple[tuple[str, Use], ...]

WORTH_KEEPING = 0.01  # seconds of a run: to look whether it is kept, and to keep it, takes half a thousandth
WORTH_SHARING = 1.0  # seconds of a plan on all its samples: whoever helps has to open the model first
LEAST_SEEN = 3  # samples before one plan is given up for another: two say nothing of how far samples lie apart
MOST_ELEMENTS = 65_536  # of a view of one sample that products of errors look at: more tell nothing new


@dataclass(frozen=True, eq=False)
class _About:
    """All that a run of a simulator depends on but for the sample and the plan; a value of its own is hashed once.

    Attributes:
        simulation: what another one is made of, as of `Simulation.of`.
    """

    simulation: tuple[Any, ...]

    @staticmethod
    def of(one: Simulation) -> _About:
        views = one.simulator.views
        return _About((one.model, one.groups, one.offers, tuple(one.feeds), one.grids, one.scales, views))


@dataclass(frozen=True, eq=False)
class _Hashed:
    """A sample, hashed once."""

    feed: Feeds


@dataclass
class _Told:
    """What has been run on one simulator, for whoever asks the same next; feeds by identity, and kept for that.

    Attributes:
        samples: what the float model gives for each feed.
        errors: sums of squared errors of each view, by the feed and what was quantized.
        others: who else may have run something, or may run it; None for nobody.
        about: what runs are kept under.
        hashed: the samples, as they are a part of that.
        seconds: of a float run, the shortest so far.
    """

    samples: dict[int, _Sample] = field(default_factory=dict)
    errors: dict[tuple[int, _Plan], Mapping[View, float]] = field(default_factory=dict)
    others: Others | None = None
    about: _About | None = None
    hashed: dict[int, _Hashed] = field(default_factory=dict)
    seconds: float = math.inf

    def ran(self, simulator: Simulator, feed: Feeds, uses: Uses) -> Mapping[View, float]:
        """The errors of a plan on a sample that is known in float."""
        expected = self.samples[id(feed)][1]

        def run() -> tuple[float, ...]:
            return tuple(expected.errors(simulator.run(feed, uses)).values())

        if self.others is None or self.seconds < WORTH_KEEPING:
            found = run()
        else:
            sample = self.hashed.setdefault(id(feed), _Hashed(feed))
            found = self.others.keep("trial", (self.about, sample, _spelled(uses)), run)
        return dict(zip(expected.signals, found, strict=True))


_TOLD: WeakKeyDictionary[Simulator, _Told] = WeakKeyDictionary()  # as long as the simulator lives


def share_trials(simulation: Simulation, others: Others | None) -> None:
    """Lets others have a part in the runs of a simulation.

    Runs are kept, each by itself, so that a search goes on that was killed or has another goal; those that are over
    before they could be looked up are not. Plans that do not depend on each other are run by whoever works beside.

    Args:
        simulation: that is searched with.
        others: who may have run something, or may run it; None for nobody.
    """
    told = _TOLD.setdefault(simulation.simulator, _Told())
    told.others, told.about = others, _About.of(simulation)


class Trying:
    """Runs plans where there is no session of the search: begun by `support.each`.

    Args:
        about: what the simulation of the search is made of.
        feeds: its samples.
    """

    def __init__(self, about: tuple[Any, ...], feeds: Sequence[Feeds]) -> None:
        self._simulator, self._feeds = Simulation.of(*about).simulator, feeds

    def __call__(self, item: tuple[_Plan, int]) -> tuple[tuple[float, ...], ...]:
        """The errors of a plan on so many of the first samples, view by view, as `errors_of` finds them."""
        plan, samples = item
        return tuple(tuple(errors_of(self._simulator, feed, dict(plan)).values()) for feed in self._feeds[:samples])


def expected_of(simulator: Simulator, feed: Feeds, advance: Advance | None = None) -> Expected:
    """What the float model gives for a sample, run and held once for all who ask the same simulator.

    The outputs of a language model take as much room for a few samples as its weights do.

    Args:
        simulator: runs it, where nobody has asked before.
        feed: the sample, known again by identity.
        advance: called with 1 where it was run.
    """
    told = _TOLD.setdefault(simulator, _Told())
    if id(feed) not in told.samples:
        started = time.perf_counter()
        reference = simulator.run(feed, {})
        told.seconds = min(told.seconds, time.perf_counter() - started)
        told.samples[id(feed)] = feed, Expected.of(simulator.views, reference, feed)
        if advance is not None:
            advance(1)
    return told.samples[id(feed)][1]


def errors_of(simulator: Simulator, feed: Feeds, uses: Uses, advance: Advance | None = None) -> Mapping[View, float]:
    """Sums of squared errors of each view of a sample with these groups quantized; nothing is run twice.

    Args:
        simulator: as of `expected_of`, like the others.
        feed: the sample.
        uses: how the groups are quantized that are.
        advance: called with 1 for each run.
    """
    expected_of(simulator, feed, advance)
    told = _TOLD[simulator]
    key = id(feed), _plan(uses)
    if key not in told.errors:
        told.errors[key] = told.ran(simulator, feed, uses)
        if advance is not None:
            advance(1)
    return told.errors[key]


def _spelled(uses: Uses) -> str:
    """A plan as one text, which is hashed at once."""
    return "\n".join(f"{name!r} {use.dtype} {float(use.amax)!r}" for name, use in _plan(uses))


def _plan(uses: Uses) -> _Plan:
    return tuple(sorted(uses.items(), key=lambda one: one[0]))


class Measure:
    """Noise-to-signal power of plans, view by view, pooled over samples.

    Args:
        simulator: runs the plans.
        feeds: samples.
        few: how many of them `noise(few=True)` runs.
        advance: called with the number of runs done.

    Attributes:
        few: how many samples `noise(few=True)` runs.
        samples: how many there are.
        runs: how often the model was run for it, the float runs included. What another `Measure` of the same simulator
            has run already is not run again and counts all the same: what is left of a budget, and so what is found,
            must not depend on what happens to be at hand. What this one has asked before counts once.
        views: what is judged and has a signal, in the order of `noises`.
        shares: of the power of each view, how much `noises` are relative to: what varies from sample to sample, 0..1.
    """

    def __init__(self, simulator: Simulator, feeds: Sequence[Feeds], few: int, advance: Advance | None) -> None:
        self._simulator, self._advance, self.runs = simulator, advance, len(feeds)
        self._all = [(feed, expected_of(simulator, feed)) for feed in feeds]
        self.few, self.samples = min(few, len(feeds)), len(feeds)
        self._known: dict[tuple[bool, _Plan], NDArray[np.float64]] = {}
        self._asked: set[tuple[int, _Plan]] = set()
        seen = {view: signal for _, expected in self._all for view, signal in expected.signals.items() if signal > 0}
        self.views: tuple[View, ...] = tuple(seen)
        self._shares = shares_of(expected for _, expected in self._all)
        self.shares = np.array([self._shares.get(view, 1.0) for view in self.views])

    def noise(self, uses: Uses, *, few: bool = False) -> float:
        """Noise-to-signal power of the worst view, these groups quantized; known results are not run again."""
        return float(self.noises(uses, few=few).max(initial=0.0))

    def noises(self, uses: Uses, *, few: bool = False) -> NDArray[np.float64]:
        """Noise-to-signal power of each of `views` with these groups quantized, all others in float: [views]."""
        few = few and self.few < len(self._all)
        key = (few, _plan(uses))
        if key not in self._known:
            self._known[key] = self._run(uses, self._all[: self.few] if few else self._all)
        return self._known[key]

    def ahead(self, plans: Sequence[Uses], *, few: bool = False) -> None:
        """Has others run plans that do not depend on each other, so that `noises` finds them known.

        Nothing is done where nobody works beside, or a plan is run faster than the model is opened somewhere else.

        Args:
            plans: that will be asked for.
            few: as of `noises`.
        """
        told = _TOLD.get(self._simulator)
        if told is None or told.others is None or told.others.each is None or told.about is None:
            return
        samples = self._all[: self.few] if few else self._all
        new = [plan for plan in map(_plan, plans) if any((id(feed), plan) not in told.errors for feed, _ in samples)]
        if len(new) < 2 or told.seconds * len(samples) < WORTH_SHARING:
            return
        shared = (told.about.simulation, tuple(feed for feed, _ in samples))
        items = ((plan, len(samples)) for plan in new)
        for plan, found in zip(new, told.others.each("plan", Trying, shared, items), strict=True):
            for (feed, expected), errors in zip(samples, found, strict=True):
                told.errors[id(feed), plan] = dict(zip(expected.signals, errors, strict=True))
            if self._advance is not None:
                self._advance(len(samples))

    def quietest(self, plans: Sequence[Uses]) -> int:
        """The index of the plan with the least noise, of equals the first.

        All are run on one sample after the other, and a plan no further once it is surely louder than the one that
        leads; the last one that is left is measured on all samples.

        Args:
            plans: one at least.
        """
        different: dict[_Plan, int] = {}
        for at, uses in enumerate(plans):
            different.setdefault(_plan(uses), at)
        left = [*different.values()]
        tallies = {at: SampleTally(self._shares) for at in left}
        for seen, sample in enumerate(self._all, start=1):
            if len(left) == 1:
                break
            for at in left:
                tallies[at].add_errors(sample[1], self._errors_of(sample, plans[at]))
            if seen >= LEAST_SEEN:
                leads = tallies[max(left, key=lambda at: (tallies[at].worst(margin=False).sqnr_db, -at))]
                left = [at for at in left if not tallies[at].surely_louder(leads)]
        return min(left, key=lambda at: (self.noise(plans[at]), at))

    @property
    def alone(self) -> dict[str, dict[DType, list[tuple[float, float]]]]:
        """What each group sends that was run alone, by format: each clipping range and its noise, the worst view's.

        Where a range was run on few samples and on all of them, those on all count.
        """
        ways: dict[str, dict[Use, float]] = {}
        for (_, uses), noises in sorted(self._known.items(), key=lambda one: not one[0][0]):
            for group, use in uses if len(uses) == 1 else ():
                ways.setdefault(group, {})[use] = float(noises.max(initial=0.0))
        found: dict[str, dict[DType, list[tuple[float, float]]]] = {}
        for group, tried in ways.items():
            for use, noise in tried.items():
                found.setdefault(group, {}).setdefault(use.dtype, []).append((use.amax, noise))
        return found

    def _run(self, uses: Uses, samples: Sequence[_Sample]) -> NDArray[np.float64]:
        total = Tally(self._shares)
        for sample in samples:
            total.add_errors(sample[1], self._errors_of(sample, uses))
        ratios = total.ratios()
        return np.array([ratios.get(view, 0.0) for view in self.views])

    def _errors_of(self, sample: _Sample, uses: Uses) -> Mapping[View, float]:
        """Sums of squared errors of each view of a sample; it counts as a run when it is first asked for."""
        key = id(sample[0]), _plan(uses)
        self.runs += key not in self._asked
        self._asked.add(key)
        return errors_of(self._simulator, sample[0], uses, self._advance)

    def products(self, plans: Sequence[Uses], samples: int) -> NDArray[np.float64] | None:
        """Products of the errors that plans make, two by two, over what varies of the signal of each view.

        The diagonal is what `noises` gives on these samples, of large views on a part of their elements.

        Args:
            plans: the groups that are quantized in each run.
            samples: so many of the first.

        Returns:
            [views, plans, plans]; None where an error is not finite.
        """
        total = np.zeros((len(self.views), len(plans), len(plans)))
        signals = np.zeros(len(self.views))
        for feed, expected in self._all[:samples]:
            rows = [self._errors(expected, self._simulator.run(feed, uses)) for uses in plans]
            self._ran(len(plans))
            for at, view in enumerate(self.views):
                if view not in expected.values:
                    continue
                own = [row.get(view) for row in rows]
                errors = [one for one in own if one is not None]
                if len(errors) < len(own):
                    return None
                share = 1.0 if view.weighed else max(expected.values[view].size, 1) / max(errors[0].size, 1)
                stacked = np.asarray(errors, np.float64)
                total[at] += stacked @ stacked.T * share
                signals[at] += expected.signals[view] * self._shares.get(view, 1.0)
        return np.asarray(total / np.maximum(signals, np.finfo(np.float64).tiny)[:, None, None])

    def _errors(self, expected: Expected, got: Mapping[str, NDArray[Any]]) -> dict[View, NDArray[np.float32] | None]:
        """What a run errs by, view by view, thinned out; None of a view that is not finite or has another shape."""
        found: dict[View, NDArray[np.float32] | None] = {}
        for view in self.views:
            if view not in expected.values:
                continue
            known = expected.values[view]
            value = compared(view, got.get(view.tensor), expected.padding, expected.kept.get(view))
            if value is None or value.shape != known.shape:
                found[view] = None
            elif view.weighed:
                found[view] = _difference(*_likely(expected.padding.keep(expected.kept[view]), value, known))
            else:
                found[view] = _difference(value, known)
        return found

    def _ran(self, runs: int) -> None:
        self.runs += runs
        if self._advance is not None:
            self._advance(runs)


def _likely(roots: NDArray[Any], value: NDArray[Any], known: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of each row, the tokens that are drawn most: all that counts, where elements by chance would be other ones."""
    width = value.shape[-1]
    most = max(1, min(width, MOST_ELEMENTS * width // max(roots.size, 1)))
    picked = np.argpartition(roots.reshape(-1, width), width - most, axis=1)[:, width - most :]
    first, second = (np.take_along_axis(one.reshape(-1, width), picked, axis=1) for one in (value, known))
    return first, second


def _difference(value: NDArray[Any], known: NDArray[Any]) -> NDArray[np.float32] | None:
    """Some of the elements of `value - known`, the same ones for each size; infinities that both share are no error."""
    ours, theirs = value.ravel(), known.ravel()
    if ours.size > MOST_ELEMENTS:
        picked = np.random.default_rng(ours.size).integers(0, ours.size, MOST_ELEMENTS)
        ours, theirs = ours[picked], theirs[picked]
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(ours == theirs, 0, np.asarray(ours, np.float32) - np.asarray(theirs, np.float32))
    return np.asarray(error, np.float32) if np.isfinite(error).all() else None
