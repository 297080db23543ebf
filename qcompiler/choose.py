"""From what was observed to the plan: ranges by the calibrator, small layers out, and the safety net over the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import attention, calibrators, came, decide, outputs, pairs
from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.bias import Shifts
from qcompiler.data import Feeds
from qcompiler.decide import Candidate, Refusal
from qcompiler.macs import Shapes, concrete_shapes
from qcompiler.observe import Observations
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.recipe import Recipe
from qcompiler.sensitivity import ENOUGH, FEW, Advance, Limits, SafetyNet, search, sqnr_db
from qcompiler.simulate import Simulator
from qcompiler.statistics import Histogram
from qcompiler.target import DType, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUTO = "auto"
AUTO_RANGES = ("mse", "percentile{p=99.99}", "percentile{p=99.999}", "minmax", "percentile{p=99.9}")
USELESS_DB = 8.0


@dataclass(frozen=True)
class Chosen:
    """The plan and how it was found.

    Attributes:
        plan: every linear node's precision.
        net: what the safety net did.
        corrections: by node name, what bias correction adds to its output channels.
        scales: by node name, scales of its weight where they are not amax / 127.
    """

    plan: Plan
    net: SafetyNet
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def choose(
    model: models.Model,
    found: Sequence[Candidate],
    refused: Sequence[Refusal],
    observed: Observations,
    recipe: Recipe,
    target: Target,
    advance: Advance | None = None,
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        found: candidates by the structural rules.
        refused: linear and recurrent nodes that these rules left out.
        observed: histograms of the candidates' activations, and the kept feeds.
        recipe: calibrator, safety net, gates.
        target: high-precision type.
        advance: called with the number of runs of the safety net.
    """
    if target.quantize_outputs:
        recipe = outputs.relaxed(recipe)
    shapes = concrete_shapes(model.graph, observed.kept[0], decide.tensors_for_shapes(model.graph))
    macs = decide.node_macs(model.graph, shapes)
    nodes = {node.name: node for node in model.graph.nodes}
    small = [r for c in found if (r := decide.too_small(c, nodes[c.node], shapes)) is not None]
    if target.engine == "onnxruntime":  # on a CPU, what is bound by memory gains most from small weights
        small = [r for r in small if r.rule != "gemv" or r.op not in ("MatMul", "Gemm")]
    out = {refusal.node for refusal in small}
    groups = decide.by_activation(c for c in found if c.node not in out)
    ranges, spelled = offered(recipe.calibrator, {name: observed.histograms[name] for name in groups})
    came.pin(ranges, spelled, groups)
    group_macs = {name: sum(macs[c.node] for c in members) for name, members in groups.items()}
    per_channel = recipe.weight_granularity == "channel"
    scales = came.given(found, per_channel=per_channel)
    seen = outputs.spans(observed.histograms) if target.unsigned_activations else None
    shifts = Shifts(model, groups, ranges, observed.kept, per_channel=per_channel, spans=seen, scales=scales)
    simulator = Simulator(model, groups, shifts, per_channel=per_channel, scales=scales) if groups else None
    net = _cast(simulator, shapes, observed.kept, ranges, group_macs, sum(macs.values()), recipe, advance)
    plan = _plan(model.graph, groups, [*refused, *small], net, macs, target, nodes, observed.histograms, recipe)
    plan.quantizers = {
        name: Quantizer(
            name, DType.INT8, net.amax[name], spelled[name][ranges[name].index(net.amax[name])],
            observed.histograms[name].amax,
        )
        for name in groups
        if name not in net.restored
    }  # fmt: skip
    kept = [c for name in plan.quantizers for c in groups[name]]
    plan.axes = {c.node: c.axis if per_channel else None for c in kept}
    corrections = {c.node: shifts.of(c, net.amax[c.activation]) for c in kept if shifts.can(c)}
    if target.quantize_outputs:
        plan = outputs.add(
            plan,
            model,
            observed.histograms,
            corrections,
            observed.kept[: recipe.safety.samples],
            calibrator=outputs.RANGES if recipe.calibrator == AUTO else recipe.calibrator,
            target_db=recipe.safety.target_sqnr_db,
            spared=net.restored,
        )
        return Chosen(plan, net, corrections, scales)
    setting = pairs.Setting(
        model,
        target,
        groups,
        observed.histograms,
        observed.kept,
        recipe.safety.samples,
        calibrator=outputs.RANGES if recipe.calibrator == AUTO else recipe.calibrator,
        target_db=recipe.safety.target_sqnr_db,
        per_channel=per_channel,
        largest=_largest(model, observed, recipe) if recipe.attention == "int8" else None,
    )
    plan, corrections = pairs.extend(plan, corrections, setting)
    return Chosen(plan, net, corrections, scales)


