"""A regression with an offset: noise that is small beside the offset and large beside what it tells of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import CompileResult, Recipe, quantize
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from tests.kit.rewrite import model

RNG = np.random.default_rng(21)
SAMPLES = [{"x": RNG.standard_normal((1, 48)).astype(np.float32)} for _ in range(40)]


def weight(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def opinion(offset: float) -> onnx.ModelProto:
    """Four layers, of which the third, a small one, reads a few channels that are far wider than the others."""
    second, third = weight(256, 256), weight(256, 24)
    second[:, :4] *= 120
    third[:4] /= 120
    return model(
        ("MatMul", "x first", "a"),
        ("Relu", "a", "b"),
        ("MatMul", "b second", "c"),
        ("Relu", "c", "d"),
        ("MatMul", "d third", "e"),
        ("Relu", "e", "f"),
        ("MatMul", "f fourth", "g"),
        ("Add", "g offset", "y"),
        inputs={"x": ("n", 48)},
        weights={
            "first": weight(48, 256), "second": second, "third": third, "fourth": weight(24, 3),
            "offset": np.float32(offset),
        },
    )  # fmt: skip


def made(tmp_path: Path, offset: float, goal: float) -> CompileResult:
    onnx.save(opinion(offset), tmp_path / "m.onnx")
    recipe = Recipe(
        target="onnxruntime",
        safety=SafetyTable(target_sqnr_db=goal),
        smooth_quant=SmoothQuantTable(alpha="off"),  # which would take the wide channels away
    )
    return quantize(tmp_path / "m.onnx", data=SAMPLES, recipe=recipe, output=tmp_path / "m.qdq.onnx")


def test_noise_beside_an_offset_is_a_doubt(tmp_path: Path) -> None:
    manifest = made(tmp_path, 12.0, goal=-100.0).manifest
    found = manifest["verification"]
    assert found["worst_sqnr_db"] > 30  # twice what is asked for by default, in amplitude
    assert found["worst_varying_db"] < 15
    assert manifest["verdict"]["verdict"] == "doubtful"
    (reason,) = manifest["verdict"]["reasons"]
    assert f"{found['worst_varying_db']:.1f} dB of what varies from sample to sample" in reason


def test_the_search_aims_at_what_varies(tmp_path: Path) -> None:
    done = made(tmp_path, 12.0, goal=25.0)
    first, *_, last = done.manifest["safety"]["curve"]
    assert first["sqnr_db"] < 15  # all layers in INT8; 40 dB of all
    assert last["sqnr_db"] >= 25
    assert done.manifest["verification"]["worst_varying_db"] > 20
    assert done.manifest["verdict"]["verdict"] == "holds"
    assert [one.node for one in done.plan if one.rule == "sensitive"] == ["E"]


def test_without_an_offset_both_figures_are_about_the_same(tmp_path: Path) -> None:
    found = made(tmp_path, 0.0, goal=-100.0).manifest["verification"]
    assert found["worst_varying_db"] == pytest.approx(found["worst_sqnr_db"], abs=6)
