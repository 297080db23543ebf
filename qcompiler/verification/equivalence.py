"""The equivalence check: behind every float pass the graph must still compute what it computed in front of it.

Outputs, through ONNX Runtime, are compared with those of the graph before the pass, on real samples and on made-up
feeds: in another size of every free axis, and without data in two. Error of a float output: max |a - b| / max |a| over
all feeds; values that are no numbers must be the same. Integer, bool and string outputs must be equal.

A pass that misses this is undone: the graph goes on as it was in front of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, EquivalenceError, ModelError
from qcompiler.ir import model as models
from qcompiler.ir.graph import dtype_of, is_float, tensors
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.passes.base import Changed, Fact, Pass, Pipeline, Report, run_behind
from qcompiler.runtime import shapes, synthetic
from qcompiler.runtime.finite import finite, flat, refuse_outputs
from qcompiler.runtime.restless import differ, first_restless
from qcompiler.runtime.stream import OpenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


Outputs = dict[str, list["NDArray[Any]"]]
# A half has 11 significant bits; a graph that computes in halves moves by this much when ONNX Runtime merely fuses
# its nodes in another way.
_HALF_TOLERANCE = 5e-3
_NOISE_FACTOR = 4.0
_LEAST = 1e-6  # what every pass may move, also one that is exact: ONNX Runtime adds up in another order
UNDONE = "undone, because the model did not compute the same behind it"  # of what a pass was to do
FEEDS = 2  # samples that a pass is checked on that stands alone


@dataclass(frozen=True)
class Probes:
    """What the passes of a pipeline are checked on.

    Attributes:
        samples: of the data.
        made: feeds that were made up.
        why: why there are no other sizes, or no feeds at all; empty where there are two sizes of every free axis.
    """

    samples: tuple[Feeds, ...] = ()
    made: tuple[Feeds, ...] = ()
    why: str = ""

    @property
    def feeds(self) -> tuple[Feeds, ...]:
        """All of them, samples first."""
        return *self.samples, *self.made

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        shapes = [{name: list(np.shape(value)) for name, value in feed.items()} for feed in self.feeds]
        return {"samples": len(self.samples), "made_up": len(self.made), "shapes": shapes, "why": self.why or None}


def probes(model: Model, inputs: Inputs, samples: Sequence[Feeds]) -> Probes:
    """What a model is run on to check the passes: samples, and made-up feeds that it takes.

    The first sample stands for all that have its shapes; another one with other shapes joins it, else the first one in
    other sizes. Without samples a feed is made up.

    Args:
        model: the float model.
        inputs: dtype and shape of each input.
        samples: the first ones of the data; none without data.

    Raises:
        ModelError: there are samples, and ONNX Runtime refuses the model.
    """
    free = any(not isinstance(size, int) or size < 0 for _, shape in inputs.values() for size in shape or ())
    taken = _of_two_sizes(samples)
    if len(taken) > 1 or (taken and not free):
        return Probes(taken)
    try:
        session = OpenModel(model, quick=True)
    except ModelError as error:
        if taken:
            raise
        return Probes(why=str(error))
    if taken:
        other, why = synthetic.first_that_runs(session, synthetic.in_other_sizes(taken[0], inputs))
        return Probes(taken, () if other is None else (other,), _one_size(why) if other is None else "")
    first, why = synthetic.first_that_runs(session, synthetic.made_up(inputs))
    if first is None:
        return Probes(why=f"no feed that was made up runs through the model: {why}")
    if not free:
        return Probes(made=(first,))
    other, why = synthetic.first_that_runs(session, synthetic.in_other_sizes(first, inputs))
    return Probes(made=(first,) if other is None else (first, other), why=_one_size(why) if other is None else "")


def _of_two_sizes(samples: Sequence[Feeds]) -> tuple[Feeds, ...]:
    shapes = [{name: np.shape(value) for name, value in feed.items()} for feed in samples]
    other = next((feed for feed, found in zip(samples, shapes, strict=True) if found != shapes[0]), None)
    return tuple(samples[:1]) if other is None else (samples[0], other)


def _one_size(why: str) -> str:
    return f"one size of each free axis only: {why or 'there is nothing to repeat'}"


class Equivalence:
    """Knows what a graph computes and compares it with what a pass makes of it.

    ONNX Runtime itself moves outputs when it fuses nodes; only where a pass seems to exceed its tolerance is that
    measured (the graph with and without optimisations), and an error of up to four times as much is allowed. Integers
    that are rounded floats may then differ as often as theirs. The same goes for a model whose outputs differ when it
    is run twice.

    Args:
        before: the model before the pass; not kept alive but for its structure, weights are shared.
        feeds: samples, kept.
        made: further feeds that nobody gave: NaN that comes of them is nobody's fault.

    Attributes:
        infinite: outputs that hold infinities.
        restless: the first node that gives other numbers when the model is run again; None where all is the same.

    Raises:
        ModelError: an output of the model itself is NaN and not meant to be; the message names the first node where
            that arises.
        DataError: the feeds do not fit the model.
    """

    def __init__(self, before: Model | gs.Graph, feeds: Sequence[Feeds], made: Sequence[Feeds] = ()) -> None:
        self._feeds = [*feeds, *made]
        self._graph = _graph(before).copy()
        session = OpenModel(self._graph, optimize=False, quick=True)
        runs = [session.run(feed) for feed in self._feeds]
        for sample, (feed, outputs) in enumerate(zip(feeds, runs, strict=False)):
            refuse_outputs(self._graph, feed, outputs, sample)
        self._reference = _by_output(session.outputs, runs)
        self.infinite = [name for name, values in self._reference.items() if any(map(_has_infinity, values))]
        self._noise: dict[str, float] | None = None
        self._floor = _HALF_TOLERANCE if _computes_in_half(self._graph) else _LEAST
        self._unrest: dict[str, float] = {}
        self.restless: gs.Node | None = None
        self._run_again(session, runs)

    def _run_again(self, session: OpenModel, runs: Sequence[Mapping[str, Any]]) -> None:
        if not runs:
            return
        again = session.run(self._feeds[0])
        if any(differ(flat(runs[0][name]), flat(again[name])) for name in session.outputs):
            self.restless = first_restless(self._graph, self._feeds[0])
            self._unrest = differences(_by_output(session.outputs, runs[:1]), _by_output(session.outputs, [again]))

    def check(self, one: Pass, report: Report, after: Model | gs.Graph) -> float | None:
        """The largest relative error of any float output against the graph before; None where nothing was run.

        Passes that changed nothing are not run again. What a pass gives that is right is what the next one is compared
        with; so is what a pass gives with `exact_to` None, which changes numbers on purpose.

        Raises:
            EquivalenceError: an output moved by more than `one.exact_to`, or ONNX Runtime does not run the graph.
        """
        if not report.changed or not self._feeds:
            return None
        graph = _graph(after)
        try:
            outputs = self._run(graph)
        except (ModelError, DataError) as refused:
            raise EquivalenceError(
                f"what pass '{one}' made of the model does not run, and the model did ({report.changed} edits, the "
                f"first at '{_first_change(report)}'): {refused} This is a defect of qcompiler; please report it with "
                "the model."
            ) from refused
        errors = {} if one.exact_to is None else differences(self._reference, outputs)
        allowed = max(one.exact_to or 0.0, self._floor)
        for name, error in errors.items():
            if error <= allowed or error <= _NOISE_FACTOR * self._noise_of(name):
                continue
            raise EquivalenceError(
                f"pass '{one}' changed what the model computes: output '{name}' moved by {error:.3g} of its largest "
                f"value, and {allowed:.3g} is allowed ({report.changed} edits, the first at "
                f"'{_first_change(report)}'). This is a defect of qcompiler; please report it with the model."
            )
        worst = max((error for name, error in errors.items() if _is_float(self._reference[name])), default=0.0)
        self._graph, self._reference, self._noise = graph.copy(), outputs, None
        return None if one.exact_to is None else worst

    def _run(self, graph: gs.Graph, *, optimize: bool = False) -> Outputs:
        session = OpenModel(graph, optimize=optimize, quick=not optimize)
        return _by_output(session.outputs, [session.run(feed) for feed in self._feeds])

    def _noise_of(self, name: str) -> float:
        if self._noise is None:
            self._noise = differences(self._reference, self._run(self._graph, optimize=True))
        return max(self._noise[name], self._unrest.get(name, 0.0))


def run_checked(
    pipeline: Pipeline, model: Model, equal: Equivalence | None, after: Callable[[], None]
) -> tuple[Model, list[tuple[Report, float | None]]]:
    """Runs the passes of a pipeline on copies of a model; one that misses the check is undone.

    A pass that requires what an undone one would have provided does not run.

    Args:
        pipeline: float passes.
        model: stays as it is; weights are shared.
        equal: knows the model; None where there is nothing to run it on.
        after: called behind each pass.

    Returns:
        The model, and of each pass its report and error, as of `Equivalence.check`.

    Raises:
        PassError: a pass failed.
    """
    have, promised = set(pipeline.given), dict[Fact, Pass]()
    done: list[tuple[Report, float | None]] = []
    # A copy costs more than most passes do. One that changed nothing leaves it for the next one: what it may have found
    # out are types and shapes, which are found again where a later pass is undone.
    copy: Model | None = None
    for one in pipeline.passes:
        lacking = sorted(one.requires - have)
        if lacking:
            names = ", ".join(f"'{fact}' of pass '{promised[fact]}'" for fact in lacking)
            done.append((Report(str(one), (), 0.0, f"pass '{one}' did not run: it needs {names}."), None))
        else:
            copy = copy or models.copy(model)
            report, moved = _attempt(one, copy, equal, [report for report, _ in done])
            done.append((report, moved))
            if report.undone:
                copy = models.copy(model)
                shapes.infer(copy)
            elif report.changed:
                model, copy = copy, None
        promised |= dict.fromkeys(one.provides, one)
        if not done[-1][0].undone:
            have = (have - one.breaks) | one.provides
        after()
    return copy or model, done


def applied(one: Pass, model: Model, feeds: Sequence[Feeds]) -> tuple[Model, Report, float | None]:
    """A copy of the model that the pass has rewritten, behind the check; the model stays as it is.

    Args:
        one: the pass.
        model: weights are shared with the copy.
        feeds: samples; the first `FEEDS` are run.

    Returns:
        The copy, what the pass did, and the largest relative error of a float output, None where nothing was run. Of a
        pass that missed the check: the model, and a report that says why the pass was undone.
    """
    after = models.copy(model)
    report, moved = _attempt(one, after, Equivalence(model, feeds[:FEEDS]), ())
    return model if report.undone else after, report, moved


def _attempt(one: Pass, after: Model, equal: Equivalence | None, done: Sequence[Report]) -> tuple[Report, float | None]:
    """Runs a pass on a model and checks it; where it misses the check the report says so, and the model is spoilt."""
    report = run_behind(done, one, after.graph)
    try:
        return report, None if equal is None else equal.check(one, report, after)
    except EquivalenceError as error:
        return dataclasses.replace(report, notes=(), undone=str(error)), None


def differences(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Error of each output: relative to its largest value for floats; for others the share of unequal elements."""
    return {name: _difference(reference[name], outputs.get(name, [])) for name in reference}


