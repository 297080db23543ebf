"""A recipe becomes the options of each stage; what cannot work is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from qcompiler.compiler.ask import SLOW_FP8, Asked, ask
from qcompiler.errors import EngineError, QCompilerError, UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import LlmInt8Table, PreprocessTable, QfepTable
from qcompiler.target import DType


def asked(folder: Path, data: Any = "no.npz", *, build: bool = False, **recipe: Any) -> Asked:
    return ask(Recipe(**recipe), data, folder / ("m.engine" if build else "m.qdq.onnx"), build=build)


def test_methods_that_are_off_have_no_options(tmp_path: Path) -> None:
    plain = asked(tmp_path)
    assert (plain.qfep, plain.llm_int8, plain.weight_only) == (None, None, None)
    assert plain.smooth_quant is not None
    on = asked(tmp_path, qfep=QfepTable(prefix="auto"), llm_int8=LlmInt8Table(threshold=6.0))
    assert on.qfep is not None
    assert on.llm_int8 is not None
    assert on.llm_int8.dtype is DType.INT8
    assert asked(tmp_path, precision="fp8", target="tensorrt-rtx:sm89").smooth_quant is not None
    assert asked(tmp_path, precision="fp16").smooth_quant is None
    assert asked(tmp_path, precision="int4-weight").weight_only is not None


@pytest.mark.parametrize(
    ("precision", "quantizes", "layers"),
    [("int8", True, True), ("int8-dynamic", True, False), ("int4-weight", True, False), ("fp16", False, False)],
)
def test_only_precisions_with_activations_look_for_layers(
    tmp_path: Path, precision: str, quantizes: bool, layers: bool
) -> None:
    found = asked(tmp_path, precision=precision)
    assert found.promise.asks is quantizes
    assert found.load.scope.quantizes is layers


def test_a_gpu_that_cannot_be_used_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert asked(tmp_path).observe.device is None
    assert asked(tmp_path, device="auto").observe.device is None
    with pytest.raises(UsageError, match="--device cuda: ONNX Runtime"):
        asked(tmp_path, device="cuda")


@pytest.mark.parametrize(
    ("precision", "something"),
    [("int8", True), ("int4-weight", True), ("auto", False), ("auto:int8,fp8", True), ("auto:int8,fp16", False)],
)
def test_where_float_may_be_chosen_nothing_has_to_be_quantized(tmp_path: Path, precision: str, something: bool) -> None:
    assert asked(tmp_path, precision=precision).promise.something is something


def test_a_gate_on_the_share_reaches_planning_and_needs_a_quantized_type(tmp_path: Path) -> None:
    found = asked(tmp_path, min_share=0.75)
    assert (found.promise.min_share, found.planning.min_share) == (0.75, 0.75)
    with pytest.raises(UsageError, match=r"--min-share 0\.75 asks for a quantized type"):
        asked(tmp_path, precision="fp16", min_share=0.75)


def test_building_means_an_engine_and_layers_are_measured_with_and_without_one(tmp_path: Path) -> None:
    assert asked(tmp_path, build=True).paths.output == tmp_path / "m.engine"
    assert asked(tmp_path).paths.engine is None
    assert asked(tmp_path, build=True).verify.drift
    assert asked(tmp_path).verify.drift


def test_what_the_user_should_know_is_told_later(tmp_path: Path) -> None:
    assert asked(tmp_path, precision="fp8", target="onnxruntime").warnings == (SLOW_FP8,)
    assert asked(tmp_path).warnings == ()


@pytest.mark.parametrize(
    ("recipe", "data", "error", "text"),
    [
        ({}, None, UsageError, "needs the ranges of activations"),
        ({"precision": "fp16", "high_precision": "bf16"}, "no.npz", UsageError, "contradict"),
        ({"precision": "fp8", "target": "tensorrt-rtx:sm80"}, "no.npz", EngineError, "sm80"),
        ({"precision": "bf16", "target": "onnxruntime"}, "no.npz", EngineError, "no BF16 kernels"),
        ({"calibrator": "percentile{p=200}"}, "no.npz", UsageError, "p"),
        ({"metric": "nobody.py:knows"}, "no.npz", UsageError, "nobody.py"),
        ({"precision": "int4-weight", "target": "tensorrt-rtx:sm75"}, "no.npz", EngineError, "INT4"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(
    tmp_path: Path, recipe: dict[str, Any], data: str | None, error: type[QCompilerError], text: str
) -> None:
    with pytest.raises(error, match=text):
        asked(tmp_path, data, **recipe)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.manifest.json").mkdir()
    with pytest.raises(UsageError, match=r"m\.manifest\.json"):
        asked(tmp_path)


def test_ranges_stand_for_data(tmp_path: Path) -> None:
    found = asked(tmp_path, None, ranges="calib.cache")
    assert found.load.ranges == "calib.cache"
    assert found.planning.formats == (DType.INT8,)
    assert asked(tmp_path, ranges="calib.cache", precision="auto", min_sqnr=20.0).load.ranges == "calib.cache"
    assert asked(tmp_path, None, ranges="calib.cache", min_sqnr=20.0, verify_data="e.npz").gates.min_sqnr == 20.0


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"precision": "fp16"}, "--ranges are of activations, and precision 'fp16' quantizes none"),
        ({"precision": "int8-weight"}, "quantizes none"),
        ({"equalize": True}, "--equalize rescales"),
        ({"precision": "auto"}, "compares formats on data"),
        ({"attention": "int8"}, "--attention needs --data"),
        ({"min_sqnr": 20.0}, "--min-sqnr needs something to compare on"),
    ],
)
def test_what_ranges_alone_cannot_do_is_refused(tmp_path: Path, recipe: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        asked(tmp_path, None, ranges="calib.cache", **recipe)


def test_how_files_are_prepared_is_known_where_data_is_opened(tmp_path: Path) -> None:
    found = asked(tmp_path, preprocess={"method": "imagenet"}).load
    assert found.preprocess == found.held_out.preprocess == PreprocessTable("imagenet")


@pytest.mark.parametrize(
    ("build", "target", "by_table"),
    [(True, "tensorrt-rtx", False), (False, "tensorrt-rtx", True), (True, "tensorrt", True)],
)
def test_time_is_read_off_an_engine_and_else_off_the_table(
    tmp_path: Path, build: bool, target: str, by_table: bool
) -> None:
    recipe = Recipe(objective="time", target=target)
    found = ask(recipe, "data", tmp_path / "m.out", build=build)
    assert found.planning.by_cost is by_table
    assert found.promise.something is not by_table
    assert not ask(recipe.replace(objective="share"), "data", tmp_path / "m.out", build=build).planning.by_cost
