"""The manifest: valid JSON whatever the figures, no folders of the machine, and a recipe that can be replayed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from qcompiler.data.samples import Fingerprint
from qcompiler.engines.base import EngineFile
from qcompiler.errors import UsageError
from qcompiler.judge.figures import ViewFigure
from qcompiler.judge.outputs import Output
from qcompiler.passes.base import Changed, Report, Skipped
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.report import html, manifest, terminal
from qcompiler.support.as_json import plain
from qcompiler.support.atomic import write_text
from qcompiler.support.file import File
from qcompiler.target import DType
from qcompiler.verification.compare import Verification
from tests.kit import manifests


def example(folder: Path, recipe: Recipe | None = None) -> dict[str, object]:
    (folder / "m.onnx").write_bytes(b"float")
    (folder / "m.engine").write_bytes(b"engine")
    decisions = [
        Decision("conv<1>", "Conv", DType.INT8, "linear", "weights", 300, {"sqnr_db": math.inf}),
        Decision("mm", "MatMul", DType.FP16, "sensitive", "12 dB", 100, {"sqnr_db": math.nan}),
    ]
    plan = Plan.of(decisions).with_(quantizers={"x": Quantizer("x", DType.INT8, 2.5, "entropy", 6.0)})
    output = Output("y", "float32", 4, math.inf, 1.0, 0.0, None, None, 0, 0, 0)
    view = ViewFigure("y", "y", "y", "output", "", True, 1, math.inf)
    return manifests.build(
        source=File.of(folder / "m.onnx"),
        recipe=recipe or Recipe(),
        data={"name": "data/", "feeds": 3, "fingerprint": "0" * 64},
        passes=[Report("fold", (Changed("a", "b"), Skipped("c", "d"), Skipped("e", "f")), 0.5)],
        equivalence={"fold": 1e-7},
        plan=plan,
        verification=Verification(3, (output,), views=(view,)),
        engine=EngineFile(folder / "m.engine", "tensorrt-rtx", 6, 1.0, ("sm89",), "1.7.1"),
        timings={"load": 0.12345},
        warnings=["look out"],
    )


def test_it_is_strict_json_with_infinities_as_text_and_nan_as_null(tmp_path: Path) -> None:
    text = manifest.to_text(example(tmp_path))
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the manifest"))
    assert [row["figures"]["sqnr_db"] for row in data["plan"]] == ["inf", None]
    assert data["verification"]["worst_sqnr_db"] == "inf"


def test_it_holds_the_figures(tmp_path: Path) -> None:
    data = json.loads(manifest.to_text(example(tmp_path)))
    assert data["macs"] == {"total": 400, "quantized_share": 0.75, "by_precision": {"fp16": 100, "int8": 300}}
    figures = {"changed": 1, "skipped": 2, "relative_error": 1e-7, "undone": None}
    assert data["passes"] == [{"pass": "fold", "seconds": 0.5, **figures}]
    assert data["source"] == {"name": "m.onnx", "sha256": hashlib.sha256(b"float").hexdigest(), "bytes": 5}
    assert data["engine"]["file"] == "m.engine"
    assert data["timings"] == {"load": 0.123}
    assert data["environment"]["numpy"] == np.__version__
    assert data["peak_memory_mb"] is None or data["peak_memory_mb"] > 10


def test_a_manifest_of_schema_1_is_read_under_the_names_of_schema_2() -> None:
    stored, data = json.loads(manifests.SCHEMA_1.read_text(encoding="utf8")), manifest.read(manifests.SCHEMA_1)
    assert (stored["schema"], data["schema"]) == (1, manifest.SCHEMA)
    assert list(data) == ["smooth_quant" if key == "smoothing" else key for key in stored]
    assert data["smooth_quant"] == stored["smoothing"]
    assert list(data["timings"].values()) == list(stored["timings"].values())
    assert " ".join(data["timings"]) == (
        "load clean_up preflight observe smooth_quant llm_int8 decide lower verify write build_engine audit"
    )


def test_reports_show_a_manifest_of_schema_1() -> None:
    data = manifest.read(manifests.SCHEMA_1)
    assert "<h2>SmoothQuant</h2>" in html.render(data)
    assert "smooth_quant 1.5 s" in dict(terminal._summary_rows(data))["time"]


def test_a_manifest_of_schema_1_is_replayed() -> None:
    recipe = manifest.replay(manifests.SCHEMA_1)
    assert (recipe.precision, recipe.target, recipe.llm_int8.threshold) == ("int8", "tensorrt-rtx:sm89", "auto")


def test_a_manifest_of_this_schema_is_read_as_it_is(tmp_path: Path) -> None:
    written = {**plain(example(tmp_path)), "timings": {"smooth": 1.0}}
    write_text(tmp_path / "m.json", manifest.to_text(written))
    assert manifest.read(tmp_path / "m.json") == written


def test_it_has_no_folder_of_the_machine_in_it(tmp_path: Path) -> None:
    assert str(tmp_path) not in manifest.to_text(example(tmp_path))


def test_its_keys_have_a_fixed_order(tmp_path: Path) -> None:
    empty = manifests.build(source=None, recipe=Recipe())
    assert list(example(tmp_path)) == list(empty)


def test_the_recipe_in_it_can_be_replayed(tmp_path: Path) -> None:
    recipe = Recipe(samples=7, keep=("^head",), shapes={"x": ((1,), (2,), (3,))}, safety=SafetyTable(min_share=0.5))
    write_text(tmp_path / "m.json", manifest.to_text(example(tmp_path, recipe)))
    assert manifest.replay(tmp_path / "m.json") == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "no 'schema'"),
        ("{}", "no 'schema'"),
        ('{"schema": 99}', "newer qcompiler"),
        ('{"schema": 1, "recipe": {"sample": 3}}', "recipe of .*m.json: unknown key 'sample'"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        manifest.replay(tmp_path / "m.json")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read: No such file"):
        manifest.read(tmp_path / "none.json")


def feeds(*values: int) -> str:
    found = Fingerprint()
    for value in values:
        found.add({"x": np.full((2, 2), value, np.float32), "n": np.array(value)})
    return str(found)


def test_the_fingerprint_ignores_the_order_of_samples_and_sees_everything_else() -> None:
    assert feeds(1, 2, 3) == feeds(3, 1, 2)
    assert len({feeds(1, 2), feeds(1, 3), feeds(1), feeds(1, 2, 2), feeds()}) == 5
    first, second = Fingerprint(), Fingerprint()
    first.add({"x": np.zeros((2, 3), np.float32)})
    second.add({"x": np.zeros((3, 2), np.float32)})
    assert str(first) != str(second)


def test_texts_in_feeds_have_a_fingerprint() -> None:
    found = Fingerprint()
    found.add({"x": np.array(["a", "b"], object)})
    assert len(str(found)) == 64


def test_plain_knows_what_json_does_not() -> None:
    assert plain({"a": np.float32(0.5), DType.INT8: np.arange(2), "s": {3, 1}, "p": Path("a/b"), "n": -math.inf}) == {
        "a": 0.5,
        "int8": [0, 1],
        "s": [1, 3],
        "p": "a/b",
        "n": "-inf",
    }


def test_lists_of_numbers_stand_on_one_line_and_nothing_else_is_changed() -> None:
    data = {
        "a": [1, -2.5, 1e-07, 3],
        "b": [[1, 2], []],
        "c": ["[\n 1\n]", 1],
        "d": ["1", "2"],
        "e": [1, None],
        "f": [7],
    }
    text = manifest.to_text(data)
    assert json.loads(text) == data
    for line in (' "a": [1, -2.5, 1e-07, 3],', "  [1, 2],", ' "f": [7]'):
        assert line in text.splitlines()


def test_what_was_estimated_is_shown_beside_what_it_took() -> None:
    data = manifest.read(manifests.SCHEMA_1)
    data = {**data, "estimate": {"seconds": 12.0}}
    assert ", estimated 12.0 s (" in dict(terminal._summary_rows(data))["time"]
    assert "estimated 12.0 s" in html.render(data)
