"""From what was observed to the plan: small layers out, formats and ranges on offer, and the safety net over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import attention, calibrators, came, clip, cost, decide, outputs, pairs, safety, sparing
from qcompiler import model as models
from qcompiler.decide import Candidate, Candidates, Refusal
from qcompiler.macs import Shapes, concrete_shapes
from qcompiler.numerics import format_of
from qcompiler.observe import Observations
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.qfem import Spared
from qcompiler.recipe import Qfem, Safety
from qcompiler.safety import FEW, HIGH, Advance, Limits, Prices, SafetyNet
from qcompiler.signature import Feeds, inputs_of
from qcompiler.simulate import Grids, Simulation, Use, formats_of
from qcompiler.sqnr import decibel
from qcompiler.statistics import Histogram
from qcompiler.target import DType, Target, lacking_fp8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Corrections = dict[str, NDArray[np.float32]]

AUTO = "auto"
AUTO_RANGES = ("mse", "percentile{p=99.99}", "percentile{p=99.999}", "minmax", "percentile{p=99.9}")
FP8_RANGES = ("mse{format=fp8}", "minmax")  # of a grid that spans 15 octaves
USELESS_DB = 8.0


@dataclass(frozen=True)
class Planning:
    """What planning may see of what the user asked for.

    Attributes:
        formats: the quantized types that layers may get.
        everything: no layer may go back to high precision for accuracy.
        by_cost: formats are compared by what they cost on the target; else high precision is what costs.
        calibrator: text form of the one that chooses ranges, or `auto` for the choice among several.
        safety: the table of the safety net.
        qfem: the table of QFeM.
        min_sqnr: SQNR in dB that every output must reach; None for no gate.
        per_channel: INT8 weights have a scale per output channel.
        clip_weights: weight ranges may be narrower than the largest weight.
        attention: INT8 or FP8 for the products of attentions; None where they stay float.
        shapes: smallest, usual and largest shape by input; None for those of the data.
    """

    formats: tuple[DType, ...]
    everything: bool
    by_cost: bool
    calibrator: str
    safety: Safety
    qfem: Qfem
    min_sqnr: float | None
    per_channel: bool
    clip_weights: bool
    attention: DType | None
    shapes: Mapping[str, Sequence[tuple[int, ...]]] | None


@dataclass(frozen=True)
class Chosen:
    """The plan and how it was found.

    Attributes:
        plan: every linear node's precision.
        net: what the safety net did.
        corrections: by node name, what bias correction adds to its output channels.
        scales: by node name, scales of its INT8 weight where they are not amax / 127.
        spared: what QFeM decided.
        scores: the user's metric by what was spared, for the next try on the same model.
    """

    plan: Plan
    net: SafetyNet
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    spared: Spared = sparing.NOTHING
    scores: sparing.Scores = field(default_factory=dict)


def make_plan(
    model: models.Model,
    layers: Candidates,
    observed: Observations,
    options: Planning,
    target: Target,
    advance: Advance | None = None,
    *,
    judge: sparing.Judge | None = None,
    scores: sparing.Scores = sparing.UNKNOWN,
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        layers: candidates by the structural rules, and what these rules left out.
        observed: histograms of the candidates' activations, and the kept feeds.
        options: calibrator, safety net, gates.
        target: high-precision type.
        advance: called with the number of runs of the safety net.
        judge: the user's metric; QFeM goes by it.
        scores: what it gave for this model before.
    """
    if target.quantize_outputs:
        options = replace(options, safety=outputs.relaxed(options.safety))
    shapes = concrete_shapes(model.graph, observed.kept[0], decide.tensors_for_shapes(model.graph))
    macs = decide.node_macs(model.graph, shapes)
    large = layers.refusing(decide.small(model.graph, layers.found, shapes, target))
    offers, spelled = _offers(options.formats, options.calibrator, target, large.by_activation, observed.histograms)
    grids = _grids(options, target, observed.histograms)
    few = observed.kept[: safety.enough(shapes, offers, 1, FEW)]
    given = came.given(layers.found, per_channel=options.per_channel)
    simulation = _simulation(model, large, offers, grids, given, observed, few, options)
    costs = _costs(model.graph, layers, large, grids, observed, options, target)
    prices = _priced(large.by_activation, offers, macs, costs)
    ratios = {name: one.ratio for name, one in observed.outliers.items()}
    goal = options.safety.target_sqnr_db
    spared, scores = sparing.spare(simulation, few, offers, prices, ratios, options.qfem, goal, judge, scores)
    left = large.refusing(sparing.refusals(spared, large.found))
    net = _safety_net(simulation, spared, shapes, prices, observed, options, advance)
    plan = _plan(model.graph, left, net, macs, target, observed.histograms, "" if costs is None else costs.where)
    plan = plan.with_(
        quantizers=_quantizers(left.by_activation, net, spelled, observed.histograms),
        axes=_axes(left, net, grids) | sparing.stored(spared, large.by_activation, options.qfem),
    )
    corrections = _corrections(simulation, left, net)
    scales = given if simulation is None else simulation.scales
    plan, corrections = _completed(plan, corrections, model, left, net, scales, observed, options, target)
    return Chosen(plan, net, corrections, scales, spared, scores)


