"""What is planned where an engine did not keep a plan: one weight scale, or high precision."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.unkept import RULE, changed
from qcompiler.target import DType
from tests.kit.rewrite import model, to_graph

W = np.ones((32, 32), np.float32)
LAYERS = {"A": ("x", 1), "B": ("x", None), "C": ("b", None), "Y": ("c", 1)}


def chosen(precision: DType = DType.INT8) -> Chosen:
    """Four products; A and B read one tensor, and B and C have one weight scale already."""
    plan = Plan.of(Decision(name, "MatMul", precision, "linear", "why", 8) for name in LAYERS)
    plan = plan.with_(
        axes={name: axis for name, (_, axis) in LAYERS.items()},
        quantizers={name: Quantizer(name, precision, 1.0, "minmax", 1.0) for name in ("x", "b", "c")},
    )
    own = dict.fromkeys(LAYERS, np.ones(32, np.float32))
    return Chosen(plan, SafetyNet(), corrections=own, scales=own)


def graph() -> gs.Graph:
    nodes = [("MatMul", "x w", "a"), ("MatMul", "x w", "b"), ("MatMul", "b w", "c"), ("MatMul", "c w", "y")]
    return to_graph(model(*nodes, inputs={"x": (4, 32)}, outputs=["a", "y"], weights={"w": W}))


def test_a_scale_per_channel_becomes_one_and_one_becomes_high_precision() -> None:
    before = chosen()
    after = changed(before, graph(), ("A", "B", "C"), DType.FP16)
    plan = after.plan
    assert {one.node: one.precision for one in plan} == {"A": "int8", "B": "fp16", "C": "fp16", "Y": "int8"}
    assert plan.axes == {"A": None, "Y": 1}
    assert plan.decisions["A"].why.startswith("one weight scale: ")
    assert plan.decisions["A"].rule == "linear"
    assert {plan.decisions[name].rule for name in ("B", "C")} == {RULE}
    assert all(one.why.endswith("why") for one in plan)
    assert list(plan.quantizers) == ["x", "c"]  # A still reads x; nobody reads b as integers any more
    assert list(after.scales) == list(after.corrections) == ["Y"]  # those of others fit other integers
    assert before.plan == chosen().plan


def test_fp8_goes_to_high_precision_at_once() -> None:
    assert changed(chosen(DType.FP8), graph(), ("A",), DType.BF16).plan.precision("A") is DType.BF16
