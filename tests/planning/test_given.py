"""The plan of ranges that were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.ask import planning
from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import model as models
from qcompiler.plan import Plan, Quantizer
from qcompiler.planning import given
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.recipe import Recipe
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(0)
SPANS = {"x": Span(-2.0, 2.0, exact=False), "r": Span(-3.0, 3.0, exact=False)}


def net() -> models.Model:
    """x → C1 → Relu → C2 → Relu → C3 → y."""
    weights = {
        "w1": RNG.standard_normal((32, 16, 3, 3)),
        "w2": RNG.standard_normal((32, 32, 3, 3)),
        "w3": RNG.standard_normal((32, 32, 3, 3)),
    }
    pads = {"pads": [1, 1, 1, 1]}
    proto = model(
        ("Conv", "x w1", "c1", pads),
        ("Relu", "c1", "r"),
        ("Conv", "r w2", "c2", pads),
        ("Relu", "c2", "s"),
        ("Conv", "s w3", "y", pads),
        inputs={"x": ("n", 16, 8, 8)},
        weights={name: value.astype(np.float32) for name, value in weights.items()},
        opset=21,
    )
    return models.Model(to_graph(proto), {}, None, 21)


def planned(spans: dict[str, Span] = SPANS, target: str = "tensorrt-rtx:sm89", **recipe: Any) -> Plan:
    loaded, machine = net(), parse_target(target)
    layers = Scope(machine, ranges=spans).layers(loaded)
    options = planning(Recipe(target=target, **recipe))
    return given.make_plan(loaded, layers, spans, options, machine).plan


def test_what_has_a_range_is_quantized_and_what_has_none_says_so() -> None:
    plan = planned()
    assert [one.node for one in plan.quantized()] == ["C1", "C2"]
    assert plan.quantizers == {
        "x": Quantizer("x", DType.INT8, 2.0, "given", None),
        "r": Quantizer("r", DType.INT8, 3.0, "given", None),
    }
    assert plan.decisions["Y"].rule == "no-range"
    assert "no range is given for 's'" in plan.decisions["Y"].why
    assert plan.axes == {"C1": 0, "C2": 0}
    assert 0.5 < plan.share() < 0.7
    assert Plan.from_json(plan.to_json()) == plan


def test_fp8_and_single_scales_are_taken_as_asked() -> None:
    assert {one.dtype for one in planned(precision="fp8").quantizers.values()} == {DType.FP8}
    assert planned(weight_granularity="tensor").axes == {"C1": None, "C2": None}


def test_where_outputs_are_quantized_a_convolution_needs_the_range_of_what_it_writes() -> None:
    plan = planned(target="onnxruntime")
    assert [one.node for one in plan.quantized()] == ["C1"]
    assert plan.decisions["C2"].rule == "no-range"
    assert (plan.quantizers["r"].whole, plan.quantizers["r"].span) == (True, (0.0, 3.0))
    full = planned({**SPANS, "s": Span(0.0, 1.0)}, target="onnxruntime")
    assert [one.node for one in full.quantized()] == ["C1", "C2"]
    assert full.quantizers["s"].span == (0.0, 1.0)
    assert full.decisions["Y"].rule == "unfused"  # an output of the model is never rounded


def test_a_profile_says_what_is_too_small() -> None:
    assert planned(shapes={"x": ("1x16x8x8",) * 3}).decisions["C1"].macs == 32 * 16 * 9 * 64


@pytest.mark.parametrize("shared", [True, False])
def test_ranges_that_are_given_stand_over_measured_ones_but_for_shared_scales(shared: bool) -> None:
    calibrator = "shared:y" if shared else "mse"
    before = Plan(quantizers={"r": Quantizer("r", DType.INT8, 9.0, calibrator, 9.5, (0.0, 9.0), whole=True)})
    after = given.over(before, net().graph, SPANS).quantizers["r"]
    expected = (9.0, calibrator, (0.0, 9.0)) if shared else (3.0, "given", (0.0, 3.0))
    assert (after.amax, after.calibrator, after.span) == expected
    assert (after.observed, after.whole) == (9.5, True)