def _grids(options: Planning, target: Target, histograms: Mapping[str, Histogram]) -> Grids:
    """The grids that a target has for what was asked for."""
    spans = outputs.spans(histograms) if target.unsigned_activations else None
    return Grids(options.per_channel, options.per_channel and target.fp8_per_channel, spans)


def _simulation(
    model: models.Model,
    layers: Candidates,
    offers: Mapping[str, Sequence[Use]],
    grids: Grids,
    scales: Mapping[str, NDArray[np.float32]],
    observed: Observations,
    few: Sequence[Feeds],
    options: Planning,
) -> Simulation | None:
    """What the layers may become, with the weight ranges that serve the outputs best; None where there are none."""
    if not layers.found:
        return None
    simulation = Simulation.of(model, layers.by_activation, offers, observed.kept, grids, scales)
    if options.clip_weights and grids.per_channel and DType.INT8 in formats_of(offers):
        return clip.narrowed(simulation, few)
    return simulation


def _costs(
    graph: gs.Graph,
    layers: Candidates,
    large: Candidates,
    grids: Grids,
    observed: Observations,
    options: Planning,
    target: Target,
) -> cost.Costs | None:
    """What `large` of the layers cost in each format; None where they are not chosen by that."""
    if not options.by_cost or target.engine == "onnxruntime" or not large.found:
        return None
    usual = _shapes_at(graph, observed, options, 1, cost.tensors(graph, layers.found))
    return cost.Costs(graph, usual, target, per_channel=grids.per_channel, fp8_per_channel=grids.fp8_per_channel)


def _priced(
    groups: Mapping[str, Sequence[Candidate]],
    offers: Mapping[str, Sequence[Use]],
    macs: Mapping[str, int],
    costs: cost.Costs | None,
) -> Prices:
    """What accuracy is traded for: time where costs are compared, else multiply-accumulates in high precision."""
    own = {name: sum(macs[c.node] for c in members) for name, members in groups.items()}
    return Prices(own, sum(macs.values()), {} if costs is None else costs.table(groups, offers))


def _safety_net(
    simulation: Simulation | None,
    spared: Spared,
    shapes: Shapes,
    prices: Prices,
    observed: Observations,
    options: Planning,
    advance: Advance | None,
) -> SafetyNet:
    """Runs the safety net over the groups that are not spared."""
    if simulation is None or len(spared.tensors) == len(simulation.groups):
        return SafetyNet()
    table, groups = options.safety, simulation.groups
    by_cost = bool(prices.seconds) and not options.everything
    limits = Limits(
        target_db=max(table.target_sqnr_db, options.min_sqnr or -1000.0),
        # A gate that the user set outranks speed, and among formats high precision is a choice like the others
        min_share=0.0
        if options.min_sqnr is not None or by_cost
        else table.min_share * sum(prices.macs.values()) / max(prices.total, 1),
        useless_db=USELESS_DB,
        few=safety.enough(shapes, groups, 1, FEW) if options.calibrator == AUTO else 1,
        range_groups=table.range_groups,
        high=not options.everything,
    )
    feeds = observed.kept[: safety.enough(shapes, groups, 2, table.samples)]
    offers = {name: uses for name, uses in simulation.offers.items() if name not in spared.tensors}
    return safety.cast(simulation, feeds, offers, prices, limits, advance)


def _quantizers(
    groups: Mapping[str, Sequence[Candidate]],
    net: SafetyNet,
    spelled: Mapping[str, Mapping[Use, str]],
    histograms: Mapping[str, Histogram],
) -> dict[str, Quantizer]:
    """Those of the activations of all groups that the net did not give back."""
    uses = {name: Use(net.formats[name], net.amax[name]) for name in groups if name not in net.restored}
    return {
        name: Quantizer(name, use.dtype, use.amax, spelled[name][use], histograms[name].amax)
        for name, use in uses.items()
    }


