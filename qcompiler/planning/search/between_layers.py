"""What a plan of single layers gets on top: shortcuts, attention and shared ranges, as far as accuracy allows.

`qcompiler.planning.placement.shortcuts` and `qcompiler.planning.placement.attention` say where they belong. All of them
round more than the layers alone did, so all are measured: where they cost more than `LOSS_DB` and the outputs miss the
target of the safety net, the noisiest ones stay float and the groups whose ranges differ most keep their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import calibrators
from qcompiler.calibrators import error_curve, mse
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, Tally, judged, shares_of
from qcompiler.judge.views import Views, tensors_of
from qcompiler.numerics import rounding, sqnr
from qcompiler.passes.base import Fact, Pipeline
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.insert_qdq_pairs import InsertQDQPairs
from qcompiler.plan import Candidate, Decision, Plan, Quantizer, Refusal
from qcompiler.planning.placement import attention, candidates, shared_scales, shortcuts
from qcompiler.planning.placement.attention import Attention, AttentionAsked
from qcompiler.planning.placement.shortcuts import Shortcut
from qcompiler.planning.search import evidence
from qcompiler.planning.search.offers import fitted_weights
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.runtime.stream import OpenModel
from qcompiler.statistics.evidence import Lack
from qcompiler.statistics.histogram import Histogram, signal_power
from qcompiler.target import DType, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Corrections = dict[str, NDArray[np.float32]]


LOSS_DB = 1.0
ATTENTION = "attention"  # the rule of `placement.candidates` for products of two activations
ATTENTION_LOSS_DB = 3.0  # only done on request, which is worth a price
GIVEN = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED, Fact.UNSHARED})


@dataclass(frozen=True)
class Setting:
    """What `extend` needs to know besides the plan.

    Attributes:
        model: the normalised float model.
        target: what its engine gains from.
        groups: candidates by the activation they share.
        histograms: of the plan's tensors and of `tensors_for_shortcuts`.
        feeds: samples for the means of bias correction.
        choosing: samples that losses are measured on.
        views: what is judged.
        calibrator: text form of the one that chooses ranges of shortcuts.
        target_db: SQNR of the model's outputs that is good enough.
        per_channel: weight scales per output channel.
        attention: what is asked of attentions; None where they stay float.
        scales: of weights that are not amax / 127, by node name.
        lacks: what the data has not shown of tensors, by name: these get no range.
    """

    model: models.Model
    target: Target
    groups: Mapping[str, Sequence[Candidate]]
    histograms: Mapping[str, Histogram]
    feeds: Sequence[Feeds]
    choosing: Sequence[Feeds]
    views: Views
    calibrator: str
    target_db: float
    per_channel: bool
    attention: AttentionAsked | None = None
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    lacks: Mapping[str, Lack] = field(default_factory=dict)


def extend(plan: Plan, corrections: Corrections, setting: Setting) -> tuple[Plan, Corrections]:
    """A plan with quantized shortcuts and one scale across Concat, and the corrections that fit it.

    Args:
        plan: of the layers alone.
        corrections: what bias correction adds, by node name.
        setting: everything else.
    """
    graph, target = setting.model.graph, setting.target
    quantized = {decision.node for decision in plan.quantized() if decision.precision is DType.INT8}
    chosen, refused = _seen(*shortcuts.shortcuts(graph, target, quantized), setting.lacks, setting.histograms)
    try_groups = target.share_scales and bool(shared_scales.scale_groups(graph, _int8(plan)))
    whole, told = _attentions(plan, setting)
    measure = _PairsTrial(setting) if chosen or try_groups or whole else None
    decisions = [*told, *(candidates.decision(refusal, target.high_precision, 0) for refusal in refused)]
    if measure is not None:
        allowed = min(setting.target_db, measure(plan, corrections) - LOSS_DB)
        plan, more = _with_shortcuts(plan, corrections, chosen, setting, measure, allowed)
        decisions += more
        allowed = min(setting.target_db, measure(plan, corrections) - ATTENTION_LOSS_DB) if whole else allowed
        plan, more = _with_attention(plan, corrections, whole, setting, measure, allowed)
        decisions += more
        if target.share_scales:
            plan, corrections = _with_shared(plan, corrections, setting, measure, allowed)
    return _explained(plan, decisions, [node.name for node in graph.nodes]), corrections


def _seen(
    chosen: Sequence[Shortcut],
    refused: Sequence[Refusal],
    lacks: Mapping[str, Lack],
    observed: Collection[str],
) -> tuple[list[Shortcut], list[Refusal]]:
    """The shortcuts that the data has shown enough of for a range, and the others refused."""
    unknown = [one for one in chosen if one.tensor in lacks]
    whys = [f"its shortcut {evidence.why(one.tensor, lacks[one.tensor])}: no range is known for it" for one in unknown]
    # Beside a convolution that came quantized no shortcut is measured
    came = [one for one in chosen if one.tensor not in lacks and one.tensor not in observed]
    whys += [f"'{one.conv}' came quantized, and its shortcut '{one.tensor}' as it is: it stays so" for one in came]
    pairs = zip([*unknown, *came], whys, strict=True)
    more = [Refusal(one.add, "Add", "residual-float", why) for one, why in pairs]
    left = [one for one in chosen if one.tensor not in lacks and one.tensor in observed]
    return left, [*refused, *more]


def _with_shortcuts(
    plan: Plan,
    corrections: Corrections,
    chosen: Sequence[Shortcut],
    setting: Setting,
    measure: _PairsTrial,
    allowed: float,
) -> tuple[Plan, list[Decision]]:
    """As many quantized shortcuts as accuracy allows, quietest first, and a decision for every Add."""
    method = calibrators.parse(setting.calibrator)
    quantizers = dict(plan.quantizers)
    for one in chosen:
        if one.tensor not in quantizers:
            histogram = setting.histograms[one.tensor]
            amax = method.range(histogram)
            quantizers[one.tensor] = Quantizer(one.tensor, DType.INT8, amax, str(method), histogram.amax)
    order = sorted(chosen, key=lambda one: _noise(quantizers[one.tensor], setting.histograms[one.tensor]))

    def first(count: int) -> Plan:
        kept = order[:count]
        used = plan.quantizers.keys() | {one.tensor for one in kept}
        return plan.with_(
            quantizers={name: quantizer for name, quantizer in quantizers.items() if name in used},
            reads={**plan.reads, **{one.add: (one.index,) for one in kept}},
        )

    count = largest(len(order), lambda count: measure(first(count), corrections) >= allowed)
    high = setting.target.high_precision
    return first(count), [
        Decision(
            one.add, "Add", high, "residual" if i < count else "residual-float",
            f"fuses with '{one.conv}': its shortcut '{one.tensor}' is quantized, clipped at "
            f"{quantizers[one.tensor].amax:.4g}"
            if i < count
            else f"its shortcut '{one.tensor}' is not quantized: with it the outputs fall below {allowed:.1f} dB",
        )
        for i, one in enumerate(order)
    ]  # fmt: skip


def _noise(quantizer: Quantizer, histogram: Histogram) -> float:
    """Noise-to-signal power of a tensor in this range."""
    error = error_curve.quantization_error(histogram, quantizer.amax, rounding.format_of(quantizer.dtype))
    return float(error / max(signal_power(histogram), 1e-30))


def _attentions(plan: Plan, setting: Setting) -> tuple[list[Attention], list[Decision]]:
    """The attentions that the fused kernel takes in the format asked for, and why it does not take the others."""
    asked, graph = setting.attention, setting.model.graph
    if asked is None:
        return [], []
    whole: list[Attention] = []
    reasons = {one.node: "it is not one of the two products around a softmax" for one in plan if one.rule == ATTENTION}
    for one in attention.find_attentions(graph):
        why = attention.why_not(one, asked) or _clash(plan, setting, one, asked)
        if why is None:
            whole.append(one)
        for node in (one.scores, one.context):
            reasons.pop(node, None)
            if why is not None:
                reasons[node] = why
    found = ((plan.decisions[node], why) for node, why in reasons.items() if node in plan.decisions)
    stays = f"it stays float although {asked.dtype.upper()} was asked for"
    return whole, [replace(one, why=f"{stays}: {why}") for one, why in found]


def _clash(plan: Plan, setting: Setting, one: Attention, asked: AttentionAsked) -> str | None:
    """What else in the plan keeps an attention from being quantized as a whole."""
    if not attention.reads(setting.model.graph, one, (), result=asked.result):
        return "its result is an output of the model"
    touched = (*one.reads, one.result) if asked.result else one.reads
    unknown = next((name for name in touched if name in setting.lacks), None)
    if unknown is not None:
        return f"no range is known, for {evidence.why(unknown, setting.lacks[unknown])}"
    other = next((q for name in touched if (q := plan.quantizers.get(name)) and q.dtype is not asked.dtype), None)
    return None if other is None else f"a layer reads its tensor '{other.tensor}' in {other.dtype.upper()}"


def _with_attention(
    plan: Plan,
    corrections: Corrections,
    whole: Sequence[Attention],
    setting: Setting,
    measure: _PairsTrial,
    allowed: float,
) -> tuple[Plan, list[Decision]]:
    """As many quantized attentions as accuracy allows, quietest first, and a decision for each of their products."""
    asked, graph = setting.attention, setting.model.graph
    if asked is None or not whole:
        return plan, []
    method, spelled = calibrators.parse(setting.calibrator), asked.dtype.upper()
    if isinstance(method, mse.MSE):
        method = replace(method, format=rounding.format_of(asked.dtype))
    layers = {decision.node for decision in plan if decision.precision is asked.dtype}
    wanted = {one: attention.reads(graph, one, layers, result=asked.result) for one in whole}
    nodes = {node.name: node for node in graph.nodes}
    made: dict[str, Quantizer] = {}
    tensors = {one: [nodes[name].inputs[i].name for name, read in wanted[one].items() for i in read] for one in whole}
    for name in dict.fromkeys(name for names in tensors.values() for name in names if name not in plan.quantizers):
        histogram = setting.histograms[name]
        made[name] = Quantizer(name, asked.dtype, method.range(histogram), str(method), histogram.amax)
    known = {**plan.quantizers, **made}
    order = sorted(whole, key=lambda one: sum(_noise(known[t], setting.histograms[t]) for t in tensors[one]))

    def first(count: int) -> Plan:
        used = dict.fromkeys(name for one in order[:count] for name in tensors[one])
        reads = dict(plan.reads)
        for one in order[:count]:
            for name, read in wanted[one].items():
                reads[name] = tuple(sorted({*reads.get(name, ()), *read}))
        return plan.with_(quantizers={**plan.quantizers, **{name: known[name] for name in used}}, reads=reads)

    count = largest(len(order), lambda count: measure(first(count), corrections) >= allowed)
    told = [
        replace(
            plan.decisions[name],
            precision=asked.dtype,
            rule=f"{ATTENTION}-{asked.dtype}",
            why=f"its attention is fused in {spelled}",
        )
        if i < count
        else replace(plan.decisions[name], why=f"in {spelled}, the outputs fall below {allowed:.1f} dB")
        for i, one in enumerate(order)
        for name in (one.scores, one.context)
    ]
    return first(count), told


def _with_shared(
    plan: Plan, corrections: Corrections, setting: Setting, measure: _PairsTrial, allowed: float
) -> tuple[Plan, Corrections]:
    """As many groups with one range as accuracy allows, those with the most similar ranges first."""
    found = shared_scales.scale_groups(setting.model.graph, _int8(plan))
    found.sort(key=lambda names: _spread([plan.quantizers[name].amax for name in names]))

    def first(count: int) -> tuple[Plan, Corrections]:
        shared = _shared(plan, found[:count])
        changed = {
            name: members
            for name, members in setting.groups.items()
            if name in shared.quantizers and shared.quantizers[name].amax != plan.quantizers[name].amax
        }
        return shared, {**corrections, **_corrected(shared, changed, corrections, setting)}

    return first(largest(len(found), lambda count: measure(*first(count)) >= allowed))


def _int8(plan: Plan) -> list[str]:
    """Names of the tensors with an INT8 pair; FP8 has none on shortcuts, and no two formats share a scale."""
    return [name for name, quantizer in plan.quantizers.items() if quantizer.dtype is DType.INT8]


def _spread(amax: Sequence[float]) -> float:
    return max(amax) / min(amax)


def _shared(plan: Plan, found: Sequence[Sequence[str]]) -> Plan:
    """The plan in which each group has the largest range of its members."""
    quantizers = dict(plan.quantizers)
    for names in found:
        widest = max((quantizers[name] for name in names), key=lambda one: one.amax)
        for name in names:
            if quantizers[name].amax != widest.amax:
                quantizers[name] = replace(quantizers[name], amax=widest.amax, calibrator=f"shared:{widest.tensor}")
    return plan.with_(quantizers=quantizers)


def _corrected(
    plan: Plan, changed: Mapping[str, Sequence[Candidate]], corrections: Corrections, setting: Setting
) -> Corrections:
    """Bias corrections of the layers whose activation got another range."""
    layers = [c for members in changed.values() for c in members if c.node in corrections]
    if not layers:
        return {}
    ranges = {name: [plan.quantizers[name].amax] for name in changed}
    shifts = Shifts(
        setting.model, changed, ranges, setting.feeds, per_channel=setting.per_channel, scales=setting.scales
    )
    return {c.node: shifts.of(c, plan.quantizers[c.activation].amax) for c in layers}


def _explained(plan: Plan, decisions: Sequence[Decision], order: Sequence[str]) -> Plan:
    """The plan with more decisions, in graph order."""
    if not decisions:
        return plan
    return plan.deciding(*decisions).ordered(order)


def largest(count: int, good: Callable[[int], bool]) -> int:
    """The largest number up to `count` that is good, 0 being so; all below it are taken to be good as well."""
    if count == 0 or good(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


class _PairsTrial:
    """SQNR in dB of the worst view of a plan's graph over a few samples."""

    def __init__(self, setting: Setting) -> None:
        self._model, self._feeds, self._scales = setting.model, setting.choosing, setting.scales
        self._tensors = tensors_of(judged(setting.views))
        self._fitted = fitted_weights([c for members in setting.groups.values() for c in members])
        session = OpenModel(self._model, outputs=self._tensors)
        self._expected = [Expected.of(judged(setting.views), session.run(feed), feed) for feed in self._feeds]
        self._shares = shares_of(self._expected)

    def __call__(self, plan: Plan, corrections: Corrections) -> float:
        lowered = models.copy(self._model)
        Pipeline(
            InsertQDQ(plan, corrections, self._scales, self._fitted, shift=True), InsertQDQPairs(plan), given=GIVEN
        )(lowered.graph)
        session = OpenModel(lowered, outputs=self._tensors)
        total = Tally(self._shares)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            total.add(expected, session.run(feed))
        return sqnr.decibel(total.worst())
