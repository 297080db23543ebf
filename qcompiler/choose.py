"""From what was observed to the plan: small layers out, formats and ranges on offer, and the safety net over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import attention, calibrators, came, clip, cost, decide, outputs, pairs, qfem, record, sparing
from qcompiler import model as models
from qcompiler.bias import Shifts
from qcompiler.decide import Candidate, Candidates, Refusal
from qcompiler.errors import DataError, ModelError
from qcompiler.macs import Shapes, concrete_shapes
from qcompiler.numerics import format_of
from qcompiler.observe import Observations
from qcompiler.operators import PRODUCTS
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.qfem import Spared
from qcompiler.recipe import Recipe
from qcompiler.record import Rows
from qcompiler.safety import (
    ENOUGH,
    FEW,
    HIGH,
    Advance,
    Limits,
    Measure,
    Prices,
    SafetyNet,
    best_start,
    runs_for,
    search,
)
from qcompiler.shorten import shorten
from qcompiler.signature import Feeds, inputs_of
from qcompiler.simulate import Simulator, Use
from qcompiler.sqnr import decibel
from qcompiler.statistics import Histogram
from qcompiler.target import DType, Target, lacking_fp8

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUTO = "auto"
AUTO_RANGES = ("mse", "percentile{p=99.99}", "percentile{p=99.999}", "minmax", "percentile{p=99.9}")
FP8_RANGES = ("mse{format=fp8}", "minmax")  # of a grid that spans 15 octaves
USELESS_DB = 8.0


@dataclass(frozen=True)
class Chosen:
    """The plan and how it was found.

    Attributes:
        plan: every linear node's precision.
        net: what the safety net did.
        corrections: by node name, what bias correction adds to its output channels.
        scales: by node name, scales of its INT8 weight where they are not amax / 127.
    """

    plan: Plan
    net: SafetyNet
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    spared: Spared = sparing.NOTHING


def choose(
    model: models.Model,
    layers: Candidates,
    observed: Observations,
    recipe: Recipe,
    target: Target,
    advance: Advance | None = None,
    *,
    judge: sparing.Judge | None = None,
    scores: sparing.Scores | None = None,
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        layers: candidates by the structural rules, and what these rules left out.
        observed: histograms of the candidates' activations, and the kept feeds.
        recipe: calibrator, safety net, gates.
        target: high-precision type.
        advance: called with the number of runs of the safety net.
        judge: the user's metric; QFeM goes by it.
        scores: what it gave for this model before.
    """
    found, refused = layers.found, layers.refused
    if target.quantize_outputs:
        recipe = outputs.relaxed(recipe)
    shapes = concrete_shapes(model.graph, observed.kept[0], decide.tensors_for_shapes(model.graph))
    macs = decide.node_macs(model.graph, shapes)
    nodes = {node.name: node for node in model.graph.nodes}
    small = [r for c in found if (r := decide.too_small(c, nodes[c.node], shapes)) is not None]
    if target.engine == "onnxruntime":  # on a CPU, what is bound by memory gains most from small weights
        small = [r for r in small if r.rule != "gemv" or r.op not in PRODUCTS]
    out = {refusal.node for refusal in small}
    groups = decide.by_activation(c for c in found if c.node not in out)
    offers, spelled = _offers(recipe, target, groups, observed.histograms)
    dtypes = tuple(dict.fromkeys(use.dtype for uses in offers.values() for use in uses))
    per_channel = recipe.weight_granularity == "channel"
    fp8_per_channel = per_channel and target.fp8_per_channel
    scales = came.given(found, per_channel=per_channel)

    def tried(scales: Mapping[str, NDArray[np.float32]]) -> tuple[Shifts, Simulator | None]:
        shifts = Shifts(
            model,
            groups,
            _ranges(offers, DType.INT8),
            observed.kept,
            fp8=_ranges(offers, DType.FP8) if DType.FP8 in dtypes else None,
            fp8_per_channel=fp8_per_channel,
            per_channel=per_channel,
            spans=outputs.spans(observed.histograms) if target.unsigned_activations else None,
            scales=scales,
        )
        if not groups:
            return shifts, None
        return shifts, Simulator(
            model,
            groups,
            shifts,
            per_channel=per_channel,
            dtypes=dtypes,
            fp8_per_channel=fp8_per_channel,
            scales=scales,
        )

    shifts, simulator = tried(scales)
    if recipe.weight_clip == "mse" and simulator is not None and per_channel and DType.INT8 in dtypes:
        feeds = observed.kept[: _enough(shapes, groups, 1, FEW)]
        clipped = {**clip.search(model, groups, _rows(model, groups, observed), observed.kept), **scales}
        shorter, narrower = tried(clipped)
        if narrower is not None and _better(narrower, simulator, feeds, offers):
            shifts, simulator, scales = shorter, narrower, clipped
    group_macs = {name: sum(macs[c.node] for c in members) for name, members in groups.items()}
    prices = Prices(group_macs, sum(macs.values()))
    costs: cost.Costs | None = None
    if recipe.precision.startswith(AUTO) and target.engine != "onnxruntime" and groups:
        usual = _shapes_at(model.graph, observed, recipe, 1, cost.tensors(model.graph, found))
        costs = cost.Costs(model.graph, usual, target, per_channel=per_channel, fp8_per_channel=fp8_per_channel)
        prices = Prices(prices.macs, prices.total, _seconds(costs, groups, offers, target.high_precision))
    spared = sparing.NOTHING
    if simulator is not None:
        feeds = observed.kept[: _enough(shapes, groups, 1, FEW)]
        ratios = {name: one.ratio for name, one in observed.outliers.items()}
        target_db = recipe.safety.target_sqnr_db
        spared = sparing.spare(simulator, feeds, offers, prices, ratios, recipe.qfem, target_db, judge, scores)
    refused = (
        *refused,
        *(
            Refusal(c.node, c.op, qfem.RULE, spared.reason(c.activation))
            for c in found
            if c.activation in spared.tensors and c.node not in out
        ),
    )
    offers = {name: uses for name, uses in offers.items() if name not in spared.tensors}
    stored = {c.node: c.axis for name in spared.tensors for c in groups[name]} if recipe.qfem.weights == "int8" else {}
    groups = {name: members for name, members in groups.items() if name not in spared.tensors}
    net = _cast(
        simulator, model.graph, shapes, observed.kept, offers, prices, recipe, sum(group_macs.values()), advance
    )
    where = costs.where if costs is not None else ""
    plan = _plan(model.graph, groups, [*refused, *small], net, macs, target, nodes, observed.histograms, where)
    quantizers = {
        name: Quantizer(
            name,
            net.formats[name],
            net.amax[name],
            spelled[name][Use(net.formats[name], net.amax[name])],
            observed.histograms[name].amax,
        )
        for name in groups
        if name not in net.restored
    }
    kept = [c for name in quantizers for c in groups[name]]
    channels = {DType.INT8: per_channel, DType.FP8: fp8_per_channel}
    axes = {c.node: c.axis if channels[net.formats[c.activation]] else None for c in kept} | stored
    plan = plan.with_(quantizers=quantizers, axes=axes)
    corrections = {
        c.node: shifts.of(c, net.amax[c.activation], net.formats[c.activation]) for c in kept if shifts.can(c)
    }
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
        return Chosen(plan, net, corrections, scales, spared)
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
        attention=_asked(model.graph, observed, recipe, target),
        scales=scales,
    )
    plan, corrections = pairs.extend(plan, corrections, setting)
    return Chosen(plan, net, corrections, scales, spared)


