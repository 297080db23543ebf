"""The benchmark of outliers: its recipes are valid, and its tables say what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import report
from benchmarks.children import worth, write_glu
from benchmarks.outliers import __main__ as outliers
from benchmarks.outliers import report as outlier_report
from benchmarks.outliers.cells import Case, cases
from qcompiler.recipe.recipe import Recipe

CASES = {case.name: case for case in cases(trained=True)}


def cell(name: str, sqnr_db: float, **changes: Any) -> dict[str, Any]:
    manifest = {
        "verification": {"outputs": [{"sqnr_db": sqnr_db + 1}, {"sqnr_db": None}]},
        "shares": {"int8": 0.9, "fp16": 0.06, "fp32": 0.04},
        "audit": {"promised": 4, "confirmed": 4, "ok": True},
    }
    return {"case": asdict(CASES[name]), "manifest": manifest, "worth": {"sqnr_db": {"y": sqnr_db}}, **changes}


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(CASES) == len(cases(trained=True))
    assert not {case.model for case in cases(trained=False)} & {"glu-lm", "glu-lm-outlier"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_recipe_says_what_its_case_says(case: Case) -> None:
    recipe = Recipe.from_toml(case.toml()).to_dict()
    for table, keys in case.tables.items():
        for key, value in keys.items():
            assert (recipe[table] if table else recipe)[key] == value


def test_targets_of_the_decoders_are_computed_from_their_cells() -> None:
    levels = {"glu.plain": 30.0, "glu.both": 32.0, "glu-outlier.plain": 5.0, "glu-outlier.both": 29.75}
    text = outlier_report.markdown({name: cell(name, level) for name, level in levels.items()}, [])
    assert "plain W8A8 is 25.0 dB worse" in text
    assert "-0.2 dB from glu in plain W8A8, and -2.2 dB from glu under the same recipe" in text
    assert "| glu-outlier | plain W8A8 | 5.0 | 6.0 |  | 90.0% | 0.0% | 10.0% | 4 of 4 |" in text


def test_auto_is_held_against_the_best_alpha_of_the_same_setting() -> None:
    levels = {"magika.aoff": 20.0, "magika.a0.5": 25.0, "magika.aauto": 24.0, "magika.a0.7-insert": 50.0}
    text = outlier_report.markdown({name: cell(name, level) for name, level in levels.items()}, [])
    assert "* magika, qfem off: auto 24.0 dB, the best fixed alpha (0.5) 25.0 dB." in text


def test_failures_stand_in_the_table_with_their_reason() -> None:
    name = "smollm2-135m.plain"
    text = outlier_report.markdown({name: {"case": asdict(CASES[name]), "error": "no luck"}}, [])
    assert "| smollm2-135m | plain W8A8 | **fails** |" in text
    assert "* smollm2-135m, plain W8A8: no luck" in text


def test_shares_leave_products_of_two_activations_out() -> None:
    rows = [("int8", "linear", 90), ("fp16", "qfem", 10), ("fp16", "attention", 900), ("fp32", "tiny", 0)]
    plan = [{"node": rule, "precision": kind, "rule": rule, "macs": macs} for kind, rule, macs in rows]
    assert outliers._shares(plan) == {"fp16": 0.1, "int8": 0.9}
    assert outliers._rules(plan) == {"qfem": ["qfem"], "attention": ["attention"]}


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "outliers.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf8")
    outliers._write(tmp_path / "cells" / "glu.plain.json", cell("glu.plain", 30.0))
    assert outlier_report.replace_tables(document, tmp_path) == 1
    text = document.read_text(encoding="utf8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text


def test_an_unknown_row_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outliers.main([str(tmp_path), "gul", "--cache", str(tmp_path)]) == 1
    assert "there is no row gul" in capsys.readouterr().err


def test_generated_models_are_judged_on_their_evaluation_sequences(tmp_path: Path) -> None:
    write_glu.main(str(tmp_path), "none", "2")
    changed = onnx.load(tmp_path / "model.onnx")
    head = next(one for one in changed.graph.initializer if one.name == "head.w")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * np.float32(1.1), head.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    worth.main(tmp_path, tmp_path / "changed.onnx", tmp_path / "answer.json", None)
    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf8"))
    assert answer["sqnr_db"]["logits"] == pytest.approx(20, abs=0.01)
