"""The stage that compares what a metric feeds with what ranges were taken from."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


def scored(case: Case, factor: float) -> list[str]:
    """Warnings of a compile whose metric feeds the calibration data times a factor."""
    file = case.folder / "metric.py"
    file.write_text(
        "import numpy as np\n"
        f"X = np.load(r'{case.data}')['x'] * np.float32({factor})\n"
        "def mean(run): return 1 + abs(run({'x': X})['y']).mean()\n"
    )
    recipe = Recipe(metric=f"{file}:mean")
    result = quantize(case.source, data=str(case.data), recipe=recipe, output=case.out / "m.qdq.onnx")
    assert result.manifest["inputs"]["metric"]["x"]["elements"] == case.rows.size
    assert "fed" not in result.manifest["verification"]["score"]
    assert "Inputs" in result.report_path.read_text(encoding="utf8")
    return list(result.manifest["warnings"])


def test_a_metric_with_data_of_another_scale_is_told(conv: Case) -> None:
    (text,) = scored(conv, 255.0)
    assert "input 'x' has other values in the data of the metric than in the calibration data" in text
    assert "255 times larger" in text


def test_a_metric_with_data_of_the_same_kind_is_silent(conv: Case) -> None:
    assert scored(conv, 0.9) == []
