"""The stage of weights in few bits; how they are rounded: tests/weight_only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcompiler.compiler.stages.weight_only import weight_only
from qcompiler.recipe.tables import WeightOnlyTable
from tests.kit.cases import prepared
from tests.kit.subjects import before


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
