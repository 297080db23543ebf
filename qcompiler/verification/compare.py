"""Float and quantized side by side in ONNX Runtime: what changed, where it began, and whether that is acceptable.

What is compared is found by the judge (`qcompiler.judge.views`); this runs both models and adds up. One sample at a
time is in memory. A value that the float model has finite and the quantized model has not is a failure whatever the
thresholds say, and so is an infinity that only the float model has.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.data.padding import Padding
from qcompiler.errors import DataError, ModelError
from qcompiler.ir import model as models
from qcompiler.judge.figures import Figures, ViewFigure, worst_view
from qcompiler.judge.outputs import Output, OutputTally, failures_of
from qcompiler.judge.views import Role, Views, find_views, stand_ins, tensors_of
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.runtime.randomness import random_nodes
from qcompiler.support.as_json import plain
from qcompiler.support.suggest import did_you_mean
from qcompiler.verification import emulation
from qcompiler.verification.drift import TappedLayer, Trace, trace
from qcompiler.verification.metric import QUICK_SAMPLES, Score, loaded, runner_of, scoring_of
from qcompiler.verification.metrics.halves import halves_of
from qcompiler.verification.suspects import FRESH_DB, Suspect, told

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.verification.metric import Outputs

    Feeds = Mapping[str, NDArray[Any]]
    Run = Callable[[Feeds], Mapping[str, NDArray[Any]]]
    Metric = Callable[[Callable[[Feeds], "Outputs"]], float]


DRIFT_SAMPLES = 2
DRAWS = 3  # of a model that draws random numbers


@dataclass(frozen=True, slots=True)
class Verification:
    """All of one comparison.

    Attributes:
        samples: feeds that were compared.
        outputs: one entry for each output, in the model's order.
        views: what the judge compares, each with its figure.
        positions: of the samples, where each stands in the data, from 0; empty where nobody knows.
        parts: worst SQNR in dB on a few samples of the other parts of the data, by part; empty where none was asked.
        layers: inner tensors in graph order; empty if drift was not asked for or the models share no names.
        score: the metric on both; None without one.
        data: what the samples came from.
        random: the data is random noise: the figures say nothing about accuracy.
        in_sample: the model was fitted to these samples: others may come out worse.
        seconds: wall time.
        remarks: what the reader should know of how it was compared.
        suspects: layers that the error begins at, the most guilty first, three at most; see `suspects`.
    """

    samples: int
    outputs: tuple[Output, ...]
    layers: tuple[TappedLayer, ...] = ()
    score: Score | None = None
    data: str = ""
    random: bool = False
    in_sample: bool = False
    seconds: float = 0.0
    views: tuple[ViewFigure, ...] = ()
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    positions: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    suspects: tuple[Suspect, ...] = ()

    @property
    def worst(self) -> ViewFigure | None:
        """The view with the smallest SQNR; None if there is none with a figure."""
        return worst_view(self.views)

    @property
    def worst_sqnr_db(self) -> float | None:
        """SQNR in dB of the worst view."""
        return None if self.worst is None else self.worst.sqnr_db

    @property
    def worst_varying(self) -> ViewFigure | None:
        """The view with the most noise for what varies from sample to sample; None where the samples do not tell."""
        return worst_view(self.views, varying=True)

    def sample(self, index: int) -> int:
        """Where one of the samples stands in the data, from 0."""
        return self.positions[index] if index < len(self.positions) else index

    @property
    def mismatched(self) -> tuple[ViewFigure, ...]:
        """Outputs that have another shape in some sample."""
        return tuple(view for view in self.views if view.reshaped and view.tensor == view.output)

    @property
    def first_drift(self) -> TappedLayer | None:
        """The first inner tensor, in graph order, that drifts."""
        return next((layer for layer in self.layers if layer.drifts), None)

    @property
    def begins(self) -> str:
        """Where the error begins, as sentences; empty where no layer is to blame."""
        if self.suspects:
            return told(self.suspects)
        first = self.first_drift
        return "" if first is None else f"It begins at node '{first.node}' ({first.op})."

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong whatever the thresholds say, one clause each: values not finite, shapes that changed.

        Outputs that the user ignores are left out. Rows that numbers pick may be of any number: their agreement tells.
        """
        ignored = {view.output for view in self.views if view.role == Role.IGNORED}
        told = {view.output for view in self.views if view.tensor == view.output and view.agreement is not None}
        return tuple(
            clause
            for output in self.outputs
            if output.name not in ignored
            for clause in failures_of(output, reshaped=output.name not in told)
        )

    def to_json(self) -> dict[str, Any]:
        """For the manifest: plain values, infinities as "inf"."""
        worst, first, varying = self.worst, self.first_drift, self.worst_varying
        result: dict[str, Any] = {
            "samples": self.samples,
            "data": self.data,
            "random": self.random,
            "in_sample": self.in_sample,
            "worst_output": worst and worst.name,
            "worst_sqnr_db": self.worst_sqnr_db,
            "worst_varying": varying and varying.name,
            "worst_varying_db": varying and varying.varying_db,
            "first_drift": first and first.node,
            "begins": self.begins,
            "failures": self.failures,
            "score": self.score and self.score.to_json(),
            "views": self.views,
            "positions": self.positions,
            "parts": self.parts,
            "outputs": self.outputs,
            "suspects": self.suspects,
            "layers": self.layers,
            "remarks": self.remarks,
            "seconds": round(self.seconds, 3),
        }
        return dict(plain(result))


