"""The stage that moves activations onto the middle of their grid; how: tests/passes/quantize/test_shifts.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.compiler.ladder import SHIFT, Seen
from qcompiler.compiler.stages.decide import decide
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.weight_only import shift
from qcompiler.ir import graph as graphs
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from tests.kit.rewrite import model
from tests.kit.subjects import Standing, of_net

HIGH = SafetyTable(target_sqnr_db=60.0, min_share=1.0)  # nothing reaches it, and nothing goes back
OFF = SmoothQuantTable(alpha="off")
DEPTH, TOKENS = 64, 32


def net(act: str = "Gelu") -> onnx.ModelProto:
    """Three products with biases and two activations between them, of which one is `act`."""
    rng = np.random.default_rng(1)
    weights: dict[str, Any] = {f"w{i}": rng.standard_normal((DEPTH, DEPTH)).astype(np.float32) / 8 for i in range(3)}
    weights |= {f"b{i}": rng.standard_normal(DEPTH).astype(np.float32) for i in range(3)}
    body = [
        ("MatMul", "x w0", "m0"), ("Add", "m0 b0", "a0"), (act, "a0", "s0"),
        ("MatMul", "s0 w1", "m1"), ("Add", "m1 b1", "a1"), (act, "a1", "s1"),
        ("MatMul", "s1 w2", "m2"), ("Add", "m2 b2", "y"),
    ]  # fmt: skip
    return model(*body, inputs={"x": ("batch", TOKENS, DEPTH)}, weights=weights, opset=20)


def feeds(count: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [{"x": (2 * rng.standard_normal((1, TOKENS, DEPTH))).astype(np.float32)} for _ in range(count)]


def missed(folder: Path, act: str = "Gelu", **recipe: Any) -> Standing:
    return of_net("shift", net(act), feeds(), folder, **{"safety": HIGH, "smooth_quant": OFF, **recipe})


@pytest.mark.parametrize("act", ["Gelu", "Softplus"])
def test_one_sided_activations_are_shifted_where_the_goal_is_missed(tmp_path: Path, act: str) -> None:
    standing = missed(tmp_path, act)
    before, asked = standing.subject, standing.asked
    after = standing.run(shift, before, asked.target, asked.planning)
    told = standing.run.records["rungs"]["shift"]
    assert told["tried"]
    assert told["kept"]
    assert told["gain_db"] > 1
    assert {one.activation for one in after.layers.found if one.shifted} == {"s0", "s1"}
    assert after.model is before.model
    decided = standing.run(decide, after, asked.target, asked.planning)
    spans = {name: one.span for name, one in decided.chosen.plan.quantizers.items()}
    assert spans["x"] is None
    assert spans["s0"] is not None
    lowered = standing.run(lower, after, decided, asked.target, asked.lower)
    zeros = [graphs.constant_value(node.inputs[2]) for node in lowered.model.graph.nodes if node.op == "QuantizeLinear"]
    assert len(zeros) == 3
    assert all(zero is not None and zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_the_written_file_is_closer_to_float_by_it(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "float.onnx")
    reached = []
    for safety in (HIGH, SafetyTable(target_sqnr_db=5.0)):  # the second is met before
        recipe = Recipe(safety=safety, smooth_quant=OFF, calibrator="minmax")
        out = tmp_path / "q.onnx"
        result = compile.quantize(tmp_path / "float.onnx", data=feeds(), recipe=recipe, output=out)
        rungs = {row["name"]: row for row in result.manifest["rungs"]}
        assert rungs["shift"]["kept"] is (safety is HIGH)
        assert not rungs["fit_weights"]["kept"] or rungs["fit_weights"]["gain_db"] < 1.5
        assert result.verification is not None
        reached.append(result.verification.outputs[0].sqnr_db or 0.0)
    assert reached[0] > reached[1] + 2


@pytest.mark.parametrize(
    ("act", "recipe", "why"),
    [
        ("Tanh", {}, "no activation lies to one side of zero"),
        ("Relu", {}, "no activation lies to one side of zero"),
        ("Gelu", {"target": "onnxruntime"}, "the target has grids with a zero point"),
        ("Gelu", {"precision": "fp8"}, "FP8 errs by the size of each value"),
    ],
)
def test_what_cannot_be_shifted_says_why(tmp_path: Path, act: str, recipe: dict[str, Any], why: str) -> None:
    standing = missed(tmp_path, act, **recipe)
    help = SHIFT.helps(Seen(standing.subject, standing.asked.planning, standing.asked.target))
    assert not help.can
    assert why in help.why
    assert standing.run(shift, standing.subject, standing.asked.target, standing.asked.planning) is standing.subject
