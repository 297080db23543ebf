"""The equivalence check: after every float pass the graph must still compute what the model computed.

Outputs on real samples, through ONNX Runtime with its optimisations, are compared with those of the graph before the
first pass. Error of a float output: max |a - b| / max |a| over all samples. Integer, bool and string outputs must be
equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import element_types
from qcompiler import model as models
from qcompiler.errors import EquivalenceError, ModelError
from qcompiler.graph import constant_value, dtype_of, is_constant, is_float, producer, tensors
from qcompiler.model import Model
from qcompiler.pass_ import Pass, Report
from qcompiler.signature import Feeds
from qcompiler.stream import OpenModel, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outputs = dict[str, list["NDArray[Any]"]]
# A half has 11 significant bits; a graph that computes in halves moves by this much when ONNX Runtime merely fuses
# its nodes in another way.
_HALF_TOLERANCE = 5e-3
_NOISE_FACTOR = 4.0
FEEDS = 2  # samples that a pass is checked on that stands alone


class Equivalence:
    """Remembers what a model computes and compares rewritten graphs with it.

    The reference is computed once, when it is made. ONNX Runtime itself moves outputs when it fuses nodes; only
    where a pass seems to exceed its tolerance is that measured (original with and without optimisations), and an error
    of up to four times as much is allowed. Integers that are rounded floats may then differ as often as theirs.

    Args:
        before: the model before any pass; not kept alive but for its structure, weights are shared.
        feeds: samples, kept.

    Raises:
        ModelError: an output of the model itself is not finite; the message names the first node where that arises.
        DataError: the feeds do not fit the model.
    """

    def __init__(self, before: Model | gs.Graph, feeds: Sequence[Feeds]) -> None:
        graph = before.graph if isinstance(before, Model) else before
        self._feeds = list(feeds)
        self._original = graph.copy()
        self._reference = self._run(graph)
        self._noise: dict[str, float] | None = None
        self._allowed = 1e-6  # of all passes so far: each is compared with the model before the first
        self._floor = _HALF_TOLERANCE if _computes_in_half(graph) else 0.0
        self._refuse_not_finite()

    def check(self, one: Pass, report: Report, after: Model | gs.Graph) -> float | None:
        """The largest relative error of any float output since the beginning; None where there was nothing to run.

        Passes that changed nothing are not run again. A pass with `exact_to` None changes numbers on purpose: what it
        gives is the reference from then on.

        Raises:
            EquivalenceError: an output moved by more than `one.exact_to`.
        """
        if not report.changed:
            return None
        graph = after.graph if isinstance(after, Model) else after
        outputs = self._run(graph)
        if one.exact_to is None:
            self._original, self._reference, self._noise, self._allowed = graph.copy(), outputs, None, 1e-6
            return None
        errors = differences(self._reference, outputs)
        self._allowed = max(self._allowed, one.exact_to)
        allowed = max(self._allowed, self._floor)
        for name, error in errors.items():
            if error <= allowed or error <= _NOISE_FACTOR * self._noise_of(name):
                continue
            raise EquivalenceError(
                f"pass '{one}' changed what the model computes: output '{name}' moved by {error:.3g} of its largest "
                f"value, and {allowed:.3g} is allowed ({report.changed} edits, the first at "
                f"'{_first_change(report)}'). This is a defect of qcompiler; please report it with the model."
            )
        return max((error for name, error in errors.items() if _is_float(self._reference[name])), default=0.0)

    def _run(self, graph: gs.Graph, *, optimize: bool = False) -> Outputs:
        session = OpenModel(graph, optimize=optimize, quick=not optimize)
        outputs: Outputs = {name: [] for name in session.outputs}
        for feeds in self._feeds:
            for name, value in session.run(feeds).items():
                outputs[name] += _flat(value)
        return outputs

    def _noise_of(self, name: str) -> float:
        if self._noise is None:
            self._noise = differences(self._reference, self._run(self._original, optimize=True))
        return self._noise[name]

    def _refuse_not_finite(self) -> None:
        for name, values in self._reference.items():
            for sample, value in enumerate(values):
                if _finite(value):
                    continue
                feeds = self._feeds[min(sample, len(self._feeds) - 1)]
                raise not_finite(self._original, feeds, f"output '{name}'", f"sample {sample}")


def applied(one: Pass, model: Model, feeds: Sequence[Feeds]) -> tuple[Model, Report, float | None]:
    """A copy of the model that the pass has rewritten, behind the check; the model stays as it is.

    Args:
        one: the pass.
        model: weights are shared with the copy.
        feeds: samples; the first `FEEDS` are run.

    Returns:
        The copy, what the pass did, and the largest relative error of a float output, None where nothing was run.

    Raises:
        EquivalenceError: an output moved by more than `one.exact_to`.
    """
    after = models.copy(model)
    report = one(after.graph)
    return after, report, Equivalence(model, feeds[:FEEDS]).check(one, report, after)


def not_finite(graph: gs.Graph, feeds: Feeds, what: str, where: str) -> ModelError:
    """The error for a tensor (`what`) that is not finite on a sample (`where`); looks for the node where it began."""
    node = first_not_finite(graph, feeds)
    began = f"node '{node.name}' ({node.op}) is the first that computes one" if node else "no node explains it"
    return ModelError(
        f"{what} of the float model has NaN or infinite values on {where}; {began}. Check that this sample is prepared "
        "as the model wants it, leave it out, or mend the model at that node."
    )


def refuse_not_finite(model: Model, source: Iterable[Feeds]) -> None:
    """Looks for the first sample on which an output is not finite.

    Raises:
        ModelError: there is one; names the sample, the output and the node where that arises.
    """
    session = OpenModel(model)
    for index, feeds in enumerate(source):
        for name, value in session.run(feeds).items():
            if not all(_finite(part) for part in _flat(value)):
                raise not_finite(model.graph, feeds, f"output '{name}'", f"sample {index}")


def differences(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Error of each output: relative to its largest value for floats; for others the share of unequal elements."""
    return {name: _difference(reference[name], outputs.get(name, [])) for name in reference}


