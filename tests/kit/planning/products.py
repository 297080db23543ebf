"""Four products in a row with a plan for them, two of which share an activation."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.search.safety_net import SafetyNet
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
