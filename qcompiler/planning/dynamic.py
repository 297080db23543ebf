"""The plan of precision `int8-dynamic`: every product of rows with a matrix, with a scale per row found at run time.

There are no ranges to choose, so nothing is measured and nothing searched: what the structural rules let through is
quantized. It is the reference point for static scales, with which it shares weights and integer arithmetic.
"""

from __future__ import annotations

from typing import Final

import onnx_graphsurgeon as gs

from qcompiler.ir import model as models
from qcompiler.ir.macs import Shapes, tensors_for_shapes
from qcompiler.passes.quantize.dynamic_quant import RULE, refusal
from qcompiler.plan import Candidate, Decision, Plan, Refusal
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.profile import shapes_of_many
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.recipe.tables import LlmInt8Table
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.runtime.work import count_macs, count_macs_without_data
from qcompiler.statistics.observe import Observations
from qcompiler.target import DType, Target

PRECISION: Final = "int8-dynamic"
WHY = "constant matrix, a scale for each row of the activation at run time"


def make_plan(
    model: models.Model, layers: Candidates, observed: Observations, options: Planning, target: Target
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        layers: candidates by the structural rules; refusals may be of other stages: the outlier products of LLM.int8().
        observed: only the kept feeds are used, for shapes; without them multiply-accumulates are those of one row.
        options: whether weights get a scale per output channel.
        target: TensorRT computes matrix-vector products in float; on a CPU they gain most.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    shapes: Shapes = {}
    served: Shapes = {}
    if observed.kept:
        shapes = concrete_shapes(model.graph, observed.kept[0], tensors_for_shapes(model.graph))
        served = shapes_of_many(model.graph, observed, options.shapes, list(shapes))
    macs = count_macs(model.graph, observed.kept[0], shapes) if shapes else count_macs_without_data(model.graph)
    left = {one.node: one for one in layers.refused}
    axes: dict[str, int | None] = {}
    for one in layers.found:
        stays = _stays(one, nodes[one.node], target, served)
        if stays is not None:
            left[one.node] = stays
            continue
        axes[one.node] = one.axis if options.per_channel else None
    decisions = []
    for name, node in nodes.items():
        if name in axes:
            decisions.append(Decision(name, node.op, DType.INT8, RULE, WHY, macs.get(name, 0)))
        elif name in left:
            decisions.append(candidates.decision(left[name], target.high_precision, macs.get(name, 0)))
    inner = [one for name, one in left.items() if name not in nodes]  # inside branches
    decisions += [candidates.decision(one, DType.FP32, macs.get(one.node, 0)) for one in inner]
    return Chosen(Plan.of(decisions).with_(axes=axes), SafetyNet())


def splits(precision: str, table: LlmInt8Table) -> bool:
    """Whether outlier channels are split off before, which takes data: LLM.int8() as it was published."""
    return precision == PRECISION and table.threshold != "off"


def _stays(one: Candidate, node: gs.Node, target: Target, shapes: Shapes) -> Refusal | None:
    """Why a candidate cannot have a scale per row or should not; None where it can."""
    if one.scales is not None or one.amax is not None:
        return Refusal(one.node, one.op, "quantized-already", "came quantized; its own scales are kept")
    why = refusal(node)
    if why:
        return Refusal(one.node, one.op, "no-rows", why)
    small = candidates.too_small(one, node, shapes)
    return None if small is None or (small.rule == "gemv" and target.engine == "onnxruntime") else small
