"""Commands: which call a line becomes, the recipe that its options make, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompiler.cli.main import main
from qcompiler.recipe.recipe import PRESETS, Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.report import manifest
from tests.kit import manifests
from tests.kit.tools.stored import ODD, folder_of

Call = dict[str, Any]


def test_options_become_the_recipe(calls: list[Call]) -> None:
    line = "compile m.onnx --data d.npz --samples 7 --batch 2 --workers 2 --keep ^a --keep b$ --min-sqnr 20 --strict"
    line += " --target tensorrt-rtx:sm89 --high-precision fp32 --metric m.py:f --max-drop 0.01 --verify-samples 3"
    line += " --verify-data e.npz --weight-granularity tensor --calibrator minmax -o out/m.engine"
    assert main([*line.split(), "--shapes", "x=1,2,3", "--shapes", "n=4"]) == 0
    (call,) = calls
    assert call["recipe"] == Recipe(
        samples=7,
        batch=2,
        workers=2,
        keep=("^a", "b$"),
        min_sqnr=20,
        strict=True,
        target="tensorrt-rtx:sm89",
        high_precision="fp32",
        metric="m.py:f",
        max_drop=0.01,
        verify_samples=3,
        verify_data="e.npz",
        weight_granularity="tensor",
        calibrator="minmax",
        shapes={"x": ((1,), (2,), (3,)), "n": ((4,), (4,), (4,))},
    )
    assert (call["source"], call["data"], call["output"]) == ("m.onnx", "d.npz", "out/m.engine")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("compile models/m.onnx", "m.engine"),
        ("quantize models/m.onnx", "m.qdq.onnx"),
        ("build models/m.qdq.onnx", "m.engine"),
    ],
)
def test_the_output_is_named_after_the_model(calls: list[Call], line: str, output: str) -> None:
    assert main(line.split()) == 0
    assert (calls[0]["command"], calls[0]["output"]) == (line.split()[0], output)


def test_options_stand_over_the_recipe_file_and_keep_adds_to_it(calls: list[Call], tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('samples = 7\nbatch = 2\nkeep = ["a"]\n[safety]\nmin_share = 0.5\n')
    assert main(["compile", "m.onnx", "--recipe", str(file), "--samples", "9", "--keep", "b"]) == 0
    assert calls[0]["recipe"] == Recipe(samples=9, batch=2, keep=("a", "b"), safety=SafetyTable(min_share=0.5))


def test_a_precision_without_a_recipe_starts_from_its_preset(calls: list[Call]) -> None:
    assert main(["compile", "m.onnx", "--precision", "fp8"]) == 0
    assert main(["compile", "m.onnx", "--precision", "fp8", "--target", "tensorrt-rtx:sm120"]) == 0
    assert [call["recipe"].target for call in calls] == ["tensorrt-rtx:sm89", "tensorrt-rtx:sm120"]
    assert calls[0]["recipe"].calibrator == "mse"


def test_a_manifest_is_replayed(calls: list[Call], tmp_path: Path) -> None:
    recipe = Recipe(samples=3, keep=("x",))
    (tmp_path / "m.json").write_text(manifest.to_text(manifests.build(source=None, recipe=recipe)))
    assert main(["compile", "m.onnx", "--recipe", str(tmp_path / "m.json")]) == 0
    assert calls[0]["recipe"] == recipe


def test_a_pick_beside_a_manifest_takes_a_point_of_its_front(calls: list[Call], tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(manifest.to_text(manifests.build(source=None, recipe=Recipe(samples=3))))
    line = ["quantize", "m.onnx", "--recipe", str(tmp_path / "m.json"), "--pick", "0.8"]
    assert main(line) == 0
    assert calls[0]["recipe"] == Recipe(samples=3, pick=0.8, replay=(tmp_path / "m.json").as_posix())
    assert main(["quantize", "m.onnx", "--recipe", "int8", "--pick", "knee"]) == 0
    assert calls[1]["recipe"] == Recipe(pick="knee")


def test_what_is_searched_and_for_how_long_is_said_by_options(calls: list[Call]) -> None:
    line = ["compile", "m.onnx", "--objective", "time", "--search-time", "2m", "--no-reproducible"]
    assert main(line) == 0
    assert main(["compile", "m.onnx", "--effort", "thorough", "--metric", "m.py:f", "--max-drop", "0.5%"]) == 0
    first, second = (call["recipe"] for call in calls)
    assert first == Recipe(objective="time", search_time=120.0, reproducible=False)
    assert second == Recipe(effort="thorough", metric="m.py:f", max_drop=0.005)


def test_verify_compares_and_its_gate_ends_with_5(
    models: tuple[str, str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, data = models
    assert main(["verify", first, second, "--data", data, "--min-sqnr", "39"]) == 0
    assert "40.0 dB" in capfd.readouterr().out
    assert main(["verify", first, second, "--data", data, "--min-sqnr", "41", "--json"]) == 5
    out, err = capfd.readouterr()
    assert json.loads(out)["worst_sqnr_db"] == pytest.approx(40, abs=0.01)
    assert "reaches 40.00 dB of SQNR and at least 41 dB was asked for" in err


def test_verify_takes_a_metric(models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second, data = models
    file = tmp_path / "metric.py"
    file.write_text(
        "import numpy as np\nMETRIC = 'total'\n"
        "def f(run): return abs(run({'x': np.ones((1, 4), np.float32)})['y']).sum()\n"
    )
    line = ["verify", first, second, "--data", data, "--metric", f"{file}:f", "--max-drop"]
    assert main([*line, "0.005"]) == 0
    assert "total" in capfd.readouterr().out
    assert main(["verify", second, first, *line[3:], "0.005"]) == 5
    assert "a drop of 0.99% where at most 0.50% was allowed" in capfd.readouterr().err


def test_verify_compares_on_as_many_feeds_as_asked_for(
    models: tuple[str, str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, data = models
    assert main(["verify", first, second, "--data", data, "--samples", "3", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["samples"] == 3


def test_inspect_writes_a_report(
    models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "new" / "f.html"
    assert main(["inspect", models[0], "--data", models[2], "--report", str(report), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["file"] == "f.onnx"
    assert "<h1>f.onnx</h1>" in report.read_text(encoding="utf8")
    assert main(["inspect", models[0], "--report", str(report / "under.html")]) == 2
    assert "cannot write 'under.html'" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_printed_recipe_is_the_preset(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", name]) == 0
    file = tmp_path / "r.toml"
    file.write_text(capfd.readouterr().out)
    assert Recipe.from_toml(file) == Recipe(**PRESETS[name])
    assert main(["recipe", "check", str(file)]) == 0


def test_recipe_list_names_the_presets(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    assert capfd.readouterr().out.split() == list(PRESETS)


def test_passes_are_listed_with_their_options(capfd: pytest.CaptureFixture[str]) -> None:
    from qcompiler.passes.catalogue import ALL

    assert main(["passes", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["name"] for row in rows] == [one.name() for one in ALL]
    assert main(["passes", "fold-constants"]) == 0
    assert "requires" in capfd.readouterr().out


def test_explain_prints_a_node_and_its_json(capfd: pytest.CaptureFixture[str]) -> None:
    node = ODD["c1"]
    assert main(["explain", str(folder_of("int8")), node]) == 0
    assert f"{node}: Conv in int8" in capfd.readouterr().out
    assert main(["explain", str(folder_of("failed") / "m.engine"), "größe", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["node"], found["found_by"]) == (node, "part")
    assert main(["explain", str(folder_of("int8")), "R"]) == 2
    assert "name one of them: 'R1', 'R2', 'R3'" in capfd.readouterr().err


def test_diff_ends_with_5_only_where_a_gate_is_missed(capfd: pytest.CaptureFixture[str]) -> None:
    a, b = str(folder_of("int8")), str(folder_of("mixed"))
    assert main(["diff", a, b]) == 0
    assert "different in" in capfd.readouterr().out
    assert main(["diff", a, b, "--fail-on", "precision, size", "--json"]) == 5
    told = capfd.readouterr()
    assert json.loads(told.out)["worse"]
    assert "is worse than" in told.err
    assert main(["diff", a, a, "--max-loss-db", "0", "--fail-on", "accuracy,size,precision"]) == 0
    assert main(["diff", a, b, "--fail-on", "speed"]) == 2