def _difference(before: Sequence[NDArray[Any]], after: Sequence[NDArray[Any]]) -> float:
    if [value.shape for value in before] != [value.shape for value in after]:
        return float("inf")
    if not _is_float(before):
        unequal = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
        return unequal / max(sum(value.size for value in before), 1)
    largest = max((float(np.abs(value.astype(np.float64)).max(initial=0.0)) for value in before), default=0.0)
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not _finite(b):
            return float("inf")
        worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)))
    return worst / largest if largest else worst


def first_not_finite(graph: gs.Graph, feeds: Feeds) -> gs.Node | None:
    """The first node in graph order that makes NaN, or, where there is none, infinity out of numbers.

    Attention masks of minus infinity are ordinary, so infinities count only when no NaN explains what happened. Where
    the NaN comes of an infinity that an earlier node made out of numbers, that one is to blame.
    """
    types = element_types.infer(graph)  # most files don't say them, and this graph may be as it was read
    taps = [t.name for t in tensors(graph) if not is_constant(t) and (dtype := types.get(id(t))) and dtype.kind == "f"]
    bad_nan: set[str] = set()
    bad_inf: set[str] = set()
    for name, value in (item for part in stream(graph, taps, [feeds], optimize=False) for item in part.values.items()):
        numbers = np.asarray(value, np.float64)
        if np.isnan(numbers).any():
            bad_nan.add(name)
        elif np.isinf(numbers).any():
            bad_inf.add(name)
    for bad in (bad_nan, bad_inf):
        for node in graph.nodes:
            if any(t.name in bad for t in node.outputs):
                return _overflowing(node, bad_inf)
    return None


def _overflowing(node: gs.Node, infinite: Collection[str]) -> gs.Node:
    """Follows infinities from a node backwards to the one that makes them out of numbers; itself if they are given."""
    while True:
        before = [p for t in node.inputs if t.name in infinite and (p := producer(t)) is not None]
        if not before:
            return node
        made = [p for p in before if not any(_is_infinite(t, infinite) for t in p.inputs)]
        if made:
            return made[0]
        follow = [p for p in before if any(t.name in infinite and producer(t) is not None for t in p.inputs)]
        if not follow:
            return node
        node = follow[0]


def _is_infinite(tensor: gs.Tensor, infinite: Collection[str]) -> bool:
    value = constant_value(tensor)
    return tensor.name in infinite or (value is not None and value.dtype.kind == "f" and bool(np.isinf(value).any()))


def _computes_in_half(graph: gs.Graph) -> bool:
    return any((dtype := dtype_of(t)) is not None and dtype.itemsize == 2 and is_float(t) for t in tensors(graph))


def _flat(value: Any) -> Iterator[NDArray[Any]] | list[NDArray[Any]]:
    """An output that is a sequence or a map counts as its elements."""
    if isinstance(value, list):
        return [part for one in value for part in _flat(one)]
    if isinstance(value, dict):
        return [np.asarray(list(value.keys())), np.asarray(list(value.values()))]
    return [np.asarray(value)]


def _is_float(values: Sequence[NDArray[Any]]) -> bool:
    return bool(values) and values[0].dtype.kind == "f"


def _finite(value: NDArray[Any]) -> bool:
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _first_change(report: Report) -> str:
    from qcompiler.pass_ import Changed

    return next((note.node for note in report.notes if isinstance(note, Changed)), "")