def _largest(model: models.Model, observed: Observations, recipe: Recipe) -> Shapes:
    """Shapes of the tensors of attentions at the largest input of the optimization profile."""
    inputs = {tensor.name: (graphs.dtype_of(tensor), graphs.shape_of(tensor)) for tensor in model.graph.inputs}
    most: dict[str, tuple[int, ...]] = {name: three.max for name, three in observed.shapes.profiles(inputs).items()}
    most.update({name: three[-1] for name, three in (recipe.shapes or {}).items()})
    feeds = {name: np.resize(array, most.get(name, np.shape(array))) for name, array in observed.kept[0].items()}
    return concrete_shapes(model.graph, feeds, attention.tensors(model.graph))


def offered(
    calibrator: str, histograms: Mapping[str, Histogram]
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Clipping ranges to choose from by tensor, best guess first, and the calibrator that each came from.

    `auto` offers several, any other calibrator its own one only.
    """
    texts = AUTO_RANGES if calibrator == AUTO else (calibrator,)
    methods = [calibrators.parse(text) for text in texts]
    ranges = {name: [method.range(histogram) for method in methods] for name, histogram in histograms.items()}
    return ranges, {name: [str(method) for method in methods] for name in histograms}


def _enough(shapes: Shapes, groups: Iterable[str], times: int, most: int) -> int:
    """Samples to measure on: what it takes to see `times` enough elements of the activations, `times` at least."""
    elements = sum(math.prod(shapes.get(name, (0,))) for name in groups)
    return min(most, max(times, math.ceil(times * ENOUGH / max(elements, 1))))


def _cast(
    simulator: Simulator | None,
    shapes: Shapes,
    feeds: Sequence[Feeds],
    ranges: Mapping[str, Sequence[float]],
    macs: Mapping[str, int],
    total: int,
    recipe: Recipe,
    advance: Advance | None,
) -> SafetyNet:
    """Runs the safety net over the groups."""
    if simulator is None:
        return SafetyNet()
    groups = simulator.groups
    limits = Limits(
        target_db=max(recipe.safety.target_sqnr_db, recipe.min_sqnr or -1000.0),
        # A gate that the user set outranks speed
        min_share=0.0 if recipe.min_sqnr is not None else recipe.safety.min_share,
        useless_db=USELESS_DB,
        few=_enough(shapes, groups, 1, FEW) if recipe.calibrator == AUTO else 1,
        range_groups=recipe.safety.range_groups,
    )
    whole = _enough(shapes, groups, 2, recipe.safety.samples)
    return search(simulator, feeds[:whole], ranges, macs, total, limits, advance)


def _plan(
    graph: gs.Graph,
    groups: Mapping[str, Sequence[Candidate]],
    refused: Sequence[Refusal],
    net: SafetyNet,
    macs: Mapping[str, int],
    target: Target,
    nodes: Mapping[str, gs.Node],
    histograms: Mapping[str, Histogram],
    recipe: Recipe,
) -> Plan:
    """All decisions in graph order."""
    high = target.high_precision
    came = decide.existing(graph)
    decisions = {r.node: decide.decision(r, _unquantized(r, came, high), macs.get(r.node, 0)) for r in refused}
    for activation, members in groups.items():
        figures = _figures(activation, net, histograms[activation])
        for c in members:
            decisions[c.node] = _decide(c, activation, net, macs[c.node], high, figures)
    plan = Plan()
    for name in sorted(decisions, key=_order(nodes)):
        plan.add(decisions[name])
    return plan


def _unquantized(refusal: Refusal, came: Plan, high: DType) -> DType:
    """What a refused node computes in; the typing pass has the last word on the float types."""
    if refusal.rule == "quantized-already":
        return came.precision(refusal.node) or high
    return DType.FP32 if refusal.rule == "subgraph" else high


def _decide(
    candidate: Candidate, activation: str, net: SafetyNet, macs: int, high: DType, figures: Mapping[str, float]
) -> Decision:
    alone = figures.get("alone_sqnr_db")
    if activation in net.restored:
        reached = net.curve[-1]
        why = (
            f"quantized alone it leaves {alone:.1f} dB at the outputs; with {len(net.restored)} such groups in "
            f"{high} the model reaches {reached.sqnr_db:.1f} dB with {reached.share:.0%} of MACs in INT8"
        )
        return Decision(candidate.node, candidate.op, high, "sensitive", why, macs, figures)
    effect = "" if alone is None else f", alone {alone:.1f} dB at the outputs"
    why = f"constant weight, activation '{activation}' clipped at {net.amax[activation]:.4g}{effect}"
    return Decision(candidate.node, candidate.op, DType.INT8, "linear", why, macs, figures)


def _figures(activation: str, net: SafetyNet, histogram: Histogram) -> dict[str, float]:
    figures = {"amax": net.amax[activation], "observed_amax": float(histogram.amax)}
    if activation in net.noise:
        figures["alone_sqnr_db"] = round(sqnr_db(net.noise[activation]), 3)
    return figures


def _order(nodes: Mapping[str, gs.Node]) -> Any:
    places = {name: i for i, name in enumerate(nodes)}
    return lambda name: places.get(name, len(places))