def verify(
    float_model: str | Path | models.Model,
    quantized: str | Path | models.Model | Run,
    source: Iterable[Feeds],
    *,
    samples: int | None = 16,
    metric: str | Metric | None = None,
    float_score: float | None = None,
    halves: bool = False,
    drift: bool = True,
    close_db: float = FRESH_DB,
    doubted: Callable[[Verification], bool] | None = None,
    normal: models.Model | None = None,
    optimize: bool = True,
    ignored: Collection[str] = (),
    others: Mapping[str, Sequence[Feeds]] | None = None,
    advance: Callable[[], None] | None = None,
) -> Verification:
    """Runs both models on the same feeds and compares.

    Args:
        float_model: the reference.
        quantized: a model, or a function feeds -> outputs (a loaded engine); a function cannot be searched for drift.
        source: the feeds; iterated once, and once more for the drift.
        samples: take so many feeds; None takes all of them.
        metric: `file.py:function`, `package.module:function` or a function: function(run) -> score.
        float_score: what the metric gives for the float model, where it has been measured before.
        halves: the quantized model was chosen by the choosing half of the metric: its score says what each half loses.
        drift: also compare inner tensors, on the first 2 feeds.
        close_db: SQNR in dB of the outputs from which on nobody is to blame, which saves the search for who is.
        doubted: by all other figures, whether anybody asks who is to blame; None for always.
        normal: the float model whose inner tensors are compared: `float_model` after the float passes, which fold nodes
            and keep the names; None for `float_model` itself.
        optimize: let ONNX Runtime optimise the quantized graph, unless it has FP8, which that breaks.
        ignored: outputs that nothing is judged by.
        others: a few samples of other parts of the data, by part: do they come out alike?
        advance: called after each feed, and after each run of a metric that knows how many `runs` it needs.

    Raises:
        ModelError: the models cannot be run, or the quantized one lacks an output.
        DataError: the source is empty.
        UsageError: the metric cannot be loaded, fails or returns no number.
    """
    started = time.perf_counter()
    scoring = None if metric is None else halves_of(metric) if halves else scoring_of(metric)
    reference = loaded(float_model)
    candidate = quantized if callable(quantized) else emulation.runnable(loaded(quantized), half=True)
    quick = metric is None and samples is not None and samples <= QUICK_SAMPLES
    first = next(iter(itertools.islice(source, 1)), None)
    if first is None:
        raise DataError("there is no sample to compare the models on: the data is empty. Check what --data yields.")
    views = find_views(reference.graph, dict(first), ignored)
    twins = _twins(views, candidate, dict(first), ignored)
    pair = _Pair(reference, candidate, views, twins, optimize, quick, advance)
    figures, tallies = Figures(pair.views, pair.missing), {name: OutputTally(name) for name in pair.outputs}
    count = pair.compare(itertools.islice(source, samples), figures, tallies)
    apart = {part: pair.figures(feeds) for part, feeds in (others or {}).items()}
    worst = {part: worst_view(found.result()) for part, found in apart.items()}
    parts = {part: view.sqnr_db for part, view in worst.items() if view is not None and view.sqnr_db is not None}
    for found in apart.values():
        figures.learn(found)
    score = scoring and scoring(*pair.plain(), advance, float_score)
    pair.close()  # its sessions hold memory that the search for the drift needs
    return_freed_memory()
    result = Verification(
        samples=count,
        outputs=tuple(tally.result() for tally in tallies.values()),
        score=score,
        views=figures.result(),
        parts=parts,
        data=str(getattr(source, "name", "")),
        random=bool(getattr(source, "random", False)),
    )
    if drift and isinstance(candidate, models.Model):
        few = list(itertools.islice(source, min(DRIFT_SAMPLES, count)))
        result = _traced(result, (normal or reference, candidate), few, _limit(result.views, close_db), doubted)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _limit(views: Sequence[ViewFigure], close_db: float) -> float:
    """SQNR in dB below which an end of the graph is far from float; none is where the worst view is good enough."""
    worst = min((view.least_db for view in views if view.counts and view.least_db is not None), default=-math.inf)
    return close_db if worst < close_db else -math.inf


