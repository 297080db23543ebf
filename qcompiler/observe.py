"""Runs the model over the calibration data once and feeds the statistics that were asked for.

Only the asked tensors become outputs, so that ONNX Runtime fuses everything between them as it does in a plain run.
Statistics are histograms that add up exactly, so order, batching and the number of workers do not change them; and the
few samples that are kept for later checks are those with the smallest content hash, which does not depend on order
either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import model as models
from qcompiler.data import Source
from qcompiler.equivalence import not_finite
from qcompiler.manifest import Fingerprint
from qcompiler.outliers import Outliers, Tokens
from qcompiler.samples import Keep, ShapeRange
from qcompiler.session import Session, available_processors
from qcompiler.signature import Feeds, Inputs
from qcompiler.statistics import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

Advance = Callable[[int], None]
OVERLAP_BYTES = 64 << 20  # activations of a run above which the next one waits until they are counted and freed


@dataclass(frozen=True, eq=False)
class Observations:
    """What one pass over the data tells. Whoever changes the model returns another one, by `with_`.

    Attributes:
        histograms: of |x|, by tensor name, over all elements of all samples.
        outliers: channels and tokens that stand out, by tensor name.
        kept: the feeds with the smallest fingerprints, in the order of these; a sample each, also out of
            batches.
        shapes: smallest, usual and largest shape of each input, for the optimization profile.
        feeds: how many feeds were run.
        fingerprint: hash of all feeds that does not depend on their order.
    """

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    kept: tuple[Feeds, ...] = ()
    shapes: ShapeRange = field(default_factory=ShapeRange)
    feeds: int = 0
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    outliers: Mapping[str, Outliers] = field(default_factory=dict)

    def with_(
        self, histograms: Mapping[str, Histogram] | None = None, outliers: Mapping[str, Outliers] | None = None
    ) -> Observations:
        """The same with statistics of more tensors; those that are known already are replaced."""
        return replace(
            self,
            histograms={**self.histograms, **(histograms or {})},
            outliers={**self.outliers, **(outliers or {})},
        )


def observe(
    model: models.Model,
    tensors: Sequence[str],
    source: Source,
    *,
    inputs: Inputs,
    outliers: Mapping[str, int] | None = None,
    keep: int = 16,
    workers: int = 1,
    advance: Advance | None = None,
) -> Observations:
    """Runs every feed of `source` through the model and fills a histogram per tensor.

    Args:
        model: the float model; float tensors of its main graph can be observed.
        tensors: their names; graph inputs are allowed.
        source: the data; it is read once.
        inputs: the model's inputs, to know whether a feed is a batch.
        outliers: tensors whose outliers are asked for too, with the axis of their channels (1 for the input of a
            convolution, -1 for that of a matrix product); those that are not in `tensors` get a histogram as well.
        keep: how many samples to keep for later checks.
        workers: sessions that share the data; each gets its part of the processors. More than one pays where single
            operators are too small to keep all processors busy, and costs one session's memory each.
        advance: called with the number of feeds done since the last call.

    Raises:
        DataError: a feed does not fit the model, or is not finite.
        ModelError: a tensor is not finite; the message names the first such tensor in graph order.
    """
    axes = dict(outliers or {})
    names = list(dict.fromkeys((*tensors, *axes)))
    kept, shapes, counter = Keep(keep), ShapeRange(), _Counter(advance)
    share = max(1, available_processors() // workers)
    fingerprint = Fingerprint()
    feeds = _Shared(source, (lambda feed: _offer(kept, feed, inputs), shapes.watch, fingerprint.add), counter)
    crew = [_Worker(model, names, axes, inputs, share) for _ in range(workers if names else 1)]
    if len(crew) == 1:
        crew[0].work(feeds)
    else:
        with ThreadPoolExecutor(len(crew), "observe") as pool:
            running = [pool.submit(worker.work, feeds) for worker in crew]
            for one in running:
                one.result()
    first, *others = crew
    for worker in others:
        for name, histogram in worker.histograms.items():
            first.histograms[name].merge(histogram)
        for name, found in worker.outliers.items():
            first.outliers[name].merge(found)
    return Observations(first.histograms, tuple(kept.feeds), shapes, counter.done, fingerprint, first.outliers)


def _offer(kept: Keep, feed: Feeds, inputs: Inputs) -> None:
    """Offers every sample of a feed by itself, so that batching does not change which samples are kept."""
    for one in samples_of(feed, inputs):
        kept.offer(one)


def samples_of(feed: Feeds, inputs: Inputs) -> Iterator[Feeds]:
    """A batched feed sample by sample; the feed itself where its inputs have no common batch axis."""
    arrays = {name: array for name, array in feed.items() if isinstance(array, np.ndarray) and array.ndim}
    sizes = {len(array) for array in arrays.values()}
    free = len(arrays) == len(feed) and all(_has_batch_axis(inputs[name][1]) for name in arrays)
    if len(sizes) != 1 or not free or max(sizes) <= 1:
        yield feed
        return
    for i in range(max(sizes)):
        yield {name: array[i : i + 1] for name, array in feed.items()}


def _has_batch_axis(shape: tuple[int | str | None, ...] | None) -> bool:
    return shape is None or (len(shape) > 0 and not isinstance(shape[0], int))


class _Counter:
    """Counts feeds and passes the count on."""

    def __init__(self, advance: Advance | None) -> None:
        self.done = 0
        self._advance = advance

    def add(self) -> None:
        self.done += 1
        if self._advance is not None:
            self._advance(1)


class _Shared:
    """One iteration over the source, shared by the workers; also shows every feed to whoever watches the data."""

    def __init__(self, source: Source, watchers: Sequence[Callable[[Feeds], None]], counter: _Counter) -> None:
        self._feeds = iter(source)
        self._lock = threading.Lock()
        self._watchers, self._counter = watchers, counter
        self._broken = False

    def __iter__(self) -> Iterator[tuple[int, Feeds]]:
        while True:
            with self._lock:
                feeds = None if self._broken else next(self._feeds, None)
                if feeds is None:
                    return
                index = self._counter.done
                for watch in self._watchers:
                    watch(feeds)
                self._counter.add()
            yield index, feeds

    def stop(self) -> None:
        """No more feeds for anybody: a worker has failed."""
        self._broken = True


class _Worker:
    """One session and its statistics. A second thread counts while the session is busy with the next feed."""

    def __init__(
        self, model: models.Model, names: Sequence[str], axes: Mapping[str, int], model_inputs: Inputs, threads: int
    ) -> None:
        self._graph, self._model_inputs = model.graph, model_inputs
        inputs = {tensor.name for tensor in model.graph.inputs}
        self._fed = [name for name in names if name in inputs]
        tapped = [name for name in names if name not in inputs]
        self._session = Session(model, outputs=tapped, threads=threads) if tapped else None
        self.histograms = {name: Histogram() for name in names}
        self.outliers = {name: Outliers(axis) for name, axis in axes.items()}

    def work(self, feeds: _Shared) -> None:
        with ThreadPoolExecutor(1, "count") as counting:
            pending: Future[None] | None = None
            try:
                for index, feed in feeds:
                    values = self._session.run(feed) if self._session is not None else {}
                    values.update({name: feed[name] for name in self._fed})
                    if pending is not None:
                        pending.result()
                    if sum(array.nbytes for array in values.values()) > OVERLAP_BYTES:
                        pending = None
                        self._count(index, feed, values)
                    else:
                        pending = counting.submit(self._count, index, feed, values)
                    del values  # before the next run makes as many again
                if pending is not None:
                    pending.result()
            except BaseException:
                feeds.stop()
                raise

    def _count(self, index: int, feed: Feeds, values: dict[str, NDArray[Any]]) -> None:
        for name, histogram in self.histograms.items():
            histogram.update(np.asarray(values[name]))
            if histogram.nonfinite:
                raise not_finite(self._graph, feed, f"tensor '{name}'", f"sample {index}")
        if not self.outliers:
            return
        tokens = Tokens(feed, list(samples_of(feed, self._model_inputs)))
        for name, found in self.outliers.items():
            found.update(np.asarray(values[name]), tokens)