def _asked(graph: gs.Graph, observed: Observations, recipe: Recipe, target: Target) -> attention.Asked | None:
    """What the recipe asks of attentions."""
    if recipe.attention == "float":
        return None
    smallest, largest = (_shapes_at(graph, observed, recipe, at, attention.tensors(graph)) for at in (0, -1))
    return attention.Asked(DType(recipe.attention), smallest, largest, target.high_precision)


def _rows(model: models.Model, groups: Mapping[str, Sequence[Candidate]], observed: Observations) -> dict[str, Rows]:
    """Recorded rows of what products read."""
    axes = {name: -1 for name, members in groups.items() if members[0].op in PRODUCTS}
    return record.rows(model, axes, observed.kept)


def _better(one: Simulator, other: Simulator, feeds: Sequence[Feeds], offers: Mapping[str, Sequence[Use]]) -> bool:
    """Whether the outputs err less with all layers in INT8 in one simulator than in the other."""
    noises = [best_start(Measure(each, feeds, len(feeds), None), offers, DType.INT8)[1] for each in (one, other)]
    return noises[0] < noises[1]


def _shapes_at(graph: gs.Graph, observed: Observations, recipe: Recipe, which: int, names: Sequence[str]) -> Shapes:
    """Shapes of tensors at the smallest (0), usual (1) or largest (-1) input of the optimization profile."""
    inputs = inputs_of(graph)
    wanted: dict[str, tuple[int, ...]] = {
        name: (three.min, three.opt, three.max)[which] for name, three in observed.shapes.profiles(inputs).items()
    }
    wanted.update({name: three[which] for name, three in (recipe.shapes or {}).items()})
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
    recipe: Recipe,
    target: Target,
    groups: Mapping[str, Sequence[Candidate]],
    histograms: Mapping[str, Histogram],
) -> tuple[dict[str, list[Use]], dict[str, dict[Use, str]]]:
    """Formats and ranges to choose from by activation, and the calibrator behind each; INT8 only for what came so."""
    formats = recipe.formats()
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
        ranges, texts = offered(recipe.calibrator, {name: histograms[name] for name in own}, dtype)
        came.pin(ranges, texts, own)
        for name in own:
            for amax, text in zip(ranges[name], texts[name], strict=True):
                offers[name].append(Use(dtype, amax))
                spelled[name].setdefault(Use(dtype, amax), text)
    return offers, spelled