def _traced(
    found: Verification,
    pair: tuple[models.Model, models.Model],
    feeds: list[Feeds],
    close_db: float,
    doubted: Callable[[Verification], bool] | None,
) -> Verification:
    """With what the search for the drift has shown; where a part of a graph cannot be run, the outputs are judged."""

    def asked(seen: Trace) -> bool:
        return doubted is None or doubted(dataclasses.replace(found, layers=seen.layers))

    try:
        inside = trace(*pair, feeds, close_db=close_db, asked=asked)
    except (ModelError, DataError) as error:
        return dataclasses.replace(found, remarks=(f"inner tensors were not compared, because of this: {error}",))
    return dataclasses.replace(found, layers=inside.layers, suspects=inside.suspects)


class _Pair:
    """Two models that are run side by side.

    Attributes:
        outputs: names of what the models return.
        views: what is compared.
        missing: tensors of views that the quantized one does not have.
    """

    def __init__(
        self,
        reference: models.Model,
        candidate: models.Model | Run,
        views: Views,
        twins: Mapping[str, str],
        optimize: bool,
        quick: bool,
        advance: Callable[[], None] | None,
    ) -> None:
        self.views, self._advance = views, advance
        file = candidate.source.name if isinstance(candidate, models.Model) and candidate.source else ""
        self._name = f"'{file}'" if file else "the quantized model"
        self.outputs = [output.name for output in reference.graph.outputs]
        inner = [name for name in tensors_of(views) if name not in self.outputs]
        written = _written(candidate) if isinstance(candidate, models.Model) else frozenset[str]()
        if isinstance(candidate, models.Model):
            _same_outputs(self.outputs, [output.name for output in candidate.graph.outputs])
        self.missing = [name for name in inner if name not in written and name not in twins]
        compared = [name for name in inner if name in written or name in twins]
        fetched = [*self.outputs, *compared]
        renamed = [*self.outputs, *dict.fromkeys(twins.get(name, name) for name in compared)]
        self._twins = {name: twins[name] for name in compared if name in twins}
        # A model that draws is judged as what it is, a distribution: samples take turns at several draws
        draws = range(DRAWS if random_nodes(reference.graph) else 1)
        self._float = [runner_of(reference, True, quick=quick, outputs=fetched, draw=draw)[0] for draw in draws]
        self._quantized = [runner_of(candidate, optimize, quick=quick, outputs=renamed, draw=draw)[0] for draw in draws]

    def compare(self, feeds: Iterable[Feeds], figures: Figures, tallies: Mapping[str, OutputTally]) -> int:
        """Adds up over samples; returns how many there were."""
        count = 0
        for feed in feeds:
            draw = count % len(self._float)
            expected, got = self._float[draw](feed), self._run_quantized(draw, feed)
            _same_outputs(self.outputs, list(got))
            figures.add(feed, expected, {**got, **{name: got[twin] for name, twin in self._twins.items()}})
            padding = Padding(feed)
            for name, tally in tallies.items():
                tally.add(expected[name], got[name], padding)
            count += 1
            if self._advance is not None:
                self._advance()
        return count

    def _run_quantized(self, draw: int, feed: Feeds) -> Mapping[str, Any]:
        """Behind the float model, which took the feed: whatever fails here is not the data's fault."""
        try:
            return self._quantized[draw](feed)
        except (DataError, ModelError) as error:
            if error.fed is None:
                raise
            refused = ModelError(
                f"{self._name} does not run on a feed that the float model takes: {error.said or error}. "
                "Make it again, or compare what runs."
            )
            refused.fed, refused.said = feed, error.said
            raise refused from error

    def figures(self, feeds: Iterable[Feeds]) -> Figures:
        """The figures of some samples."""
        found = Figures(self.views, self.missing)
        self.compare(feeds, found, {})
        return found

    def plain(self) -> tuple[Run, Run]:
        """Functions that return the outputs alone, as the models do."""

        def only(run: Run) -> Run:
            return lambda feed: (lambda found: {name: found[name] for name in self.outputs})(run(feed))

        return only(self._float[0]), only(self._quantized[0])

    def close(self) -> None:
        """Lets the sessions go."""
        del self._float, self._quantized


def _twins(
    views: Views, candidate: models.Model | Run, feed: dict[str, NDArray[Any]], ignored: Collection[str]
) -> Mapping[str, str]:
    """What the quantized graph calls the tensors of views whose names it lost, by the name in the float model."""
    if not isinstance(candidate, models.Model):
        return {}
    outputs, written = {output.name for output in candidate.graph.outputs}, _written(candidate)
    missing = {name for name in tensors_of(views) if name not in written and name not in outputs}
    return stand_ins(views, find_views(candidate.graph, feed, ignored), missing) if missing else {}


def _written(model: models.Model) -> frozenset[str]:
    """Names of the tensors that nodes of the main graph write."""
    return frozenset(tensor.name for node in model.graph.nodes for tensor in node.outputs)


def _same_outputs(expected: Iterable[str] | None, got: Sequence[str] | None) -> None:
    missing = None if expected is None or got is None else next((name for name in expected if name not in got), None)
    if missing is not None and got is not None:
        raise ModelError(
            f"the quantized model has no output '{missing}' ({did_you_mean(missing, got)}): "
            "is it made from this float model?"
        )