def _axes(layers: Candidates, net: SafetyNet, grids: Grids) -> dict[str, int | None]:
    """Of the quantized layers, by name: the axis of the weight that has the scales."""
    kept = [c for c in _grouped(layers) if c.activation not in net.restored]
    return {c.node: c.axis if grids.channels(net.formats[c.activation]) else None for c in kept}


def _corrections(simulation: Simulation | None, layers: Candidates, net: SafetyNet) -> Corrections:
    """What bias correction adds to the quantized layers, by name."""
    if simulation is None:
        return {}
    shifts = simulation.shifts
    kept = [c for c in _grouped(layers) if c.activation not in net.restored and shifts.can(c)]
    return {c.node: shifts.of(c, net.amax[c.activation], net.formats[c.activation]) for c in kept}


def _grouped(layers: Candidates) -> list[Candidate]:
    """The candidates, those of one activation together."""
    return [c for members in layers.by_activation.values() for c in members]


def _completed(
    plan: Plan,
    corrections: Corrections,
    model: models.Model,
    layers: Candidates,
    net: SafetyNet,
    scales: Mapping[str, NDArray[np.float32]],
    observed: Observations,
    options: Planning,
    target: Target,
) -> tuple[Plan, Corrections]:
    """The plan with what stands between layers: quantized outputs, or shortcuts, attentions and shared scales."""
    table = options.safety
    calibrator = outputs.RANGES if options.calibrator == AUTO else options.calibrator
    if target.quantize_outputs:
        few = observed.kept[: table.samples]
        extended = outputs.add(
            plan,
            model,
            observed.histograms,
            corrections,
            few,
            calibrator=calibrator,
            target_db=table.target_sqnr_db,
            spared=net.restored,
        )
        return extended, corrections
    setting = pairs.Setting(
        model,
        target,
        layers.by_activation,
        observed.histograms,
        observed.kept,
        table.samples,
        calibrator=calibrator,
        target_db=table.target_sqnr_db,
        per_channel=options.per_channel,
        attention=_asked(model.graph, observed, options, target),
        scales=scales,
    )
    return pairs.extend(plan, corrections, setting)


def _asked(graph: gs.Graph, observed: Observations, options: Planning, target: Target) -> attention.Asked | None:
    """What is asked of attentions."""
    if options.attention is None:
        return None
    smallest, largest = (_shapes_at(graph, observed, options, at, attention.tensors(graph)) for at in (0, -1))
    return attention.Asked(options.attention, smallest, largest, target.high_precision)


def _shapes_at(graph: gs.Graph, observed: Observations, options: Planning, which: int, names: Sequence[str]) -> Shapes:
    """Shapes of tensors at the smallest (0), usual (1) or largest (-1) input of the optimization profile."""
    inputs = inputs_of(graph)
    wanted: dict[str, tuple[int, ...]] = {
        name: (three.min, three.opt, three.max)[which] for name, three in observed.shapes.profiles(inputs).items()
    }
    wanted.update({name: three[which] for name, three in (options.shapes or {}).items()})
    feeds = {name: np.resize(array, wanted.get(name, np.shape(array))) for name, array in observed.kept[0].items()}
    return concrete_shapes(graph, feeds, names)


