"""What is planned instead, where an engine did not keep a plan: one weight scale, or else high precision.

An engine that computes a layer in float although it stands between Q/DQ pairs pays for both: the values are rounded,
and nothing is faster. Scales per output channel are the usual reason, where the compiler moves something in front of
the product and cannot move the scales along; the layer is tried with one scale for its weight. A layer that has one
already goes back to high precision, where it is as fast and not rounded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.plan import Decision, Plan
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.target import DType

RULE = "unkept"


def changeable(chosen: Chosen, layers: Candidates) -> frozenset[str]:
    """Names of the quantized layers whose plan is ours to change: what came quantized keeps its numbers."""
    plan, ours = chosen.plan, (one for one in layers.found if one.scales is None and one.amax is None)
    types = (DType.INT8, DType.FP8)
    return frozenset(c.node for c in ours if plan.precision(c.node) in types and c.node not in plan.reads)


def changed(chosen: Chosen, graph: gs.Graph, nodes: Collection[str], high: DType) -> Chosen:
    """The plan with other decisions for the layers that an engine computes in float.

    Args:
        chosen: the plan that was not kept.
        graph: the float graph that it speaks of.
        nodes: names of these layers, all of them `changeable`.
        high: the target's high-precision type.
    """
    plan = chosen.plan
    single = {name for name in nodes if plan.precision(name) is DType.INT8 and plan.axes.get(name) is not None}
    after = plan.deciding(*(_told(plan.decisions[name], name in single, high) for name in nodes))
    floats = {name for name in nodes if name not in single}
    axes = {name: None if name in single else axis for name, axis in plan.axes.items() if name not in floats}
    given = {node.inputs[0].name for node in graph.nodes if node.name in floats}
    idle = given - _read(after, graph)
    quantizers = {tensor: quantizer for tensor, quantizer in plan.quantizers.items() if tensor not in idle}
    return replace(
        chosen,
        plan=after.with_(axes=axes, quantizers=quantizers),
        corrections={name: shift for name, shift in chosen.corrections.items() if name not in nodes},
        scales={name: scale for name, scale in chosen.scales.items() if name not in nodes},
    )


def _told(old: Decision, single: bool, high: DType) -> Decision:
    """The new decision about a layer, with its reason in front of the old one."""
    if single:
        return replace(old, why=f"one weight scale: with one per channel the engine computes it in float; {old.why}")
    return replace(old, precision=high, rule=RULE, why=f"the engine computes it in float between pairs; {old.why}")


def _read(plan: Plan, graph: gs.Graph) -> set[str]:
    """Names of the tensors that the plan's nodes read through a pair."""
    found: set[str] = set()
    for node in graph.nodes:
        precision = plan.precision(node.name)
        places = plan.reads.get(node.name, (0,) if precision is not None and precision.quantized else ())
        found.update(node.inputs[place].name for place in places)
    return found
