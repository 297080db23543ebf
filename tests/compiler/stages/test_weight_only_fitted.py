"""The stage that fits INT8 weights; how they are fitted: tests/weight_only/test_fitted.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.compiler.ladder import FIT_WEIGHTS, Seen
from qcompiler.compiler.stages.decide import decide
from qcompiler.compiler.stages.weight_only import fit_weights
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from qcompiler.target import DType
from tests.kit.rewrite import model
from tests.kit.subjects import Standing, of_net

HIGH = SafetyTable(target_sqnr_db=60.0, min_share=1.0)  # nothing reaches it, and nothing goes back
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


def test_what_meets_the_goal_keeps_its_nearest_integers(tmp_path: Path) -> None:
    standing = missed(tmp_path, safety=SafetyTable(target_sqnr_db=5.0))
    assert (
        standing.run(fit_weights, standing.subject, standing.asked.target, standing.asked.planning) is standing.subject
    )
    assert "is met before it" in standing.run.records["rungs"]["fit_weights"]["why"]


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
