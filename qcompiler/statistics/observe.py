"""Runs the model over the calibration data once and feeds the statistics that were asked for.

Only the asked tensors become outputs, so that ONNX Runtime fuses everything between them as it does in a plain run.
Statistics are histograms that add up exactly, so order, batching and the number of workers do not change them; and the
few samples that are kept for later checks are those with the smallest content hash, which does not depend on order
either. They are gathered of the part of the data that calibrates; of the parts that choose and judge, only which
samples there are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.batches import NO_BATCH, BatchAxes, samples_of
from qcompiler.data.padding import Padding
from qcompiler.data.samples import Fingerprint, Keep, ShapeRange, loudness, mixed
from qcompiler.data.sights import Sight, Sights
from qcompiler.data.source import Source
from qcompiler.data.spread import Spreads
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.finite import refuse_not_finite
from qcompiler.runtime.gpu.device import Device
from qcompiler.runtime.stream import BUDGET, Part, Stream, fill
from qcompiler.statistics.evidence import Flags, Lack
from qcompiler.statistics.hessian import Hessians
from qcompiler.statistics.histogram import Histogram, Histograms
from qcompiler.statistics.outliers import AllOutliers, Outliers
from qcompiler.statistics.points import Points
from qcompiler.statistics.ranges import Range, Ranges, Tapped, measured_as
from qcompiler.statistics.rows import Recorder, Rows, channels
from qcompiler.support.each import Each, in_turn
from qcompiler.support.machine import available_processors

if TYPE_CHECKING:
    from qcompiler.statistics.hessian import Hessian


Advance = Callable[[int], None]
SHARD_FEEDS = 16  # that are looked at together; what a killed run does again, and what a worker is handed
SHARD_BYTES = 64 << 20  # of feeds, from which on a shard is full
DEVICE_BUDGET = 1 << 30  # of tensors that lie on a device at a time
OVERLAP_BYTES = 64 << 20  # activations of a run above which the next one waits until they are counted and freed


@dataclass(frozen=True, eq=False)
class Observations:
    """What one pass over the data tells. Whoever changes the model returns another one, by `with_`.

    Attributes:
        histograms: of |x|, by tensor name, over all elements of all samples.
        outliers: channels and tokens that stand out, by tensor name.
        kept: of the samples that calibrate, those with the smallest fingerprints, in the order of these; a sample
            each, also out of batches.
        held: samples that nothing is fitted to, for choices by a loss: every fourth one of the loudest, the others
            those with the smallest fingerprints; empty where the data has no such part.
        shapes: of the inputs, as the feeds were given, for the optimization profile.
        axes: which axes of the inputs are a batch.
        feeds: how many feeds were run.
        fingerprint: hash of all feeds that does not depend on their order.
        rows: recorded rows, by tensor name.
        hessians: float64 [K, K], by tensor name.
        ranges: smallest and largest value, by tensor name, of tensors that were not always empty; over all samples,
            also those to choose and to judge by, for what overflows on any of them must be known.
        spreads: what values each input gets, and how many different samples there are.
        sights: what all samples have shown of each input, by its name.
        lacks: what the data has not shown, by tensor name; whoever chooses ranges leaves these tensors alone.
        flags: which truth values the conditions of Ifs had, by name.
        reached: largest |x| of the tensors with statistics, by name, over all samples that choose, as far as ends of
            ranges tell: none where one of these samples is padded, and not of a tensor that is not finite.
    """

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    kept: tuple[Feeds, ...] = ()
    held: tuple[Feeds, ...] = ()
    shapes: ShapeRange = field(default_factory=ShapeRange)
    axes: BatchAxes = NO_BATCH
    feeds: int = 0
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    outliers: Mapping[str, Outliers] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    hessians: Mapping[str, Hessian] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    spreads: Spreads = field(default_factory=Spreads)
    sights: Mapping[str, Sight] = field(default_factory=dict)
    lacks: Mapping[str, Lack] = field(default_factory=dict)
    flags: Mapping[str, frozenset[bool]] = field(default_factory=dict)
    reached: Mapping[str, float] = field(default_factory=dict)

    @property
    def choosing(self) -> tuple[Feeds, ...]:
        """What choices are made by: the samples that are held, or the kept ones where there are none."""
        return self.held or self.kept

    @property
    def in_sample(self) -> bool:
        """Whether what is chosen was fitted to the samples that it is chosen by."""
        return not self.held

    def with_(
        self, histograms: Mapping[str, Histogram] | None = None, outliers: Mapping[str, Outliers] | None = None
    ) -> Observations:
        """The same with statistics of more tensors; those that are known already are replaced."""
        return replace(
            self,
            reached={name: one for name, one in self.reached.items() if name not in (histograms or {})},
            histograms={**self.histograms, **(histograms or {})},
            outliers={**self.outliers, **(outliers or {})},
        )


@dataclass(frozen=True, eq=False)
class Shard:
    """Some of the data, looked at by itself.

    Attributes:
        feeds: each with the place of its first sample in the data as the user gave it.
        extremes: only ranges are wanted of them.
        choosing: they are samples that choose.
    """

    feeds: tuple[tuple[int, Feeds], ...]
    extremes: bool = False
    choosing: bool = False


class Looking:
    """Looks at shards of the data: `support.each` begins it where the work is done.

    Args:
        model: the float model.
        points: which statistic of which tensor.
        axes: which axes of the inputs are a batch.
        expected: as of `observe`.
        threads: inside an operator.
        budget: as of `observe`.
        device: as of `observe`.
    """

    def __init__(
        self,
        model: models.Model,
        points: Points,
        axes: BatchAxes,
        expected: int,
        threads: int,
        budget: int,
        device: Device | None = None,
    ) -> None:
        self._tapped = Tapped(model, points.ranges) if points.ranges else None
        source = model if self._tapped is None else self._tapped.graph
        ends = () if self._tapped is None else self._tapped.accumulator().tensors
        budget = budget if device is None else max(budget, DEVICE_BUDGET)
        stream = Stream(source, [*points.tensors, *ends], threads=threads, budget=budget, device=device)
        self._worker = _Worker(model, stream)
        self._new = partial(_Statistics, points, axes, expected, self._tapped)

    def __call__(self, shard: Shard) -> _Statistics:
        """What the shard shows."""
        statistics = self._new()
        if shard.extremes:
            self._worker.extremes(shard.feeds, statistics)
        else:
            self._worker.work(shard.feeds, statistics)
        return statistics


def observe(
    model: models.Model,
    points: Points,
    source: Source,
    *,
    axes: BatchAxes = NO_BATCH,
    choose: Source | None = None,
    judge: Source | None = None,
    keep: int = 16,
    expected: int = 1,
    each: Each = in_turn,
    threads: int = 0,
    advance: Advance | None = None,
    budget: int = BUDGET,
    device: Device | None = None,
) -> Observations:
    """Runs every feed of `source` through the model and fills all the statistics that are wanted.

    Args:
        model: the float model; float tensors of its main graph can be observed.
        points: which statistic of which tensor; graph inputs are allowed.
        source: the data; it is read once.
        axes: which axes of the inputs are a batch; along them feeds are cut into samples.
        choose: samples of the same data to choose by; they are counted and kept, and only ranges are measured of them.
        judge: samples of the same data to judge by; they are counted, and only ranges are measured of them.
        keep: how many samples to keep for later checks.
        expected: how many feeds there will be, which says how many rows of each may be recorded.
        each: who looks at the shards of the data. How it is cut depends on the data alone, and shards are added up in
            their order, so it does not change the result.
        threads: inside an operator; 0 for one per processor.
        advance: called with the number of feeds done since the last call.
        budget: bytes of the tensors that are fetched at a time, as of `stream.Stream`.
        device: where the model is run and, where torch is, its tensors are counted; None for the CPU.

    Raises:
        DataError: a feed does not fit the model, or is not finite.
        ModelError: an output is NaN and not meant to be; the message names the node where that arises.
    """
    kept, shapes, counter, spreads = Keep(keep), ShapeRange(), _Counter(advance), Spreads(axes)
    loud, quiet = Keep(keep, key=loudness), Keep(keep)
    sights, fingerprint = Sights(), Fingerprint()
    padded = _Padded()
    everywhere = (shapes.watch, fingerprint.add, spreads.watch)
    fitting = (lambda feed: _offer(kept, feed, axes), partial(_show, sights, axes), *everywhere)
    choosing = (*everywhere, partial(_offer_all, (loud, quiet), axes=axes), padded.watch)
    tapped = Tapped(model, points.ranges) if points.ranges else None
    seen, chosen = _Statistics(points, axes, expected, tapped), None if tapped is None else tapped.accumulator()
    shards = chain(
        _shards(source, fitting, counter, extremes=False),
        _shards(choose, choosing, counter, extremes=True, choosing=True),
        _shards(judge, everywhere, counter, extremes=True),
    )
    if not (points.tensors or points.ranges):
        for shard in shards:
            counter.passed(shard)
    else:
        asked = (shard for shard in shards if tapped is not None or not shard.extremes or counter.passed(shard))
        shared = (model, points, axes, expected, threads or available_processors(), budget, device)
        for found in each("shard", Looking, shared, counter.noting(asked)):
            if counter.looked() and chosen is not None and found.ends is not None:
                chosen.merge(found.ends)
            seen.merge(found)
    return Observations(
        seen.histograms.found,
        tuple(kept.feeds),
        tuple(mixed(loud.feeds, quiet.feeds, keep)),
        shapes,
        axes,
        counter.done,
        fingerprint,
        seen.outliers.found,
        {} if seen.rows is None else seen.rows.rows(),
        seen.hessians.found,
        {} if tapped is None or seen.ends is None else tapped.ranges(seen.ends).found,
        spreads,
        sights.found,
        flags=seen.flags.found,
        reached={}
        if tapped is None or chosen is None or padded.any
        else _reached(model.graph, points.tensors, tapped.ranges(chosen)),
    )


def _reached(graph: gs.Graph, names: Iterable[str], found: Ranges) -> dict[str, float]:
    """The largest |x| of tensors, as far as it is finite; what is rearranged reaches as far as before."""
    tensors = graph.tensors()
    sources = {name: measured_as(tensors[name]) for name in names if name in tensors}
    known = {name: found[one].absmax for name, one in sources.items() if one in found}
    return {name: one for name, one in known.items() if math.isfinite(one)}


class _Padded:
    """Whether any of some feeds is padded."""

    def __init__(self) -> None:
        self.any = False

    def watch(self, feed: Feeds) -> None:
        self.any = self.any or bool(Padding(feed))


def _shards(
    source: Source | None,
    watchers: Sequence[Callable[[Feeds], None]],
    counter: _Counter,
    *,
    extremes: bool,
    choosing: bool = False,
) -> Iterator[Shard]:
    """The data in pieces that depend on nothing else; every feed is shown to whoever watches the data."""
    feeds: list[tuple[int, Feeds]] = []
    size = 0
    for read, feed in enumerate(() if source is None else source):
        assert source is not None
        for watch in watchers:
            watch(feed)
        counter.done += 1
        feeds.append((source.place(read), feed))
        size += sum(value.nbytes for value in feed.values() if isinstance(value, np.ndarray))
        if len(feeds) == SHARD_FEEDS or size >= SHARD_BYTES:
            yield Shard(tuple(feeds), extremes, choosing)
            feeds, size = [], 0
    if feeds:
        yield Shard(tuple(feeds), extremes, choosing)


class _Statistics:
    """Everything that is wanted of the data, by one worker."""

    def __init__(self, points: Points, axes: BatchAxes, expected: int, tapped: Tapped | None) -> None:
        self.ends = None if tapped is None else tapped.accumulator()
        self.histograms = Histograms(points.counted)
        self.outliers = AllOutliers(dict(points.outliers), lambda feed: samples_of(feed, axes))
        self.hessians = Hessians(dict(points.hessians))
        self.flags = Flags(points.flags)
        self.rows: Recorder | None = None
        self._recorded, self._expected = dict(points.rows), expected

    def begin(self, model: models.Model, feed: Feeds) -> None:
        """How many rows of each feed are recorded can only be told with one at hand."""
        if self._recorded and self.rows is None:
            self.rows = Recorder(self._recorded, channels(model, self._recorded, feed), self._expected)

    def update(self, part: Part) -> None:
        for one in (self.outliers, self.hessians, self.flags, self.rows, self.ends):
            if one is not None:
                one.update(part)

    def merge(self, other: _Statistics) -> None:
        self.histograms.merge(other.histograms)
        self.outliers.merge(other.outliers)
        self.hessians.merge(other.hessians)
        self.flags.merge(other.flags)
        if self.ends is not None and other.ends is not None:
            self.ends.merge(other.ends)
        if self.rows is None:
            self.rows = other.rows
        elif other.rows is not None:
            self.rows.merge(other.rows)


def _offer(kept: Keep, feed: Feeds, axes: BatchAxes) -> None:
    """Offers every sample of a feed by itself, so that batching does not change which samples are kept."""
    for one in samples_of(feed, axes):
        kept.offer(one)


def _show(sights: Sights, axes: BatchAxes, feed: Feeds) -> None:
    for one in samples_of(feed, axes):
        sights.watch(one)


def _offer_all(kept: Sequence[Keep], feed: Feeds, axes: BatchAxes) -> None:
    for one in kept:
        _offer(one, feed, axes)


class _Counter:
    """Counts feeds as they are read, and passes the count on as they are done."""

    def __init__(self, advance: Advance | None) -> None:
        self.done = 0
        self._advance = advance
        self._under_way: deque[tuple[int, bool]] = deque()

    def noting(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """The shards; how many feeds each has is remembered until it has been looked at."""
        for shard in shards:
            self._under_way.append((len(shard.feeds), shard.choosing))
            yield shard

    def looked(self) -> bool:
        """The first shard that was not looked at is done; whether it has samples that choose."""
        feeds, choosing = self._under_way.popleft()
        self._tell(feeds)
        return choosing

    def passed(self, shard: Shard) -> bool:
        """A shard of which nothing is wanted is done: False."""
        self._tell(len(shard.feeds))
        return False

    def _tell(self, feeds: int) -> None:
        if self._advance is not None:
            self._advance(feeds)


class _Worker:
    """One stream. A second thread counts while the session is busy with the next part."""

    def __init__(self, model: models.Model, stream: Stream) -> None:
        self._model, self._stream = model, stream
        self._guarded: set[tuple[str, str]] = set()  # tensors whose NaN or infinities are no error

    def work(self, feeds: Sequence[tuple[int, Feeds]], statistics: _Statistics) -> None:
        """Runs feeds and counts what they show."""
        with ThreadPoolExecutor(1, "count") as counting:
            pending: Future[None] | None = None
            for _, feed in feeds[:1]:
                statistics.begin(self._model, feed)
            for part in self._stream.over(feeds):
                if pending is not None:
                    pending.result()
                if sum(array.nbytes for array in part.values.values()) > OVERLAP_BYTES:
                    pending = None
                    self._count(part, statistics)
                else:
                    whole = replace(part, values=dict(part.values))
                    pending = counting.submit(self._count, whole, statistics)
            if pending is not None:
                pending.result()

    def extremes(self, feeds: Sequence[tuple[int, Feeds]], statistics: _Statistics) -> None:
        """Runs feeds for the ranges alone."""
        if statistics.ends is None:
            return
        for part in self._stream.over(feeds):
            statistics.ends.update(part)

    def _count(self, part: Part, statistics: _Statistics) -> None:
        histograms = statistics.histograms
        histograms.update(part)
        odd = {name for name, one in histograms.found.items() if one.nonfinite and name in part.values}
        if odd:
            part = self._numbers(part, odd)
        statistics.update(part)

    def _numbers(self, part: Part, odd: Iterable[str]) -> Part:
        """The part with 0 for what is no number: histograms count it, all other statistics leave it out.

        What an output shows of it is an error. What the model means so or guards against, such as scores that are
        masked, is not.
        """
        arrays = {name: np.asarray(part.values[name], np.float32) for name in odd}
        kinds = {(name, "nan") for name, array in arrays.items() if np.isnan(array).any()}
        kinds |= {(name, "infinity") for name, array in arrays.items() if np.isinf(array).any()}
        if kinds - self._guarded:
            refuse_not_finite(self._model, [part.feed], lambda _: part.index)
            self._guarded |= kinds
        numbers = {name: np.nan_to_num(array, posinf=0.0, neginf=0.0) for name, array in arrays.items()}
        return replace(part, values={**part.values, **numbers})


def histograms(model: models.Model, names: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, Histogram]:
    """Histograms of float tensors over some feeds; inputs of the graph are allowed."""
    seen = Histograms(names)
    fill(model, [seen], feeds)
    return seen.found


def peaks(model: models.Model, names: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, float]:
    """Largest finite |x| of float tensors over some feeds, 0.0 without one: what their histograms have as `amax`."""
    seen = _Peaks(names)
    fill(model, [seen], feeds)
    return seen.found


class _Peaks:
    """Largest finite |x| by tensor name; padding does not count."""

    def __init__(self, names: Sequence[str]) -> None:
        self.found = dict.fromkeys(names, 0.0)

    @property
    def tensors(self) -> Sequence[str]:
        return list(self.found)

    def update(self, part: Part) -> None:
        padding = Padding(part.feed)
        for name in self.found.keys() & part.values.keys():
            x = padding.keep(np.asarray(part.values[name]))
            peak = float(max(x.max(), -x.min())) if x.size else 0.0
            if not np.isfinite(peak):
                peak = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
            self.found[name] = max(self.found[name], peak)
