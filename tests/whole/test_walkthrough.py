"""The walk-through of docs/guide/figures.md shows what it says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from qcompiler.verification.compare import verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "figures.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf8"), re.DOTALL):
        subprocess.run([sys.executable, "-c", code], cwd=found, check=True, timeout=120)
    return found


def test_a_figure_over_the_whole_output_is_blind_to_the_scores(folder: Path) -> None:
    recipe = Recipe(target="tensorrt", safety=SafetyTable(target_sqnr_db=0))
    made = quantize(folder / "detector.onnx", data=folder / "pictures.npz", recipe=recipe, output=folder / "off.onnx")
    assert made.manifest["verdict"]["verdict"] == "doubtful"
    found = verify(folder / "detector.onnx", made.qdq_path, _pictures(folder), samples=None, drift=False)
    views = {view.name: view.sqnr_db or 0.0 for view in found.views}
    assert views["found"] > 30
    assert views["logits (before Sigmoid)"] < 15


def test_the_safety_net_judges_the_same_views_and_gives_the_layer_back(folder: Path) -> None:
    recipe = Recipe(target="tensorrt")
    made = quantize(folder / "detector.onnx", data=folder / "pictures.npz", recipe=recipe, output=folder / "d.onnx")
    assert made.manifest["verdict"] == {"verdict": "holds", "reasons": []}
    assert made.verification is not None
    assert made.verification.worst is not None
    assert made.verification.worst.name == "logits (before Sigmoid)"
    assert (made.verification.worst_sqnr_db or 0) > 25
    assert made.manifest["macs"]["quantized_share"] > 0.97


def test_a_figure_beside_an_offset_is_blind_to_what_a_score_says(folder: Path) -> None:
    alone = Recipe(target="onnxruntime", smooth_quant=SmoothQuantTable(alpha="off"))
    off = dataclasses.replace(alone, safety=SafetyTable(target_sqnr_db=0))
    made = {
        recipe: quantize(folder / "opinion.onnx", data=folder / "sounds.npz", recipe=recipe, output=folder / "o.onnx")
        for recipe in (off, alone)
    }
    found = {recipe: one.manifest["verification"] for recipe, one in made.items()}
    assert found[off]["worst_sqnr_db"] > 28
    assert found[off]["worst_varying_db"] < 15
    assert made[off].manifest["verdict"]["verdict"] == "doubtful"
    assert found[alone]["worst_varying_db"] > 30
    assert made[alone].manifest["verdict"]["verdict"] == "holds"
    assert made[alone].manifest["macs"]["quantized_share"] > 0.9


def _pictures(folder: Path) -> list[dict[str, Any]]:
    images = np.load(folder / "pictures.npz")["image"]
    return [{"image": images[i : i + 1]} for i in range(len(images))]