def offered(
    calibrator: str, histograms: Mapping[str, Histogram], dtype: DType = DType.INT8
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Clipping ranges to choose from by tensor, best guess first, and the calibrator that each came from.

    `auto` offers several, any other calibrator its own one only; that of least error works on the grid of the format.
    """
    several = FP8_RANGES if dtype is DType.FP8 else AUTO_RANGES
    methods = [calibrators.parse(text) for text in (several if calibrator == AUTO else (calibrator,))]
    methods = [calibrators.MSE(format_of(dtype)) if isinstance(one, calibrators.MSE) else one for one in methods]
    ranges = {name: [method.range(histogram) for method in methods] for name, histogram in histograms.items()}
    return ranges, {name: [str(method) for method in methods] for name in histograms}


def _offers(
    formats: tuple[DType, ...],
    calibrator: str,
    target: Target,
    groups: Mapping[str, Sequence[Candidate]],
    histograms: Mapping[str, Histogram],
) -> tuple[dict[str, list[Use]], dict[str, dict[Use, str]]]:
    """Formats and ranges to choose from by activation, and the calibrator behind each; INT8 only for what came so."""
    if lacking_fp8(target) and len(formats) > 1:
        formats = tuple(dtype for dtype in formats if dtype is not DType.FP8)
    fixed = {
        name for name, members in groups.items() if any(c.scales is not None or c.amax is not None for c in members)
    }
    offers: dict[str, list[Use]] = {name: [] for name in groups}
    spelled: dict[str, dict[Use, str]] = {name: {} for name in groups}
    for dtype in dict.fromkeys([*formats, *([DType.INT8] if fixed else [])]):
        own = {name: members for name, members in groups.items() if name in fixed or dtype in formats}
        own = {name: members for name, members in own.items() if name not in fixed or dtype is DType.INT8}
        ranges, texts = offered(calibrator, {name: histograms[name] for name in own}, dtype)
        came.pin(ranges, texts, own)
        for name in own:
            for amax, text in zip(ranges[name], texts[name], strict=True):
                offers[name].append(Use(dtype, amax))
                spelled[name].setdefault(Use(dtype, amax), text)
    return offers, spelled


def _plan(
    graph: gs.Graph,
    layers: Candidates,
    net: SafetyNet,
    macs: Mapping[str, int],
    target: Target,
    histograms: Mapping[str, Histogram],
    where: str,
) -> Plan:
    """All decisions in graph order."""
    high, came = target.high_precision, decide.existing(graph)
    decisions = [decide.decision(r, _unquantized(r, came, high), macs.get(r.node, 0)) for r in layers.refused]
    for activation, members in layers.by_activation.items():
        figures = _figures(activation, net, histograms[activation], high)
        decisions += [_decide(c, activation, net, macs[c.node], high, figures, where) for c in members]
    return Plan.of(decisions).ordered(node.name for node in graph.nodes)


def _unquantized(refusal: Refusal, came: Plan, high: DType) -> DType:
    """What a refused node computes in; the typing pass has the last word on the float types."""
    if refusal.rule == "quantized-already":
        return came.precision(refusal.node) or high
    return DType.FP32 if refusal.rule == "subgraph" else high


def _decide(
    candidate: Candidate,
    activation: str,
    net: SafetyNet,
    macs: int,
    high: DType,
    figures: Mapping[str, float],
    where: str,
) -> Decision:
    alone = figures.get("alone_sqnr_db")
    costs = net.costs.get(activation, {})
    prices = _prices(net, activation, high, where)
    if activation in net.restored and costs and costs[HIGH] <= min(costs.values()):
        why = f"no format is faster than {high} here{_compared(net, activation)}{prices}"
        return Decision(candidate.node, candidate.op, high, "cost", why, macs, figures)
    if activation in net.restored:
        reached = net.curve[-1]
        formats = " or ".join(sorted({one.upper() for one in net.formats.values()}, reverse=True))
        why = (
            f"quantized alone it leaves {alone:.1f} dB at the outputs; with {len(net.restored)} such groups in "
            f"{high} the model reaches {reached.sqnr_db:.1f} dB with {reached.share:.0%} of MACs in {formats}"
        )
        why += _compared(net, activation) + prices
        return Decision(candidate.node, candidate.op, high, "sensitive", why, macs, figures)
    effect = "" if alone is None else f", alone {alone:.1f} dB at the outputs"
    why = f"constant weight, activation '{activation}' clipped at {net.amax[activation]:.4g}{effect}"
    why += _compared(net, activation) + prices
    return Decision(candidate.node, candidate.op, net.formats[activation], "linear", why, macs, figures)


def _compared(net: SafetyNet, activation: str) -> str:
    """The noise of each format, where there was a choice."""
    noises = net.alone.get(activation, {})
    if len(noises) < 2:
        return ""
    return "; " + ", ".join(f"{dtype}: alone {decibel(noise):.1f} dB" for dtype, noise in noises.items())


def _prices(net: SafetyNet, activation: str, high: DType, where: str) -> str:
    """The cost of each type, where costs were compared."""
    if activation not in net.costs:
        return ""
    costs = sorted(net.costs[activation].items(), key=lambda one: one[1])
    return (
        "; costs " + ", ".join(f"{time * 1e6:.1f} us in {_type(name, high)}" for name, time in costs) + f" on {where}"
    )


def _type(name: str, high: DType) -> str:
    return str(high) if name == HIGH else name


def _figures(activation: str, net: SafetyNet, histogram: Histogram, high: DType) -> dict[str, float]:
    figures = {"amax": net.amax[activation], "observed_amax": float(histogram.amax)}
    if activation in net.noise:
        figures["alone_sqnr_db"] = round(decibel(net.noise[activation]), 3)
    if activation in net.costs:
        figures |= {f"{dtype}_db": round(decibel(noise), 3) for dtype, noise in net.alone.get(activation, {}).items()}
        figures |= {f"{_type(name, high)}_us": round(time * 1e6, 3) for name, time in net.costs[activation].items()}
    return figures
