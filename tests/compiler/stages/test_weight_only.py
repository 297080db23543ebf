"""The stages that round weights and grids; how it is done: tests/weight_only, tests/passes/test_shifts.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.compiler.ladder import FIT_WEIGHTS, SHIFT, Seen
from qcompiler.compiler.stages.decide import decide
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.weight_only import fit_weights, shift, weight_only
from qcompiler.ir import graph as graphs
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable, WeightOnlyTable
from qcompiler.target import DType
from tests.kit.cases import prepared
from tests.kit.rewrite import model
from tests.kit.subjects import Standing, before, of_net


def test_every_product_waits_with_its_integers(tmp_path: Path) -> None:
    table = WeightOnlyTable(method="rtn", block_size=32)
    standing = before("weight_only", prepared(tmp_path, "transformer"), precision="int4-weight", weight_only=table)
    after = standing.run(weight_only, standing.subject, standing.asked.weight_only)
    assert after.stored is not None
    assert set(after.stored.weights) == {"Q", "K", "V", "P", "H0", "F"}
    assert after.model is standing.subject.model  # nothing is scaled for rtn
    assert standing.subject.stored is None


def test_without_data_the_user_is_told(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "precision": "int8-weight",
        "high_precision": "fp32",
        "weight_only": WeightOnlyTable(method="mse"),
    }
    standing = before("weight_only", prepared(tmp_path, "transformer"), data=False, **recipe)
    standing.run(weight_only, standing.subject, standing.asked.weight_only)
    assert "no --data" in standing.run.warnings[0]


def test_few_rows_are_told_with_layers_and_counts(tmp_path: Path) -> None:
    table = WeightOnlyTable(method="gptq", block_size=32)
    standing = before("weight_only", prepared(tmp_path, "transformer"), precision="int4-weight", weight_only=table)
    after = standing.run(weight_only, standing.subject, standing.asked.weight_only)
    assert after.stored is not None
    (text,) = standing.run.warnings
    assert "less than 8 for each input channel" in text
    fewest = min(after.stored.weights.values(), key=lambda one: one.rows / one.layer.depth)
    assert f"{fewest.rows} rows for {fewest.layer.depth} channels" in text


def test_other_precisions_have_nothing_to_do(tmp_path: Path) -> None:
    standing = before("weight_only", prepared(tmp_path, "transformer"))
    assert standing.run(weight_only, standing.subject, standing.asked.weight_only) is standing.subject


HIGH = SafetyTable(target_sqnr_db=60.0, min_share=1.0)  # nothing reaches it, and nothing goes back
FP16, FP32 = DType.FP16, DType.FP32
NEVER = SafetyTable(target_sqnr_db=120.0, min_share=1.0)
OFF = SmoothQuantTable(alpha="off")
DEPTH, TOKENS, DIRECTIONS, LARGE = 64, 32, 6, 40.0


def net() -> onnx.ModelProto:
    """Two products, some rows of whose weights are large, as smoothing leaves them: steps are wide for the others."""
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal((DEPTH, DEPTH)).astype(np.float32) for _ in range(2))
    first[:2] *= LARGE
    second[:2] *= LARGE
    shrunk = np.ones(DEPTH, np.float32)
    shrunk[:2] /= LARGE
    body = [("MatMul", "x w1", "a"), ("Tanh", "a", "t"), ("Mul", "t s", "m"), ("MatMul", "m w2", "y")]
    return model(*body, inputs={"x": ("batch", TOKENS, DEPTH)}, weights={"w1": first, "w2": second, "s": shrunk})


def feeds(count: int = 24) -> list[dict[str, Any]]:
    """Tokens that move in few directions."""
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((DIRECTIONS, DEPTH))
    mixed[:, :2] /= LARGE
    drawn = (rng.standard_normal((1, TOKENS, DIRECTIONS)) @ mixed for _ in range(count))
    return [{"x": one.astype(np.float32)} for one in drawn]


def missed(folder: Path, **recipe: Any) -> Standing:
    return of_net("fit_weights", net(), feeds(), folder, **{"safety": HIGH, "smooth_quant": OFF, **recipe})


def test_weights_are_fitted_where_the_goal_is_missed_and_that_helps(tmp_path: Path) -> None:
    standing = missed(tmp_path)
    before = standing.subject
    after = standing.run(fit_weights, before, standing.asked.target, standing.asked.planning)
    told = standing.run.records["rungs"]["fit_weights"]
    assert told["tried"]
    assert told["kept"]
    assert told["gain_db"] > 2
    assert before.standing is not None
    assert after.standing is not None
    assert after.standing.calm_db > before.standing.calm_db
    assert after.model is before.model  # the float weights stay
    assert all(one.fitted is not None for one in after.layers.found)
    decided = standing.run(decide, after, standing.asked.target, standing.asked.planning)
    assert set(decided.chosen.fitted) <= {one.node for one in after.layers.found}
    assert decided.chosen.net.curve[0].sqnr_db == pytest.approx(after.standing.sqnr_db, abs=0.3)


MET = SafetyTable(target_sqnr_db=5.0)


def test_it_is_done_above_the_goal_too_where_it_promises_enough_for_little(tmp_path: Path) -> None:
    standing = missed(tmp_path, safety=MET)
    before = standing.subject
    after = standing.run(fit_weights, before, standing.asked.target, standing.asked.planning)
    assert before.standing is not None
    assert before.standing.met
    assert all(one.fitted is not None for one in after.layers.found)
    assert standing.run.records["rungs"]["fit_weights"]["gain_db"] > 2


@pytest.mark.parametrize("reason", ["quick", "metric"])
def test_what_meets_the_goal_keeps_its_nearest_integers_where_time_is_short_or_a_metric_holds(
    tmp_path: Path, reason: str
) -> None:
    standing = missed(tmp_path, safety=MET, effort="quick" if reason == "quick" else "balanced")
    subject = standing.subject
    assert subject.standing is not None
    if reason == "metric":
        subject = subject.with_(standing=replace(subject.standing, accepted=True))
    assert standing.run(fit_weights, subject, standing.asked.target, standing.asked.planning) is subject
    assert "before it" in standing.run.records["rungs"]["fit_weights"]["why"]


def test_above_the_goal_it_may_cost_what_the_runs_cost_that_showed_the_data(tmp_path: Path) -> None:
    few = of_net("fit_weights", net(), feeds(5), tmp_path, safety=MET, smooth_quant=OFF)
    help = FIT_WEIGHTS.helps(Seen(few.subject, few.asked.planning, few.asked.target))
    assert not help.can
    assert "times the work of the runs that showed the data" in help.why


def test_layers_that_will_go_back_do_not_hide_what_it_does_for_the_others(tmp_path: Path) -> None:
    """A token that is 90 times as large as the others makes nearly all errors, and they are not those of weights."""
    random, names = np.random.default_rng(4), [f"w{at}" for at in range(19)]
    weights = {name: random.standard_normal((DEPTH, DEPTH)).astype(np.float32) for name in names}
    for weight in weights.values():
        weight[:2] *= LARGE
    shrunk, loud = np.ones(DEPTH, np.float32), np.ones((1, TOKENS, 1), np.float32)
    shrunk[:2] /= LARGE
    loud[0, 3] = 90.0
    body, at = [("Mul", "x loud", "h0"), ("MatMul", "h0 w0", "y0")], 0
    for at, name in enumerate(names[1:]):
        body += [("Tanh", f"y{at}", f"t{at}"), ("Mul", f"t{at} s", f"m{at}"), ("MatMul", f"m{at} {name}", f"y{at + 1}")]
    proto = model(
        *body,
        inputs={"x": ("batch", TOKENS, DEPTH)},
        outputs=(f"y{at + 1}",),
        weights={**weights, "s": shrunk, "loud": loud},
    )
    missed = of_net("fit_weights", proto, feeds(), tmp_path, smooth_quant=OFF, safety=SafetyTable(target_sqnr_db=60.0))
    seen = Seen(missed.subject, missed.asked.planning, missed.asked.target)
    assert set(seen.read) - set(seen.staying) == {"h0"}
    assert "the 18 activations that err least" in FIT_WEIGHTS.helps(seen).why
    floor = replace(missed.asked.planning, safety=SafetyTable(target_sqnr_db=60.0, min_share=1.0))
    assert set(Seen(missed.subject, floor, missed.asked.target).staying) == set(seen.read)
    assert set(
        Seen(missed.subject, replace(missed.asked.planning, everything=True), missed.asked.target).staying
    ) == set(seen.read)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"weight_granularity": "tensor"}, "only INT8 weights with a scale for each output channel are fitted"),
        ({"search_time": 1e-3}, "times the work that a search may cost"),
    ],
)
def test_what_cannot_be_fitted_says_why(tmp_path: Path, recipe: dict[str, Any], why: str) -> None:
    standing = missed(tmp_path, **recipe)
    help = FIT_WEIGHTS.helps(Seen(standing.subject, standing.asked.planning, standing.asked.target))
    assert not help.can
    assert why in help.why
    assert (
        standing.run(fit_weights, standing.subject, standing.asked.target, standing.asked.planning) is standing.subject
    )


def test_the_file_holds_the_fitted_integers(tmp_path: Path) -> None:
    standing = missed(tmp_path)
    subject = standing.run(fit_weights, standing.subject, standing.asked.target, standing.asked.planning)
    recipe = Recipe(safety=HIGH, smooth_quant=OFF)
    result = compile.quantize(tmp_path / "float.onnx", data=feeds(), recipe=recipe, output=tmp_path / "q.onnx")
    assert next(row for row in result.manifest["rungs"] if row["name"] == "fit_weights")["kept"]
    found = {tensor.tobytes() for tensor in _integers(result.model)}
    kept = [one.fitted for one in subject.layers.found if result.plan.precision(one.node) is DType.INT8 and one.fitted]
    assert kept
    assert all(weight.values.tobytes() in found for weight in kept)


def _integers(written: Any) -> list[Any]:
    constants = [one for one in written.graph.tensors().values() if hasattr(one, "values")]
    return [np.asarray(one.values) for one in constants if np.asarray(one.values).dtype == np.int8]


def curved(act: str = "Gelu") -> onnx.ModelProto:
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


def wide_feeds(count: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [{"x": (2 * rng.standard_normal((1, TOKENS, DEPTH))).astype(np.float32)} for _ in range(count)]


def missed_curved(folder: Path, act: str = "Gelu", **recipe: Any) -> Standing:
    return of_net("shift", curved(act), wide_feeds(), folder, **{"safety": HIGH, "smooth_quant": OFF, **recipe})


@pytest.mark.parametrize("act", ["Gelu", "Softplus"])
def test_one_sided_activations_are_shifted_where_the_goal_is_missed(tmp_path: Path, act: str) -> None:
    standing = missed_curved(tmp_path, act)
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
    # what a moved activation adds to m1 has not been observed: FP16 begins where the bias has taken it off again
    assert not {"m1", "m2"} & {tensor.name for node in lowered.model.graph.nodes for tensor in node.outputs}
    assert {name: lowered.plan.precision(name) for name in ("A0", "A1", "Y")} == {"A0": FP16, "A1": FP32, "Y": FP32}


@pytest.mark.parametrize("reason", ["", "quick", "metric"])
def test_they_are_shifted_above_the_goal_too_but_where_time_is_short_or_a_metric_holds(
    tmp_path: Path, reason: str
) -> None:
    standing = missed_curved(tmp_path, safety=MET, effort="quick" if reason == "quick" else "balanced")
    subject = standing.subject
    assert subject.standing is not None
    assert subject.standing.met
    if reason == "metric":
        subject = subject.with_(standing=replace(subject.standing, accepted=True))
    after = standing.run(shift, subject, standing.asked.target, standing.asked.planning)
    told = standing.run.records["rungs"]["shift"]
    assert told["kept"] is (not reason)
    assert (after is subject) is bool(reason)
    assert ("before it" in told["why"]) is bool(reason)


def test_what_is_in_vain_is_remembered_until_the_model_changes(tmp_path: Path) -> None:
    standing = missed_curved(tmp_path)
    was = standing.subject.standing
    assert was is not None
    subject = standing.subject.with_(standing=replace(was, sqnr_db=90.0, calm_db=90.0))  # nothing comes closer
    after = standing.run(shift, subject, standing.asked.target, replace(standing.asked.planning, safety=NEVER)).standing
    assert after is not None
    assert (after.behind, after.vain) == (was.behind, (*was.vain, "shift"))
    assert after.kept("shift", after, anew=False).vain == after.vain
    changed = after.kept("equalize", after, anew=True)
    assert (changed.behind, changed.vain) == ((*was.behind, "equalize"), ())


def test_the_written_file_is_closer_to_float_by_it(tmp_path: Path) -> None:
    onnx.save(curved(), tmp_path / "float.onnx")
    reached = []
    for effort in ("balanced", "quick"):  # the second leaves what the goal does not need
        safety = SafetyTable(target_sqnr_db=5.0)
        recipe = Recipe(safety=safety, smooth_quant=OFF, calibrator="minmax", effort=effort)
        out = tmp_path / "q.onnx"
        result = compile.quantize(tmp_path / "float.onnx", data=wide_feeds(), recipe=recipe, output=out)
        rungs = {row["name"]: row for row in result.manifest["rungs"]}
        assert rungs["shift"]["kept"] is (effort == "balanced")
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
    standing = missed_curved(tmp_path, act, **recipe)
    help = SHIFT.helps(Seen(standing.subject, standing.asked.planning, standing.asked.target))
    assert not help.can
    assert why in help.why
    assert standing.run(shift, standing.subject, standing.asked.target, standing.asked.planning) is standing.subject
