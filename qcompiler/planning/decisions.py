"""Texts and figures of decisions: why a node has the precision it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import multiplies, uncounted
from qcompiler.numerics.sqnr import decibel
from qcompiler.plan import Candidate, Decision, Plan, Refusal
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.search.safety_net import HIGH, SafetyNet
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, Target


def close(plan: Plan, found: Sequence[Candidate], released: Mapping[str, str]) -> Plan:
    """The plan completed for what came quantized.

    Layers that stay float keep their weights stored as they came, and decisions tell what became of their pairs.

    Args:
        plan: as chosen.
        found: the candidates.
        released: why a pair was dropped, by the name of the float tensor (see `legalize.release_quantizers`).
    """
    told, axes = [], dict(plan.axes)
    for one in found:
        decision = plan.decisions.get(one.node)
        if decision is None:
            continue
        notes = []
        if one.scales is not None:
            notes.append("its weight keeps the integers and scales it came with")
            if not decision.precision.quantized:
                axes[one.node] = one.axis
        if one.activation in released:
            notes.append(f"the pair its activation came with was dropped because {released[one.activation]}")
        elif one.amax is not None and decision.precision.quantized:
            notes.append("its activation has the scale of the pair that it came with")
        elif one.known is not None and decision.precision.quantized:
            notes.append("the range of its activation was given")
        if notes:
            told.append(dataclasses.replace(decision, why="; ".join((decision.why, *notes))))
    return plan.deciding(*told).with_(axes=axes)


def plan_of(
    graph: gs.Graph,
    layers: Candidates,
    net: SafetyNet,
    macs: Mapping[str, int],
    target: Target,
    histograms: Mapping[str, Histogram],
    where: str,
) -> Plan:
    """All decisions in graph order."""
    high, came = target.high_precision, candidates.existing(graph)
    decisions = [candidates.decision(r, _unquantized(r, came, high), macs.get(r.node, 0)) for r in layers.refused]
    for activation, members in layers.by_activation.items():
        figures = _figures(activation, net, histograms[activation], high)
        decisions += [_decide(c, activation, net, macs.get(c.node, 0), high, figures, where) for c in members]
    return Plan.of(decisions).ordered(node.name for node in graph.nodes)


def accounted(plan: Plan, graph: gs.Graph, macs: Mapping[str, int], high: DType) -> Plan:
    """The plan with the work of every node that multiplies, so that shares are of the whole: see `ir.macs`.

    Args:
        plan: nodes of which it does not speak join it in float; figures that it has stay.
        graph: the graph of the plan.
        macs: by node; what is not in it could not be counted.
        high: the target's high-precision type.
    """
    unknown, outer = frozenset(uncounted(graph, macs)), {node.name for node in graph.nodes}
    nodes = list(graphs.walk(graph))
    told = []
    for node in nodes:
        known = plan.decisions.get(node.name)
        if not multiplies(node):
            continue
        if known is None:
            own = high if node.name in outer else DType.FP32
            known = Decision(node.name, node.op, own, "float", f"nothing was asked that quantizes this {node.op}")
        count = known.macs or macs.get(node.name, 0)
        told.append(dataclasses.replace(known, macs=count, counted=bool(count) or node.name not in unknown))
    return plan.deciding(*told).ordered(node.name for node in nodes)


def _unquantized(refusal: Refusal, came: Plan, high: DType) -> DType:
    """What a refused node computes in; the typing pass has the last word on the float types."""
    own = came.precision(refusal.node)
    if own is not None and (refusal.rule == "quantized-already" or (refusal.rule == "weight-only" and own.weight_only)):
        return own
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
    costs = net.costs.get(activation, {})
    prices = _prices(net, activation, high, where)
    if activation in net.restored and costs and costs[HIGH] <= min(costs.values()):
        why = f"no format is faster than {high} here{_compared(net, activation)}{prices}"
        return Decision(candidate.node, candidate.op, high, "cost", why, macs, figures)
    if activation in net.restored:
        reached = net.curve[-1]
        formats = " or ".join(sorted({one.upper() for one in net.formats.values()}, reverse=True))
        count = len(net.restored)
        why = (
            f"{_effect(net, activation)}; with {count} such group{'s' * (count != 1)} in {high} the model reaches "
            f"{reached.sqnr_db:.1f} dB with {reached.share:.0%} of MACs in {formats}"
        )
        why += _compared(net, activation) + prices
        return Decision(candidate.node, candidate.op, high, "sensitive", why, macs, figures)
    effect = f", {_effect(net, activation)}" if activation in net.noise else ""
    why = f"constant weight, activation '{activation}' clipped at {net.amax[activation]:.4g}{effect}"
    why += _compared(net, activation) + prices
    return Decision(candidate.node, candidate.op, net.formats[activation], "linear", why, macs, figures)


def _effect(net: SafetyNet, activation: str) -> str:
    """What quantizing a group does to the outputs, and how that is known."""
    left = f"{decibel(net.noise[activation]):.1f} dB at the outputs"
    return f"its own noise leaves {left}, as joint runs tell" if activation in net.joint else f"alone it leaves {left}"


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
        figures["joint_sqnr_db" if activation in net.joint else "alone_sqnr_db"] = round(
            decibel(net.noise[activation]), 3
        )
    if activation in net.costs:
        figures |= {f"{dtype}_db": round(decibel(noise), 3) for dtype, noise in net.alone.get(activation, {}).items()}
        figures |= {f"{_type(name, high)}_us": round(time * 1e6, 3) for name, time in net.costs[activation].items()}
    return figures
