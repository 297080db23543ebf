"""For targets that fuse a node only with a quantizer behind it: which outputs are quantized, and at what price.

ONNX Runtime's CPU kernels for convolutions write 8 bits. A Conv of the plan therefore also gets a quantizer on what it
writes (behind its Relu or Clip, which the quantizer then replaces), and so does a residual Add between two such ends.
That costs accuracy, because shortcuts are rounded too. So it is measured: where it takes more than `LOSS_DB` and the
outputs miss the target of the safety net, the noisiest tensors stay float, and their convolutions unfused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import calibrators
from qcompiler.calibrators.base import Calibrator
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, Tally, judged, shares_of
from qcompiler.judge.views import Views, tensors_of
from qcompiler.numerics import rounding, sqnr
from qcompiler.passes.base import Fact, Pipeline
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.quantize_outputs import QuantizeOutputs
from qcompiler.plan import Candidate, FittedWeight, Plan, Quantizer
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.stream import OpenModel
from qcompiler.statistics.histogram import Histogram, signal_power
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Of outputs, where the recipe leaves the choice: of the largest values a maximum over places may read no others
RANGES = ("percentile{p=99.999}", "minmax", "headroom{times=1.25}")
SLACK_DB = 5.0  # how much less than elsewhere is good enough: a layer given back unfuses its neighbours too
LOSS_DB = 3.0  # outputs may be as noisy as inputs
GIVEN = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED, Fact.UNSHARED})


def tensors_for_outputs(graph: gs.Graph, found: Sequence[Candidate]) -> list[str]:
    """Names of the tensors that candidates write and that would be quantized as a whole."""
    return list(dict.fromkeys(name for _, name in written(graph, found)))


def written(graph: gs.Graph, found: Sequence[Candidate]) -> list[tuple[Candidate, str]]:
    """The convolutions among candidates, in graph order, each with the name of the tensor quantized behind it."""
    wanted = {candidate.node: candidate for candidate in found if candidate.op == "Conv"}
    return [(wanted[node.name], _behind(graph, node).name) for node in graph.nodes if node.name in wanted]


def _behind(graph: gs.Graph, node: gs.Node) -> gs.Tensor:
    """What a node writes, or a Relu or Clip that alone reads it: these vanish in front of QuantizeLinear."""
    tensor = node.outputs[0]
    reader = graphs.only_consumer(graph, tensor)
    if reader is None or not graphs.is_op(reader, "Relu", "Clip"):
        return tensor
    if any(option.name and graphs.constant_value(option) is None for option in reader.inputs[1:]):
        return tensor
    return reader.outputs[0]


def spans(histograms: Mapping[str, Histogram]) -> dict[str, rounding.Span]:
    """Lowest and highest value seen, by tensor."""
    return {name: (histogram.minimum, histogram.maximum) for name, histogram in histograms.items()}


def relaxed(safety: SafetyTable) -> SafetyTable:
    """The safety net with `SLACK_DB` less to reach."""
    return replace(safety, target_sqnr_db=max(safety.target_sqnr_db - SLACK_DB, -100.0))


def add(
    plan: Plan,
    model: models.Model,
    histograms: Mapping[str, Histogram],
    corrections: Mapping[str, NDArray[np.float32]],
    feeds: Sequence[Feeds],
    *,
    ranges: Sequence[str],
    target_db: float,
    views: Views,
    spared: Collection[str] = (),
    fitted: Mapping[str, FittedWeight] | None = None,
) -> Plan:
    """A plan for inputs made one for inputs and outputs, on unsigned grids.

    Args:
        plan: with symmetric quantizers of inputs.
        model: the normalised float model, in topological order.
        histograms: of all tensors of the plan and of `tensors_for_outputs`.
        corrections: of biases, by node name.
        feeds: samples to measure the loss on.
        ranges: text forms of the calibrators that may choose the ranges of outputs; the one with the least noise does.
        target_db: SQNR of the model's outputs that is good enough.
        views: what is judged.
        spared: tensors that turned out too sensitive to be quantized for their linear readers.
        fitted: INT8 weights that are not the nearest integers, by node name.
    """
    inputs, measure = set(plan.quantizers), _OutputsTrial(model, corrections, feeds, views, fitted or {})
    offered = [_extend(plan, model.graph, histograms, one, spared) for one in ranges]
    different = [
        one for at, one in enumerate(offered) if one.quantizers not in [other.quantizers for other in offered[:at]]
    ]
    extended = max(different, key=measure) if len(different) > 1 else different[0]
    settled = _settle(extended, inputs, histograms, measure, target_db)
    return without_unfused(settled, model.graph)


def without_unfused(plan: Plan, graph: gs.Graph) -> Plan:
    """The plan with those convolutions in float whose output is not quantized, and without quantizers nobody needs."""
    decisions, axes = dict(plan.decisions), dict(plan.axes)
    read = {node.inputs[0].name for node in graph.nodes if node.name in axes and plan.precision(node.name) is DType.FP8}
    for node in graph.nodes:
        if not _quantized_here(plan, node):
            continue
        behind = plan.quantizers.get(_behind(graph, node).name)
        if node.op == "Conv" and (behind is None or not behind.whole):
            why = "its output cannot be quantized well enough, and without that it runs unfused, slower than in float"
            decisions[node.name] = replace(decisions[node.name], precision=DType.FP32, rule="unfused", why=why)
            del axes[node.name]  # an axis without a precision would mean: the weight alone in INT8
        else:
            read.add(node.inputs[0].name)
    quantizers = {name: q for name, q in plan.quantizers.items() if q.whole or name in read}
    return plan.with_(decisions=decisions, quantizers=quantizers, axes=axes)


def _quantized_here(plan: Plan, node: gs.Node) -> bool:
    """Whether the plan quantizes a node to INT8, rather than finding it quantized."""
    return node.name in plan.axes and plan.precision(node.name) is DType.INT8


def _extend(
    plan: Plan, graph: gs.Graph, histograms: Mapping[str, Histogram], calibrator: str, spared: Collection[str]
) -> Plan:
    """Gives the INT8 quantizers of a plan unsigned grids, and adds those of outputs."""
    method = calibrators.parse(calibrator)
    seen, ends = spans(histograms), {tensor.name for tensor in graph.outputs}
    quantizers = {
        name: replace(quantizer, span=rounding.span(quantizer.amax, seen[name]))
        if quantizer.dtype is DType.INT8
        else quantizer
        for name, quantizer in plan.quantizers.items()
    }
    for node in graph.nodes:
        if node.op == "Conv" and _quantized_here(plan, node):
            tensor = _behind(graph, node).name
            if tensor in spared or tensor in ends:
                continue
            known = quantizers.get(tensor) or _quantizer(tensor, histograms[tensor], method)
            if known.dtype is DType.INT8:  # a layer in FP8 may read it
                quantizers[tensor] = replace(known, whole=True)
        elif graphs.is_op(node, "Add") and _is_int8(quantizers.get(node.outputs[0].name)):
            sides = [quantizers.get(side.name) for side in node.inputs]
            if all(side is not None and side.whole for side in sides):
                name = node.outputs[0].name
                quantizers[name] = replace(quantizers[name], whole=True)
    return plan.with_(quantizers=quantizers)


def _is_int8(quantizer: Quantizer | None) -> bool:
    return quantizer is not None and quantizer.dtype is DType.INT8


def _quantizer(tensor: str, histogram: Histogram, method: Calibrator) -> Quantizer:
    amax = method.range(histogram)
    span = rounding.span(amax, (histogram.minimum, histogram.maximum))
    return Quantizer(tensor, DType.INT8, amax, str(method), histogram.amax, span, whole=True)


def _settle(
    plan: Plan,
    inputs: AbstractSet[str],
    histograms: Mapping[str, Histogram],
    measure: Callable[[Plan], float],
    target_db: float,
) -> Plan:
    """The plan with as many quantized outputs as accuracy allows, quietest first.

    All of them stay where the outputs of the model still reach `target_db` or lose at most `LOSS_DB`; else the few
    that cost most are found by halving. A convolution without a quantized output goes back to float: unfused it is
    slower than that.
    """
    order = sorted((q for q in plan.quantizers.values() if q.whole), key=lambda q: _noise(q, histograms[q.tensor]))
    names = [quantizer.tensor for quantizer in order]
    if not names:
        return plan
    allowed = min(target_db, measure(_limited(plan, inputs, ())) - LOSS_DB)
    kept = _most(names, lambda some: measure(_limited(plan, inputs, some)) >= allowed)
    return _limited(plan, inputs, kept)


def _most(names: Sequence[str], good: Callable[[Sequence[str]], bool], kept: Sequence[str] = ()) -> list[str]:
    """`kept` and as many of `names` as are good together; a half that is not good is halved again."""
    if good([*kept, *names]):
        return [*kept, *names]
    if len(names) == 1:
        return list(kept)
    middle = len(names) // 2
    return _most(names[middle:], good, _most(names[:middle], good, kept))


def _noise(quantizer: Quantizer, histogram: Histogram) -> float:
    """Noise-to-signal power of rounding alone."""
    low, high = quantizer.span or (-quantizer.amax, quantizer.amax)
    return float((high - low) ** 2 / max(signal_power(histogram), 1e-30))


def _limited(plan: Plan, inputs: AbstractSet[str], kept: Sequence[str]) -> Plan:
    """The plan in which only `kept` are quantized as a whole; quantizers that served nothing else are gone."""
    quantizers = {
        name: replace(quantizer, whole=quantizer.whole and name in kept)
        for name, quantizer in plan.quantizers.items()
        if name in inputs or name in kept
    }
    return plan.with_(quantizers=quantizers)


class _OutputsTrial:
    """SQNR in dB of the worst view of a plan's lowered graph over a few samples."""

    def __init__(
        self,
        model: models.Model,
        corrections: Mapping[str, NDArray[np.float32]],
        feeds: Sequence[Feeds],
        views: Views,
        fitted: Mapping[str, FittedWeight],
    ) -> None:
        self._model, self._corrections, self._feeds, self._fitted = model, corrections, feeds, fitted
        self._tensors = tensors_of(judged(views))
        session = OpenModel(model, outputs=self._tensors)
        self._expected = [Expected.of(judged(views), session.run(feed), feed) for feed in feeds]
        self._shares = shares_of(self._expected)

    def __call__(self, plan: Plan) -> float:
        lowered = models.copy(self._model)
        Pipeline(InsertQDQ(plan, self._corrections, fitted=self._fitted), QuantizeOutputs(plan), given=GIVEN)(
            lowered.graph
        )
        session = OpenModel(lowered, outputs=self._tensors)
        total = Tally(self._shares)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            total.add(expected, session.run(feed))
        return sqnr.decibel(total.worst())
