"""Weights in few bits: what becomes of a gate that is missed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.errors import AccuracyError
from qcompiler.judge.outputs import Output
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, WeightOnlyTable
from qcompiler.target import DType
from qcompiler.verification.compare import Verification
from qcompiler.weight_only.give_back import give_back
from tests.kit import glu
from tests.kit.weight_only.stored import stored

if TYPE_CHECKING:
    from pathlib import Path


FEEDS = glu.feeds(4)
ROUNDED = WeightOnlyTable(method="rtn", block_size=128)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "glu.onnx"
    onnx.save(glu.stack(channels=glu.OUTLIERS, layers=1), path)
    return path


def quantize(path: Path, folder: Path, *, data: bool = True, **changes: Any) -> compile.CompileResult:
    recipe = Recipe(target="onnxruntime", precision="int4-weight").replace(**{"weight_only": ROUNDED, **changes})
    return compile.quantize(path, data=FEEDS if data else None, recipe=recipe, output=folder / "out.onnx")


def test_layers_that_err_most_go_back_to_float_until_a_gate_is_met(decoder: Path, tmp_path: Path) -> None:
    free = quantize(decoder, tmp_path)
    assert free.verification is not None
    before = free.verification.outputs[0].sqnr_db or 0.0
    result = quantize(decoder, tmp_path, min_sqnr=before + 2, safety=SafetyTable(min_share=0.2))
    assert result.verification is not None
    assert (result.verification.outputs[0].sqnr_db or 0.0) >= before + 2
    told = result.manifest["weight_only"]
    assert told["restored"]
    errors = {one["node"]: one["output_db"] for one in free.manifest["weight_only"]["layers"]}
    kept = [one["node"] for one in told["layers"]]
    assert min(errors[name] for name in kept) >= max(errors[name] for name in told["restored"])
    for name in told["restored"]:
        decision = result.plan.decisions[name]
        assert (decision.rule, decision.precision) == ("sensitive", DType.FP32)
        assert "one of the layers that err most: its outputs reach" in decision.why
    stored = {node.name for node in result.model.graph.nodes if node.op == "DequantizeLinear"}
    assert len(stored) == len(kept)


def test_what_only_the_weight_says_goes_last() -> None:
    base = stored(**{f"L{number}": 30.0 + number for number in range(20)})
    blind = dataclasses.replace(base.weights["L7"], output_db=None, weight_db=5.0)
    found = give_back(dataclasses.replace(base, weights={**base.weights, "L7": blind}), 0.0)
    assert found is not None
    assert set(found.restored) == {"L0"}


def test_a_gate_out_of_reach_says_what_to_try(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(AccuracyError) as caught:
        quantize(decoder, tmp_path, min_sqnr=90.0, safety=SafetyTable(min_share=0.8))
    text = str(caught.value)
    assert "layers went back to high precision already" in text
    for tip in (
        "--weight-only-block-size 32",
        "--weight-only-method gptq with --data",
        "--precision int8-weight",
        "--keep '",
    ):
        assert tip in text
    assert [path.name for path in tmp_path.iterdir() if ".failed." not in path.name] == []


def measured(sqnr: float) -> Verification:
    return Verification(1, (Output("y", "float32", 10, sqnr, 0.9, 0.1, None, None, 0, 0, 0),))


def test_what_errs_most_is_given_back_in_another_value() -> None:
    first = stored(A=30.0, B=10.0, C=20.0, D=40.0)
    second = give_back(first, 0.5)
    assert second is not None
    assert list(first.weights) == ["A", "B", "C", "D"]
    assert not first.restored
    assert (list(second.weights), list(second.restored)) == (["A", "C", "D"], ["B"])
    third = give_back(second, 0.5)
    assert third is not None
    assert list(third.restored) == ["B", "C"]
    assert give_back(third, 0.5) is None


def test_nothing_is_given_back_where_nothing_is_stored_or_too_little_would_be_left() -> None:
    assert give_back(stored(A=30.0), 1.0) is None
    assert give_back(stored(), 0.0) is None
    assert give_back(None, 0.0) is None
