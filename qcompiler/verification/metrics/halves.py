"""The user's metric in two halves: one to choose by, and one to judge by that nothing was chosen by.

A metric brings its own labelled data and gives one number of all of it. What is chosen by that number is fitted to it,
so it is no proof any more. But a metric runs the model many times, on a part of its data each time, and a run may be
answered by the float model or by the quantized one:

    calls      0 1 2 3 4 5 6 7 8 9 ...        eight chunks, one behind the other
    choosing   float quantized float ...      what this costs against float, the choosing half loses
    judging    quantized float quantized ...  and this the judging half

Where there are few calls of large batches, the samples in them take the place of the calls: of one answer, some samples
are then float and others quantized (`metrics.rows`).

Both together lose about what the whole does; of a mean over samples exactly that. A plan is accepted where

    loss(choosing) * calls / calls(choosing) + margin <= limit

The margin is a standard error: with the losses of the m choosing chunks, each measured with that chunk alone quantized,
and their standard deviation s, the unseen r chunks lose r * mean, give or take s * sqrt(r + r^2 / m). Where chunks
cannot be measured one by one, it is a quarter of the limit.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.data.spread import Spreads
from qcompiler.errors import UsageError
from qcompiler.support.foreseen import Foreseen, ScoreWork, between
from qcompiler.verification.metric import MetricFunction, Score
from qcompiler.verification.metrics.rows import BatchRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.verification.metric import Feeds, Metric, Run

    Answer = Mapping[str, NDArray[Any]]

CHUNKS: Final = 8
CHOOSING: Final = frozenset(range(1, CHUNKS, 2))
JUDGING: Final = frozenset(range(0, CHUNKS, 2))
UNKNOWN_MARGIN: Final = 0.25  # of the limit, where the spread is not known
ROOM: Final = 256 << 20  # bytes of answers that are kept, so that the model runs once for each


@dataclass(frozen=True, slots=True)
class HalfLoss:
    """What a half loses, or all of the metric where it has no halves.

    Attributes:
        half: relative to the float score, by the half alone; negative where the score is better than float's.
        whole: what the whole loses, going by this half.
        margin: a standard error of `whole`; None where it is not known.
        split: the metric was split; else `half` and `whole` are the loss of all of it.
    """

    half: float
    whole: float
    margin: float | None
    split: bool

    def spare(self, limit: float) -> float:
        """The margin that a limit is held with: this one's, or a part of the limit where the spread is not known."""
        return UNKNOWN_MARGIN * limit if self.margin is None else self.margin

    def within(self, limit: float) -> bool:
        """Whether a limit is held, with the margin; NaN holds none."""
        return self.whole + self.spare(limit) <= limit + 1e-9


