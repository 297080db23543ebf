"""Weights in few bits: what is refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.errors import EngineError, UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import WeightOnlyTable
from tests.kit import glu

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


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_methods_that_look_at_activations_need_data(method: str, decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"looks at activations: give --data .* mse or rtn"):
        quantize(decoder, tmp_path, data=False, weight_only=WeightOnlyTable(method=method))


def test_activations_in_half_need_data(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves activations in FP16.*--high-precision fp32"):
        quantize(decoder, tmp_path, data=False, target="tensorrt-rtx:sm89")


def test_quantized_attention_does_not_go_with_blocks(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'attention' = 'int8' quantizes activations"):
        quantize(decoder, tmp_path, target="tensorrt-rtx:sm89", attention="int8")


def test_matmulnbits_is_int4(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose precision int4-weight, or storage dequantize"):
        quantize(decoder, tmp_path, precision="int8-weight", weight_only=WeightOnlyTable(storage="matmulnbits"))


def test_a_gpu_without_int4_is_named(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"sm75 has no INT4.*int8-weight"):
        quantize(decoder, tmp_path, target="tensorrt-rtx:sm75,sm89")
    assert quantize(decoder, tmp_path, precision="int8-weight", target="tensorrt-rtx:sm75").plan.quantized()


def test_nothing_is_written_where_something_is_refused(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        quantize(decoder, tmp_path, data=False, weight_only=WeightOnlyTable(method="gptq"))
    assert list(tmp_path.iterdir()) == []
