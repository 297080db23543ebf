"""Weights in few bits: what is refused before anything is read, and what becomes of a gate that is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from qcompiler import compiler
from qcompiler.errors import AccuracyError, EngineError, UsageError
from qcompiler.recipe import Recipe, Safety, WeightOnly
from qcompiler.target import DType
from tests import glu

if TYPE_CHECKING:
    from pathlib import Path

FEEDS = glu.feeds(4)
ROUNDED = WeightOnly(method="rtn", block_size=128)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "glu.onnx"
    onnx.save(glu.stack(channels=glu.OUTLIERS, layers=1), path)
    return path


def quantize(path: Path, folder: Path, *, data: bool = True, **changes: Any) -> compiler.CompileResult:
    recipe = Recipe(target="onnxruntime", precision="int4-weight").replace(**{"weight_only": ROUNDED, **changes})
    return compiler.quantize(path, data=FEEDS if data else None, recipe=recipe, output=folder / "out.onnx")


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_methods_that_look_at_activations_need_data(method: str, decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"looks at activations: give --data .* mse or rtn"):
        quantize(decoder, tmp_path, data=False, weight_only=WeightOnly(method=method))


def test_activations_in_half_need_data(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves activations in FP16.*--high-precision fp32"):
        quantize(decoder, tmp_path, data=False, target="tensorrt-rtx:sm89")


def test_quantized_attention_does_not_go_with_blocks(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'attention' = 'int8' quantizes activations"):
        quantize(decoder, tmp_path, target="tensorrt-rtx:sm89", attention="int8")


def test_matmulnbits_is_int4(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose precision int4-weight, or storage dequantize"):
        quantize(decoder, tmp_path, precision="int8-weight", weight_only=WeightOnly(storage="matmulnbits"))


def test_a_gpu_without_int4_is_named(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"sm75 has no INT4.*int8-weight"):
        quantize(decoder, tmp_path, target="tensorrt-rtx:sm75,sm89")
    assert quantize(decoder, tmp_path, precision="int8-weight", target="tensorrt-rtx:sm75").plan.quantized()


def test_nothing_is_written_where_something_is_refused(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        quantize(decoder, tmp_path, data=False, weight_only=WeightOnly(method="gptq"))
    assert list(tmp_path.iterdir()) == []


def test_layers_that_err_most_go_back_to_float_until_a_gate_is_met(decoder: Path, tmp_path: Path) -> None:
    free = quantize(decoder, tmp_path)
    assert free.verification is not None
    before = free.verification.outputs[0].sqnr_db or 0.0
    result = quantize(decoder, tmp_path, min_sqnr=before + 2, safety=Safety(min_share=0.2))
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


def test_a_gate_out_of_reach_says_what_to_try(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(AccuracyError) as caught:
        quantize(decoder, tmp_path, min_sqnr=90.0, safety=Safety(min_share=0.8))
    text = str(caught.value)
    assert "layers went back to high precision already" in text
    for tip in ("--block-size 32", "--weight-method gptq with --data", "--precision int8-weight", "--keep '"):
        assert tip in text
    assert list(tmp_path.iterdir()) == []