class MetricHalves:
    """A metric on one float model, whose runs are answered by that model or by another.

    Args:
        metric: `file.py:function`, `package.module:function` or a function, or one that is loaded.
        run_float: runs the float model.
        room: bytes of answers that are kept.
        advance: called after each run of the float model, by a metric that knows how many `runs` it needs.

    Attributes:
        float_score: of the float model.
        why: why it cannot be split, in words; "" where it can.
        scores: how often it was asked for that: twice where it must be seen whether it repeats itself.
        evaluations: how often it was measured beyond that.

    Raises:
        UsageError: the metric cannot be loaded, fails or returns no number.
    """

    def __init__(
        self,
        metric: str | Metric | MetricFunction,
        run_float: Run,
        *,
        room: int = ROOM,
        advance: Callable[[], None] | None = None,
    ) -> None:
        self._metric = metric if isinstance(metric, MetricFunction) else MetricFunction.of(metric)
        self._room, self.evaluations, self.scores = room, 0, 1
        self._float = _Answers(run_float, room)
        self._calls: list[_Call] = []
        first: list[Feeds] = []
        self.float_score = self._metric.score(_noting(self._float, self._calls, first), advance)
        starts = getattr(self._metric.function, "cuts", None)  # of a metric that knows where its samples begin
        self._starts: Sequence[int] = range(len(self._calls)) if starts is None else starts
        self._rows = None if starts is not None or len(self._calls) >= CHUNKS else BatchRows.of(self._float, *first)
        self._counts = [1 if self._rows is None else self._rows.count(call.shapes) for call in self._calls]
        self.why = self._why_not()

    @property
    def name(self) -> str:
        """What reports call the metric."""
        return self._metric.name

    @property
    def complete(self) -> bool:
        """Whether all answers of the float model are kept."""
        return self._float.complete

    @property
    def higher_is_better(self) -> bool:
        """The direction of the metric."""
        return self._metric.higher_is_better

    def answered_by(self, run_float: Run) -> MetricHalves:
        """The same, with what was not kept of the float model's answers given by another session of that model."""
        other = copy.copy(self)
        other._float = self._float.by(run_float)
        return other

    def loss(self, run: Run, half: Collection[int] = CHOOSING, *, limit: float = math.inf) -> HalfLoss:
        """What a quantized model loses in one half; in all of the metric where it cannot be split.

        Args:
            run: runs the quantized model.
            half: `CHOOSING` or `JUDGING`.
            limit: where the loss is above that anyway, the margin is not looked for.

        Raises:
            UsageError: the metric fails, returns no number, or does not run the model that it is given.
        """
        return self._loss(_Answers(run, self._room - self._float.held), half, limit)

    def expected(self, run: Run) -> Score:
        """The score that a quantized model may be expected to have, going by the choosing half; as both of its scores.

        Raises:
            UsageError: as of `loss`.
        """
        lost = self.loss(run, limit=-math.inf).whole * (abs(self.float_score) or 1.0)
        return self.expected_of(self.float_score - lost if self.higher_is_better else self.float_score + lost)

    def expected_of(self, score: float) -> Score:
        """A score of this metric, as both scores."""
        return self._metric.compared(score, score)

    def _loss(self, answers: _Answers, half: Collection[int], limit: float) -> HalfLoss:
        mixed = self._mixed(answers, half) if not self.why else None
        if mixed is None:
            lost = self._lost(self._whole(answers))
            return HalfLoss(lost, lost, None, split=False)
        lost = self._lost(mixed)
        whole = lost * sum(self._counts) / sum(sum(self._wanted(call, half)) for call in range(len(self._calls)))
        return HalfLoss(lost, whole, self._margin(answers, half) if whole <= limit else None, split=True)

    def score(self, run: Run, *, advance: Callable[[], None] | None = None, known: float | None = None) -> Score:
        """The whole metric on both models, with what each half loses.

        Args:
            run: runs the quantized model.
            advance: as of the class, for this model.
            known: the float score that was told before; None for this one.

        Raises:
            UsageError: as of `loss`.
        """
        answers, spreads = _Answers(run, self._room - self._float.held), Spreads()
        whole = self._whole(answers, advance, spreads)
        told: dict[str, Any] = {"split": False, "choosing_loss": None, "judging_loss": None, "judging_margin": None}
        if not self.why:
            judging = self._loss(answers, JUDGING, math.inf)
            choosing = self._mixed(answers, CHOOSING)
            if judging.split and choosing is not None:
                told = {
                    "split": True,
                    "choosing_loss": self._lost(choosing),
                    "judging_loss": judging.half,
                    "judging_margin": judging.margin,
                }
        first = self.float_score if known is None else known
        return self._metric.compared(first, whole, spreads.found(), {**told, "why": self.why})

    def _why_not(self) -> str:
        """Whether it repeats itself is seen where that costs nothing: once more, on the answers that are kept."""
        units = len(self._starts) if self._rows is None else sum(self._counts)
        if units < CHUNKS:
            inside = "" if self._rows is not None else " with no batch that could be taken apart"
            return f"it runs the model on {units} parts of its data{inside}, and a half needs {CHUNKS // 2} at least"
        if not self._float.complete:
            return ""
        again: list[_Call] = []
        self.scores += 1
        second = self._metric.score(_noting(self._float, again))
        if again != self._calls:
            return "it feeds other data in each run"
        same = second == self.float_score or (math.isnan(second) and math.isnan(self.float_score))
        return "" if same else "it gives another score in each run"

    def _wanted(self, call: int, chunks: Collection[int]) -> list[bool]:
        """Of each sample of a call, or of all of it as one, whether it lies in these chunks."""
        if self._rows is None:
            unit = bisect.bisect_right(self._starts, call) - 1
            return [max(unit, 0) * CHUNKS // len(self._starts) in chunks]
        before = sum(self._counts[:call])
        return [unit * CHUNKS // sum(self._counts) in chunks for unit in range(before, before + self._counts[call])]

    def _mixed(self, answers: _Answers, quantized: Collection[int]) -> float | None:
        """The score with these chunks quantized and the others float; None where it turns out to have no chunks."""
        seen: list[_Call] = []
        wanted = [self._wanted(call, quantized) for call in range(len(self._calls))]

        def run(feeds: Feeds) -> Answer:
            seen.append(_Call.of(feeds))
            chosen = wanted[len(seen) - 1] if len(seen) <= len(wanted) else [False]
            if self._rows is None or all(chosen) or not any(chosen):
                return (answers if chosen[0] else self._float)(feeds)
            return self._rows.mixed(self._float(feeds), answers(feeds), chosen)

        self.evaluations += 1
        try:
            score = self._metric.score(run)
        except UsageError as error:  # where a model alone makes it fail, too, that is raised
            self.why = f"it fails where float and quantized answers alternate ({error.__cause__ or error})"
            return None
        self._must_run(seen)
        if [call.shapes for call in seen] != [call.shapes for call in self._calls]:
            self.why = "how often it runs the model, or what shapes it feeds, depends on the answers"
            return None
        return score

    def _whole(
        self, answers: _Answers, advance: Callable[[], None] | None = None, spreads: Spreads | None = None
    ) -> float:
        """The score with everything quantized."""
        seen: list[_Call] = []
        self.evaluations += 1
        score = self._metric.score(_noting(answers, seen), advance, spreads)
        self._must_run(seen)
        return score

    def _must_run(self, seen: Sequence[_Call]) -> None:
        if self._calls and not seen:
            raise UsageError(
                f"metric {self._metric.label} ran the float model {len(self._calls)} times and the quantized one not "
                "at all: it seems to keep answers from one call to the next. Let it keep its data, and ask run(feeds) "
                "anew each time it is called."
            )

    def _margin(self, answers: _Answers, half: Collection[int]) -> float | None:
        """A standard error of what the whole loses, from the chunks of a half; None where it is too dear or unclear."""
        if not self._float.complete:
            return None
        losses = list[float]()
        for chunk in half:
            mixed = self._mixed(answers, {chunk})
            if mixed is None or not math.isfinite(mixed):
                return None
            losses.append(self._lost(mixed))
        rest = CHUNKS - len(losses)
        return float(np.std(losses, ddof=1)) * math.sqrt(rest + rest**2 / len(losses))

    def _lost(self, score: float) -> float:
        return self._metric.compared(self.float_score, score).drop


def halves_of(metric: str | Metric) -> Callable[[Run, Run | None, Callable[[], None] | None, float | None], Score]:
    """As `metric.scoring_of`, and the score says what each half loses."""
    loaded_one = MetricFunction.of(metric)  # at once, so that a typo does not cost a comparison first

    def both(
        run_float: Run, run_quantized: Run | None, advance: Callable[[], None] | None, known: float | None
    ) -> Score:
        halves = MetricHalves(loaded_one, run_float, advance=advance if known is None else None)
        if run_quantized is None:
            return loaded_one.compared(halves.float_score, halves.float_score)
        return halves.score(run_quantized, advance=advance, known=known)

    return both


def foreseen_loss(scoring: ScoreWork) -> Foreseen:
    """What `MetricHalves.loss` runs: one half, and where that holds, each of its parts for the margin."""
    if not scoring.split:
        return scoring.asked(1, quantized=1)
    half = len(CHOOSING) / CHUNKS
    return between(scoring.asked(1, quantized=half), scoring.asked(1 + len(CHOOSING), quantized=half))


def foreseen_scores(scoring: ScoreWork, *, halved: bool) -> Foreseen:
    """What it takes to score both models: `halves_of`, or `metric.scoring_of`."""
    if not halved:
        return scoring.asked(2, runs=1, quantized=1)
    return scoring.asked(5 + len(JUDGING) if scoring.split else 3, runs=1, quantized=1)


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call was fed with.

    Attributes:
        shapes: by input.
        digest: of the values.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes

    @staticmethod
    def of(feeds: Feeds) -> _Call:
        """Names, types, shapes and values of a feed."""
        arrays = {name: np.asarray(feeds[name]) for name in sorted(feeds)}
        content = blake2b(digest_size=16)
        for name, array in arrays.items():
            content.update(f"{name}\0{array.dtype.str}{array.shape}".encode())
            content.update(
                np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode()
            )
        return _Call(tuple((name, array.shape) for name, array in arrays.items()), content.digest())


class _Answers:
    """A model whose answers are kept by what was fed, as long as there is room.

    Attributes:
        held: bytes that are kept.
        complete: every answer so far was kept.
    """

    def __init__(self, run: Run, room: int) -> None:
        self._run, self._room = run, room
        self._kept: dict[bytes, Answer] = {}
        self.held, self.complete = 0, True

    def by(self, run: Run) -> _Answers:
        """The same answers, others to come from `run`."""
        other = _Answers(run, self._room)
        other._kept, other.held, other.complete = dict(self._kept), self.held, self.complete
        return other

    def __call__(self, feeds: Feeds) -> Answer:
        """The answer; of its own arrays, which the metric may write into."""
        key = _Call.of(feeds).digest
        known = self._kept.get(key)
        if known is not None:
            return {name: np.array(array) for name, array in known.items()}
        found = self._run(feeds)
        size = sum(np.asarray(array).nbytes for array in found.values())
        if self.held + size > self._room:
            self.complete = False
            return found
        self._kept[key] = {name: np.array(array) for name, array in found.items()}
        self.held += size
        return found


def _noting(run: Run, calls: list[_Call], first: list[Feeds] | None = None) -> Run:
    """The same, noting what is fed; `first` gets a copy of the first feeds."""

    def noted(feeds: Feeds) -> Answer:
        if first is not None and not first:
            first.append({name: np.array(array) for name, array in feeds.items()})
        calls.append(_Call.of(feeds))
        return run(feeds)

    return noted