def _difference(before: Sequence[NDArray[Any]], after: Sequence[NDArray[Any]]) -> float:
    if [value.shape for value in before] != [value.shape for value in after]:
        return float("inf")
    if not _is_float(before):
        unequal = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
        return unequal / max(sum(value.size for value in before), 1)
    largest, worst = 0.0, 0.0
    for first, second in zip(before, after, strict=True):
        a, b = first.astype(np.float64), second.astype(np.float64)
        if not (finite(first) and finite(second)):
            numbers = np.isfinite(a) & np.isfinite(b)
            if not np.array_equal(a[~numbers], b[~numbers], equal_nan=True):
                return float("inf")
            a, b = a[numbers], b[numbers]
        largest = max(largest, float(np.abs(a).max(initial=0.0)))
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)))
    return worst / largest if largest else worst


def _by_output(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> Outputs:
    return {name: [part for outputs in runs for part in flat(outputs[name])] for name in names}


def _graph(source: Model | gs.Graph) -> gs.Graph:
    return source.graph if isinstance(source, Model) else source


def _computes_in_half(graph: gs.Graph) -> bool:
    return any((dtype := dtype_of(t)) is not None and dtype.itemsize == 2 and is_float(t) for t in tensors(graph))


def _is_float(values: Sequence[NDArray[Any]]) -> bool:
    return bool(values) and values[0].dtype.kind == "f"


def _has_infinity(value: NDArray[Any]) -> bool:
    return value.dtype.kind == "f" and bool(np.isinf(value).any())


def _first_change(report: Report) -> str:
    return next((note.node for note in report.notes if isinstance(note, Changed)), "")
