"""The stage that says what the data lacks, and whether judging data was prepared alike."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.compiler.ask import ask
from qcompiler.compiler.compile import quantize
from qcompiler.compiler.stages.check_data import CheckDataOptions, check_data
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared
from tests.kit.rewrite import model
from tests.kit.subjects import before


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


def scaled(case: Case, factor: float) -> str:
    file = case.folder / "other.npz"
    np.savez(file, x=(case.rows * factor).astype(np.float32))
    return str(file)


def test_data_that_judges_must_be_prepared_like_that_which_calibrates(conv: Case) -> None:
    standing = before("smooth_quant", conv, verify_data=scaled(conv, 1 / 255))
    standing.run(check_data, standing.subject, CheckDataOptions(16, profile=False))
    (text,) = standing.run.warnings
    assert "input 'x' has other values in the data that the result is judged on than in the calibration data" in text
    assert re.search(r"25\d times smaller", text)
    inputs = standing.run.records["inputs"]
    assert inputs["judging"]["x"]["maximum"] < inputs["calibration"]["x"]["maximum"] / 100


def test_good_data_is_silent_and_its_values_are_recorded(conv: Case) -> None:
    standing = before("smooth_quant", conv, verify_data=scaled(conv, 1.1))
    standing.run(check_data, standing.subject, CheckDataOptions(16, profile=False))
    assert standing.run.warnings == []
    assert standing.run.records["inputs"]["calibration"]["x"]["elements"] == conv.rows.size


def test_an_axis_that_the_data_pins_is_told_where_the_data_makes_the_profile(conv: Case, tmp_path: Path) -> None:
    standing = before("smooth_quant", conv)
    standing.run(check_data, standing.subject, CheckDataOptions(16, profile=True))
    assert "axis 'n' (size 1) is free" in standing.run.warnings[0]
    for recipe, build, told in (
        (Recipe(), True, True),
        (Recipe(), False, False),
        (Recipe(target="onnxruntime"), True, False),
        (Recipe(shapes={"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}), True, False),
    ):
        asked = ask(recipe, str(conv.data), tmp_path / "m", build=build)
        assert asked.check_data.profile is told


def test_one_sample_is_said_before_anything_else(conv: Case) -> None:
    feeds = [{"x": conv.rows[:1]}] * 20
    result = quantize(conv.source, data=feeds, output=conv.out / "m.qdq.onnx")
    assert result.manifest["warnings"][0].startswith("only 1 sample of data")
    assert list(result.manifest)[:5] == ["schema", "qcompiler", "missed", "verdict", "warnings"]
    page = result.report_path.read_text(encoding="utf8")
    assert page.index("only 1 sample of data") < page.index('class="tiles"')


def test_without_data_or_with_random_data_there_is_nothing_to_compare(conv: Case) -> None:
    standing = before("smooth_quant", conv, data=False, precision="bf16")
    standing.run(check_data, standing.subject, CheckDataOptions(16, profile=True))
    assert standing.run.records["inputs"] is None
    result = quantize(conv.source, data="random", output=conv.out / "m.qdq.onnx")
    assert result.manifest["inputs"] is None


def test_queries_that_begin_at_zero_in_every_use_are_no_doubt_of_the_data(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    weights = {name: (random.standard_normal((64, 64)) / 8).astype(np.float32) for name in ("w", "v", "u")}
    proto = model(
        ("MatMul", "x w", "a"),
        ("Shape", "x", "size"),
        ("Expand", "zero size", "queries"),
        ("MatMul", "queries v", "value"),
        ("Add", "value bias", "values"),
        ("Add", "a values", "both"),
        ("MatMul", "both u", "y"),
        inputs={"x": ("n", 16, 64)},
        weights={**weights, "zero": np.float32(0), "bias": random.standard_normal(64).astype(np.float32)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = [{"x": random.standard_normal((1, 16, 64)).astype(np.float32)} for _ in range(16)]
    found = quantize(tmp_path / "m.onnx", data=feeds, output=tmp_path / "q.onnx").manifest
    rules = {one["rule"] for one in found["plan"]}
    assert "always-zero" in rules
    assert found["verdict"] == {"verdict": "holds", "reasons": []}


def test_a_layer_that_is_too_small_for_int8_lacks_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    weights = {"turns": random.standard_normal((2, 64)), "w": random.standard_normal((64, 64)) / 8}
    proto = model(
        ("MatMul", "points turns", "angles"),  # what a prompt encoder makes of coordinates: few numbers a sample
        ("Sin", "angles", "waves"),
        ("MatMul", "x w", "seen"),
        ("Add", "seen waves", "y"),
        inputs={"points": ("n", 1, 2), "x": ("n", 16, 64)},
        weights={name: value.astype(np.float32) for name, value in weights.items()},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    shapes = {"points": (1, 1, 2), "x": (1, 16, 64)}
    feeds = [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(16)
    ]
    found = quantize(tmp_path / "m.onnx", data=feeds, output=tmp_path / "q.onnx").manifest
    assert [one["rule"] for one in found["plan"] if one["macs"]] == ["tiny", "linear"]
    assert found["verdict"] == {"verdict": "holds", "reasons": []}
    assert not any("fewer than" in text for text in found["warnings"])


def scored(case: Case, factor: float, rows: int | None = None) -> list[str]:
    """Warnings of a compile whose metric feeds some rows of the calibration data times a factor, at once."""
    file = case.folder / "metric.py"
    file.write_text(
        "import numpy as np\n"
        f"X = np.load(r'{case.data}')['x'] * np.float32({factor})\n"
        f"def mean(run): return 1 + abs(run({{'x': X[:{rows}]}})['y']).mean()\n"
    )
    recipe = Recipe(metric=f"{file}:mean")
    result = quantize(case.source, data=str(case.data), recipe=recipe, output=case.out / "m.qdq.onnx")
    assert result.manifest["inputs"]["metric"]["x"]["elements"] == case.rows[:rows].size
    assert result.manifest["verification"]["score"]["halves"]["split"] is (rows is None)
    assert "fed" not in result.manifest["verification"]["score"]
    assert "Inputs" in result.report_path.read_text(encoding="utf8")
    return list(result.manifest["warnings"])


def test_a_metric_with_data_of_another_scale_is_told(conv: Case) -> None:
    (text,) = scored(conv, 255.0)
    assert "input 'x' has other values in the data of the metric than in the calibration data" in text
    assert "255 times larger" in text


def test_a_metric_with_data_of_the_same_kind_is_silent(conv: Case) -> None:
    assert scored(conv, 0.9) == []


def test_a_metric_that_cannot_be_split_is_told_to_be_in_sample(conv: Case) -> None:
    (text,) = scored(conv, 1.0, rows=4)
    assert "is in sample: all of it has chosen the plan, as it runs the model on 4 parts of its data" in text