def _ranges(offers: Mapping[str, Sequence[Use]], dtype: DType) -> dict[str, list[float]]:
    return {name: [use.amax for use in uses if use.dtype is dtype] for name, uses in offers.items()}


def _seconds(
    costs: cost.Costs,
    groups: Mapping[str, Sequence[Candidate]],
    offers: Mapping[str, Sequence[Use]],
    high: DType,
) -> dict[str, dict[str, float]]:
    """What each group costs in each of its formats, and in high precision."""
    return {
        name: {
            HIGH: costs.seconds(name, members, high),
            **{str(use.dtype): costs.seconds(name, members, use.dtype) for use in offers[name]},
        }
        for name, members in groups.items()
    }


def _enough(shapes: Shapes, groups: Iterable[str], times: int, most: int) -> int:
    """Samples to measure on: what it takes to see `times` enough elements of the activations, `times` at least."""
    elements = sum(math.prod(shapes.get(name, (0,))) for name in groups)
    return min(most, max(times, math.ceil(times * ENOUGH / max(elements, 1))))


def _cast(
    simulator: Simulator | None,
    graph: gs.Graph,
    shapes: Shapes,
    feeds: Sequence[Feeds],
    offers: Mapping[str, Sequence[Use]],
    prices: Prices,
    recipe: Recipe,
    quantizable: int,
    advance: Advance | None,
) -> SafetyNet:
    """Runs the safety net over the groups; `quantizable` are the multiply-accumulates that the floor is a share of."""
    if simulator is None or not offers:
        return SafetyNet()
    groups = simulator.groups
    by_cost = bool(prices.seconds) and not recipe.everything
    limits = Limits(
        target_db=max(recipe.safety.target_sqnr_db, recipe.min_sqnr or -1000.0),
        # A gate that the user set outranks speed, and among formats high precision is a choice like the others
        min_share=0.0
        if recipe.min_sqnr is not None or by_cost
        else recipe.safety.min_share * quantizable / max(prices.total, 1),
        useless_db=USELESS_DB,
        few=_enough(shapes, groups, 1, FEW) if recipe.calibrator == AUTO else 1,
        range_groups=recipe.safety.range_groups,
        high=not recipe.everything,
    )
    whole = _enough(shapes, groups, 2, recipe.safety.samples)
    wanted = sum(len({use.dtype for use in uses}) for uses in offers.values())
    brief = _brief(simulator, graph, feeds[: limits.few], runs_for(limits, prices, limits.few) / max(wanted, 1))
    return search(simulator, feeds[:whole], offers, prices, limits, advance, brief=brief)


def _brief(simulator: Simulator, graph: gs.Graph, feeds: Sequence[Feeds], share: float) -> list[Feeds] | None:
    """Shorter samples for single groups, where there is no time to run them all on whole ones."""
    if share >= 1:
        return None
    short = shorten(graph, feeds, share)
    try:
        simulator.run(short[0], {})
    except (DataError, ModelError):  # the length is wired into this model: whole samples, in blocks of groups
        return None
    return short


def _plan(
    graph: gs.Graph,
    groups: Mapping[str, Sequence[Candidate]],
    refused: Sequence[Refusal],
    net: SafetyNet,
    macs: Mapping[str, int],
    target: Target,
    nodes: Mapping[str, gs.Node],
    histograms: Mapping[str, Histogram],
    where: str,
) -> Plan:
    """All decisions in graph order."""
    high = target.high_precision
    came = decide.existing(graph)
    decisions = {r.node: decide.decision(r, _unquantized(r, came, high), macs.get(r.node, 0)) for r in refused}
    for activation, members in groups.items():
        figures = _figures(activation, net, histograms[activation], high)
        for c in members:
            decisions[c.node] = _decide(c, activation, net, macs[c.node], high, figures, where)
    return Plan(decisions).ordered(nodes)


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
