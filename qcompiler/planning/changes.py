"""Other decisions for single layers of a plan that stands: one weight scale, or high precision."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.plan import Decision, Plan
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.target import DType


def changeable(chosen: Chosen, layers: Candidates) -> frozenset[str]:
    """Names of the quantized layers whose plan is ours to change: what came quantized keeps its numbers."""
    plan, ours = chosen.plan, (one for one in layers.found if one.scales is None and one.amax is None)
    types = (DType.INT8, DType.FP8)
    return frozenset(c.node for c in ours if plan.precision(c.node) in types and c.node not in plan.reads)


def with_one_scale(chosen: Chosen, nodes: Collection[str], why: str) -> Chosen:
    """The plan with a single scale for the weight of each of these layers.

    Args:
        chosen: the plan that stands.
        nodes: names of quantized layers.
        why: put in front of the reason that they have.
    """
    plan = chosen.plan
    told = (replace(plan.decisions[name], why=f"{why}; {plan.decisions[name].why}") for name in nodes)
    axes = {name: None if name in nodes else axis for name, axis in plan.axes.items()}
    return _without_fits(replace(chosen, plan=plan.deciding(*told).with_(axes=axes)), nodes)


def in_high_precision(
    chosen: Chosen, graph: gs.Graph, nodes: Collection[str], high: DType, rule: str, why: Callable[[Decision], str]
) -> Chosen:
    """The plan with these layers in high precision, and without the pairs that nobody reads any more.

    Args:
        chosen: the plan that stands.
        graph: the float graph that it speaks of.
        nodes: names of quantized layers.
        high: the target's high-precision type.
        rule: id of what decided.
        why: the new reason, from the old decision.
    """
    plan = chosen.plan
    after = plan.deciding(
        *(replace(old, precision=high, rule=rule, why=why(old)) for old in (plan.decisions[name] for name in nodes))
    )
    axes = {name: axis for name, axis in plan.axes.items() if name not in nodes}
    given = {node.inputs[0].name for node in graph.nodes if node.name in nodes}
    idle = given - _read(after, graph)
    quantizers = {tensor: quantizer for tensor, quantizer in plan.quantizers.items() if tensor not in idle}
    return _without_fits(replace(chosen, plan=after.with_(axes=axes, quantizers=quantizers)), nodes)


def _without_fits(chosen: Chosen, nodes: Collection[str]) -> Chosen:
    """Without what was fitted to the integers that these layers had."""
    return replace(
        chosen,
        corrections={name: shift for name, shift in chosen.corrections.items() if name not in nodes},
        scales={name: scale for name, scale in chosen.scales.items() if name not in nodes},
        fitted={name: weight for name, weight in chosen.fitted.items() if name not in nodes},
    )


def _read(plan: Plan, graph: gs.Graph) -> set[str]:
    """Names of the tensors that the plan's nodes read through a pair."""
    found: set[str] = set()
    for node in graph.nodes:
        precision = plan.precision(node.name)
        places = plan.reads.get(node.name, (0,) if precision is not None and precision.quantized else ())
        found.update(node.inputs[place].name for place in places)
    return found
