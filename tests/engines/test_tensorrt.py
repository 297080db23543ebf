"""TensorRT itself runs where there is a GPU and the library; what decides by version is tested everywhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qcompiler.engines.base import Profile
from qcompiler.engines.gpu import capability
from qcompiler.engines.tensorrt import TensorRT
from qcompiler.errors import EngineError, UsageError
from tests.kit import graphs

PRESENT = importlib.util.find_spec("tensorrt") is not None
WHY_NOT = f"tensorrt {'is' if PRESENT else 'is not'} installed, GPU: {capability() or 'none'}"
real = pytest.mark.skipif(not PRESENT or capability() is None, reason=WHY_NOT)


def _library(version: str) -> ModuleType:
    fake = ModuleType("tensorrt")
    fake.__version__ = version  # type: ignore[attr-defined]
    return fake


@pytest.mark.skipif(PRESENT, reason=WHY_NOT)
def test_without_the_library_the_error_names_the_command(tmp_path: Path) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    for call in (lambda: TensorRT().check(model), lambda: TensorRT().build(model, tmp_path / "m.engine")):
        with pytest.raises(EngineError, match=r"pip install 'tensorrt>=10\.12'.*tensorrt-rtx"):
            call()
    assert not (tmp_path / "m.engine").exists()


def test_a_library_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", _library("10.3.0"))
    with pytest.raises(EngineError, match=r"10\.3\.0 is too old"):
        TensorRT().check(graphs.matmul().save(tmp_path / "m.onnx"))


def test_polygraphy_must_not_be_set_to_the_other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", _library("11.1.0"))
    monkeypatch.setattr("polygraphy.config.USE_TENSORRT_RTX", True)
    with pytest.raises(EngineError, match="unset it"):
        TensorRT().check(graphs.matmul().save(tmp_path / "m.onnx"))


@pytest.mark.skipif(capability() is not None, reason=WHY_NOT)
def test_without_a_gpu_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", _library("11.1.0"))
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        TensorRT().build(graphs.matmul().save(tmp_path / "m.onnx"), tmp_path / "m.engine")


def _flags(**kinds: Any) -> Any:
    workspace = SimpleNamespace(WORKSPACE="workspace")
    return SimpleNamespace(__version__="99.0", MemoryPoolType=workspace, **kinds)


def test_settings_hold_only_what_was_asked_for(tmp_path: Path) -> None:
    asked = TensorRT(timing_cache=str(tmp_path / "not-there-yet"))
    assert asked.settings(_flags(), []) == {"profiles": None}


def test_settings_carry_profiles_limits_and_compatibility(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    engine = TensorRT(
        timing_cache=str(cache), version_compatible=True, hardware_compatible="ampere+", workspace_mb=2,
        optimization_level=4,
    )  # fmt: skip
    library = _flags(
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE=1), HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="a+")
    )
    found = engine.settings(library, [Profile({"x": ((1,), (2,), (3,)), "n": ((4,), (5,), (6,))})])
    (shapes,) = found.pop("profiles")
    assert {name: tuple(given) for name, given in shapes.items()} == {"x": ((1,), (2,), (3,)), "n": ((4,), (5,), (6,))}
    assert found == {
        "load_timing_cache": str(cache),
        "version_compatible": True,
        "hardware_compatibility_level": "a+",
        "memory_pool_limits": {"workspace": 2 << 20},
        "builder_optimization_level": 4,
    }


def test_a_flag_that_this_version_lacks_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"99\.0 has no BuilderFlag\.VERSION_COMPATIBLE"):
        TensorRT(version_compatible=True).settings(_flags(), [])


def test_impossible_options_are_refused() -> None:
    for options in ({"hardware_compatible": "all"}, {"optimization_level": 6}, {"workspace_mb": 0}):
        with pytest.raises(UsageError):
            TensorRT(**options)


@real
@pytest.mark.gpu
def test_a_quantized_model_builds_and_runs(tmp_path: Path) -> None:
    model = graphs.matmul("batch").save(tmp_path / "m.onnx")
    assert TensorRT().check(model) == []
    engine = TensorRT(timing_cache=str(tmp_path / "cache")).build(
        model, tmp_path / "m.engine", [Profile({"x": ((1, 128), (8, 128), (64, 128))})]
    )
    assert (tmp_path / "cache").stat().st_size > 0
    with TensorRT().open(engine) as runner:
        found = runner.infer({"x": np.ones((3, 128), np.float16)})
    assert found["relu_out"].shape == (3, 96)


@real
@pytest.mark.gpu
def test_a_zero_point_is_refused_by_node(tmp_path: Path) -> None:
    model = graphs.shifted().save(tmp_path / "m.onnx")
    assert TensorRT().check(model)[0].node == "a_q"
    with pytest.raises(EngineError, match="a_q"):
        TensorRT().build(model, tmp_path / "m.engine")


@real
@pytest.mark.gpu
def test_a_missing_profile_names_the_input(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'x'"):
        TensorRT().build(graphs.matmul("batch").save(tmp_path / "m.onnx"), tmp_path / "m.engine")


@real
@pytest.mark.gpu
def test_another_sm_than_this_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="builds for the GPU of this machine"):
        TensorRT(sms=("sm75",)).build(graphs.matmul().save(tmp_path / "m.onnx"), tmp_path / "m.engine")
