"""The plan of int8-dynamic: what gets a scale for each row, and why the rest does not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.compiler.ask import planning
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.plan import Plan
from qcompiler.planning import dynamic
from qcompiler.planning.placement.candidates import find_candidates
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import LlmInt8Table
from qcompiler.statistics.observe import Observations
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model, to_graph


def test_dynamic_splits_only_on_request() -> None:
    assert not dynamic.splits("int8-dynamic", LlmInt8Table())
    assert dynamic.splits("int8-dynamic", LlmInt8Table(threshold="auto"))
    assert not dynamic.splits("int8", LlmInt8Table(threshold="auto"))
    assert DType.INT8 not in Recipe(precision="int8-dynamic").formats()


RNG = np.random.default_rng(0)


def planned(target: str = "onnxruntime", *, kept: tuple[Feeds, ...] = (), per_channel: bool = True) -> Plan:
    """x → P → y, with a convolution beside it and a product of two activations."""
    nodes = (("MatMul", "x w", "p"), ("MatMul", "p w", "y"), ("Conv", "i k", "z"))
    weights = {"w": RNG.standard_normal((64, 64)), "k": RNG.standard_normal((32, 16, 3, 3))}
    graph = to_graph(
        model(
            *nodes,
            inputs={"x": ("n", 64), "i": (1, 16, 8, 8)},
            outputs=("y", "z"),
            weights={name: value.astype(np.float32) for name, value in weights.items()},
            opset=21,
        )
    )
    layers = find_candidates(graph, parse_target(target), ("^Y$",))
    options = planning(
        Recipe(precision="int8-dynamic", target=target, weight_granularity="channel" if per_channel else "tensor")
    )
    loaded = models.Model(graph, {}, None, 21)
    return dynamic.make_plan(loaded, layers, Observations(kept=kept), options, parse_target(target)).plan


def test_products_with_a_matrix_get_a_scale_for_each_row() -> None:
    plan = planned()
    assert {one.node: (one.rule, one.precision) for one in plan} == {
        "P": ("dynamic", DType.INT8),
        "Y": ("kept", DType.FP32),
        "Z": ("no-rows", DType.FP32),
    }
    assert plan.axes == {"P": 1}
    assert not plan.quantizers
    assert planned(per_channel=False).axes == {"P": None}


def test_without_data_a_row_is_what_is_counted() -> None:
    assert planned().decisions["P"].macs == 64 * 64
    feed = {"x": np.ones((5, 64), np.float32), "i": np.ones((1, 16, 8, 8), np.float32)}
    assert planned(kept=(feed,)).decisions["P"].macs == 5 * 64 * 64


@pytest.mark.parametrize(("target", "rule"), [("onnxruntime", "dynamic"), ("tensorrt-rtx", "gemv")])
def test_a_product_of_one_row_gains_on_a_cpu_alone(target: str, rule: str) -> None:
    feed = {"x": np.ones((1, 64), np.float32), "i": np.ones((1, 16, 8, 8), np.float32)}
    assert planned(target, kept=(feed,)).decisions["P"].rule == rule
