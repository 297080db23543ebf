"""The plan of ranges that the user gave, where there are no data: what has a range is quantized, nothing is searched.

With data, the same ranges are pinned in the ordinary plan (`search.offers`), and `over` puts them in the place of what
was measured for tensors between layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import model as models
from qcompiler.numerics import rounding
from qcompiler.plan import Decision, Plan, Quantizer, Refusal
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.placement import candidates, known
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.search import outputs
from qcompiler.planning.search.offers import given_scales
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.runtime.shapes import assumed_shapes
from qcompiler.runtime.work import count_macs_without_data
from qcompiler.target import DType, Target

GIVEN = "given"  # in the place of a calibrator
_SHARED = "shared:"


def make_plan(
    model: models.Model, layers: Candidates, spans: Mapping[str, Span], options: Planning, target: Target
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        layers: candidates by the structural rules, with the ranges that are known of their activations.
        spans: what is known of all tensors.
        options: the one format that layers get, whether weights get a scale per channel, shapes of the profile.
        target: high-precision type; whether outputs are quantized, too.
    """
    graph, dtype, here = model.graph, options.formats[0], known.spread(model.graph, spans)
    usual = {name: sizes[1] for name, sizes in (options.shapes or {}).items()}
    macs = count_macs_without_data(graph, usual)
    shapes = assumed_shapes(graph, usual) if usual else {}
    left = layers.refusing(candidates.small(graph, layers.found, shapes, target))
    left = left.refusing(lacking(graph, left, spans, target))
    per_channel = options.per_channel and (dtype is DType.INT8 or target.fp8_per_channel)
    decisions = [candidates.decision(one, target.high_precision, macs.get(one.node, 0)) for one in left.refused]
    quantizers: dict[str, Quantizer] = {}
    for one in left.found:
        amax = one.amax if one.amax is not None else one.known
        if amax is None:
            continue
        why = f"constant weight, activation '{one.activation}' clipped at {amax:.4g}, a range that was given"
        quantizers[one.activation] = Quantizer(one.activation, dtype, amax, GIVEN, None)
        decisions.append(Decision(one.node, one.op, dtype, "linear", why, macs.get(one.node, 0), {"amax": amax}))
    plan = Plan.of(decisions).ordered(node.name for node in graph.nodes)
    axes = {one.node: one.axis if per_channel else None for one in left.found}
    plan = plan.with_(quantizers=quantizers, axes=axes)
    if target.quantize_outputs and dtype is DType.INT8:
        plan = _with_outputs(plan, graph, left, here)
    return Chosen(plan, SafetyNet(), scales=given_scales(left.found, per_channel=options.per_channel))


def lacking(graph: gs.Graph, layers: Candidates, spans: Mapping[str, Span], target: Target) -> tuple[Refusal, ...]:
    """The layers that stay in high precision where nothing but what is known gives a range.

    Where outputs are quantized, too, a convolution needs the range of what it writes: without it, it runs unfused.
    """
    reads = [known.refusal(one, one.activation) for one in layers.found if one.known is None and one.amax is None]
    if not target.quantize_outputs:
        return tuple(reads)
    here, ends = known.spread(graph, spans), {tensor.name for tensor in graph.outputs}
    done = {one.node for one in reads}
    written = [(one, name) for one, name in outputs.written(graph, layers.found) if one.node not in done]
    return (*reads, *(known.refusal(one, name) for one, name in written if name not in here and name not in ends))


def _with_outputs(plan: Plan, graph: gs.Graph, layers: Candidates, here: Mapping[str, Span]) -> Plan:
    """Quantizers of what convolutions write, on unsigned grids where nothing is below 0; others run unfused."""
    quantizers = {
        name: replace(one, span=known.grid(here[name]) if name in here else None)
        for name, one in plan.quantizers.items()
    }
    ends = {tensor.name for tensor in graph.outputs}
    for _, name in outputs.written(graph, layers.found):
        if name in here and name not in ends:
            found = quantizers.get(name) or Quantizer(name, DType.INT8, here[name].amax, GIVEN, None)
            quantizers[name] = replace(found, span=known.grid(here[name]), whole=True)
    return outputs.without_unfused(plan.with_(quantizers=quantizers), graph)


def over(plan: Plan, graph: gs.Graph, spans: Mapping[str, Span]) -> Plan:
    """The plan with the ranges that were given in the place of measured ones; scales that are shared stay shared."""
    here = known.spread(graph, spans)
    changed = {
        name: _over(one, here[name])
        for name, one in plan.quantizers.items()
        if name in here and one.calibrator != GIVEN and not one.calibrator.startswith(_SHARED)
    }
    return plan.with_(quantizers={**plan.quantizers, **changed})


def _over(one: Quantizer, span: Span) -> Quantizer:
    grid = None if one.span is None else rounding.span(span.amax, one.span)
    return dataclasses.replace(one, amax=span.amax, calibrator=GIVEN, span=grid)
