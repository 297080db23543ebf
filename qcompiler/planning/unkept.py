"""What is planned instead, where an engine did not keep a plan: one weight scale, or else high precision.

An engine that computes a layer in float although it stands between Q/DQ pairs pays for both: the values are rounded,
and nothing is faster. Scales per output channel are the usual reason, where the compiler moves something in front of
the product and cannot move the scales along; the layer is tried with one scale for its weight. A layer that has one
already goes back to high precision, where it is as fast and not rounded.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_graphsurgeon as gs

from qcompiler.planning.changes import in_high_precision, with_one_scale
from qcompiler.planning.chosen import Chosen
from qcompiler.target import DType

RULE = "unkept"


def changed(chosen: Chosen, graph: gs.Graph, nodes: Collection[str], high: DType) -> Chosen:
    """The plan with other decisions for the layers that an engine computes in float.

    Args:
        chosen: the plan that was not kept.
        graph: the float graph that it speaks of.
        nodes: names of these layers, all of them `changes.changeable`.
        high: the target's high-precision type.
    """
    plan = chosen.plan
    single = {name for name in nodes if plan.precision(name) is DType.INT8 and plan.axes.get(name) is not None}
    after = with_one_scale(chosen, single, "one weight scale: with one per channel the engine computes it in float")
    floats = [name for name in nodes if name not in single]
    return in_high_precision(
        after, graph, floats, high, RULE, lambda old: f"the engine computes it in float between pairs; {old.why}"
    )
