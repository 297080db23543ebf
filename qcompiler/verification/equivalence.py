"""The equivalence check: after every float pass the graph must still compute what the model computed.

Outputs on real samples, through ONNX Runtime with its optimisations, are compared with those of the graph before the
first pass. Error of a float output: max |a - b| / max |a| over all samples. Integer, bool and string outputs must be
equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import EquivalenceError
from qcompiler.ir import model as models
from qcompiler.ir.graph import dtype_of, is_float, tensors
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.passes.base import Pass, Report
from qcompiler.runtime.finite import finite, flat, not_finite
from qcompiler.runtime.stream import OpenModel

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
                outputs[name] += flat(value)
        return outputs

    def _noise_of(self, name: str) -> float:
        if self._noise is None:
            self._noise = differences(self._reference, self._run(self._original, optimize=True))
        return self._noise[name]

    def _refuse_not_finite(self) -> None:
        for name, values in self._reference.items():
            for sample, value in enumerate(values):
                if finite(value):
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
        if not finite(b):
            return float("inf")
        worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)))
    return worst / largest if largest else worst


def _computes_in_half(graph: gs.Graph) -> bool:
    return any((dtype := dtype_of(t)) is not None and dtype.itemsize == 2 and is_float(t) for t in tensors(graph))


def _is_float(values: Sequence[NDArray[Any]]) -> bool:
    return bool(values) and values[0].dtype.kind == "f"


def _first_change(report: Report) -> str:
    from qcompiler.passes.base import Changed

    return next((note.node for note in report.notes if isinstance(note, Changed)), "")
