"""The benchmark of language models: its recipes are valid, it resumes, and its tables say what was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import report
from benchmarks.children import language as child
from benchmarks.language import __main__ as language
from benchmarks.language import report as language_report
from benchmarks.language.cells import BY_KEY, FLOAT, LENGTH, ROWS, Cell, Row
from benchmarks.small_decoders import VOCABULARY, train_tokenizer
from qcompiler.data.tokenizer import load_tokenizer
from qcompiler.ir.signature import Feeds
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.token_feeds import Filler

PROTOCOL = {"tokens": 8188, "windows": 65}
WORDS = ("prefix", "spike", "token", "window", "quiet", "loud", "median", "scale")


def found(perplexity: float, **changes: Any) -> dict[str, Any]:
    usage = {"wall_s": 60.0, "cpu_s": 90.0, "peak_mb": 3000.0}
    plain = {"wall_s": 13.0, "cpu_s": 15.0, "peak_mb": 1000.0, "work_s": 12.0}
    manifest = {
        "shares": {"fp16": 0.0625, "int8": 0.9375},
        "high_by_rule": {"qfem": 0.0625},
        "qfep": {"ids": [28, 216]},
    }
    worth = {"perplexity": perplexity, "short": 27.5, "protocol": PROTOCOL}
    return {"usage": usage, "plain": plain, "manifest": manifest, "bytes": 200_000_000, "worth": worth, **changes}


def test_rows_have_names_of_their_own() -> None:
    assert len(BY_KEY) == len(ROWS)
    assert len({row.title for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=BY_KEY)
def test_every_recipe_says_what_its_row_says(row: Row) -> None:
    recipe = Recipe.from_toml(row.toml()).to_dict()
    for table, keys in row.tables.items():
        for key, value in keys.items():
            assert (recipe[table] if table else recipe)[key] == value


def test_rows_of_static_int8_differ_by_their_method_alone() -> None:
    off = {"smooth_quant": "off", "qfem": "off"}
    for key, methods in {"plain": {}, "smooth": {"smooth_quant": "auto"}, "qfem": {"qfem": "auto"}}.items():
        recipe = Recipe.from_toml(BY_KEY[key].toml())
        assert {"smooth_quant": recipe.smooth_quant.alpha, "qfem": recipe.qfem.alpha} == {**off, **methods}
        assert recipe.safety.min_share == 1
    assert Recipe.from_toml(BY_KEY["all"].toml()).qfep.prefix == "auto"


def test_ratios_are_to_the_plain_pass_of_the_same_cell_and_to_float() -> None:
    text = language_report.markdown(
        {"smollm2.whole.float": found(34.0, manifest={}), "smollm2.whole.all": found(35.7)},
    )
    assert "| W8A8 + all three | 35.700 | 1.0500 | 27.500 | 93.8% int8, 6.2% fp16 | 200.0 |" in text
    assert "| 60 s | 5.0 | 6.0 | 3000 MB | 3.00 |" in text
    assert "* W8A8 + all three: prefix 28, 216; 6.2% high by rule qfem" in text
    assert "| FP32 | 34.000 | 1.0000 | 27.500 | 100.0% fp32 | 200.0 |" in text


def test_tables_say_what_machine_they_come_from() -> None:
    machine = {"cores": 2, "cpu": "X", "int8": "none", "memory_gb": 8, "python": "3.11"}
    cells = {"gemma.whole.plain": found(3.0, machine=machine), "gemma.whole.smooth": found(3.0, machine=machine)}
    assert "Measured on 2 cores of X (none), 8 GB, Python 3.11, beside other work." in language_report.markdown(cells)


def test_why_there_is_no_prefix_is_said() -> None:
    manifest = {**found(1)["manifest"], "qfep": {"ids": [], "why": "no token spikes"}, "high_by_rule": {"tiny": 0.001}}
    text = language_report.markdown({"gemma.whole.qfep": found(35.7, manifest=manifest)})
    assert text.endswith("* W8A8 + QFeP: no prefix, no token spikes\n")


def test_failures_stand_in_the_table_with_their_reason() -> None:
    cells = {
        "gemma.whole.float": found(100.0),
        "gemma.whole.fp8": {"error": "no luck"},
        "gemma.whole.plain": found(0, worth={"error": "no kernel"}, engine={"error": "no tactic"}),
        "gemma.cache.plain": found(101.0, engine={"bytes": 7_000_000, "audit": {"confirmed": 3, "promised": 4}}),
    }
    text = language_report.markdown(cells)
    assert "| FP8 | **fails** |" in text
    assert "* FP8: no luck" in text
    assert "| W8A8 static, plain | **does not run** |" in text
    assert "* W8A8 static, plain: no kernel" in text
    assert "* W8A8 static, plain: no tactic" in text
    assert "3 of 4, 7.0 MB" in text
    assert text.index("without a cache") < text.index("with a cache")


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def wanted(*more: str) -> list[str]:
        options = language._parser().parse_args(
            [str(tmp_path), "--model", "gemma", "--form", "whole", "--row", "plain", "smooth", *more]
        )
        return [cell.row for cell in language.wanted(options)]

    assert wanted() == ["plain", "smooth"]
    language._write(language._path(tmp_path, Cell("gemma", "whole", "plain")), found(1))
    assert wanted() == ["smooth"]
    assert wanted("--again") == ["plain", "smooth"]


def test_rows_that_are_only_tried_are_measured_when_named() -> None:
    parser = language._parser()
    usual = {cell.row for cell in language.wanted(parser.parse_args(["nowhere"]))}
    assert "net-80" not in usual
    assert FLOAT in usual
    named = language.wanted(parser.parse_args(["nowhere", "--row", "net-80"]))
    assert {cell.row for cell in named} == {"net-80"}


def test_tables_are_written_again_without_measuring(tmp_path: Path) -> None:
    cell = Cell("mixtral", "cache", "plain")
    language._write(language._path(tmp_path, cell), {"cell": asdict(cell), **found(50.0)})
    document = tmp_path / "language_models.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf8")
    assert language.main([str(tmp_path), "--report", "--document", str(document)]) == 0
    assert "| W8A8 static, plain | 50.000 |" in (tmp_path / "tables.md").read_text(encoding="utf8")
    text = document.read_text(encoding="utf8")
    assert "| W8A8 static, plain | 50.000 |" in text
    assert "\nold\n" not in text


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert language.main([str(tmp_path), "--model", "smollm2"]) == 1
    assert "--text DIR is needed" in capsys.readouterr().err


def test_shares_are_of_linear_layers() -> None:
    rows = [("int8", "linear", 60), ("fp16", "qfem", 30), ("fp32", "qfem", 10), ("fp16", "attention", 900)]
    plan = [{"precision": kind, "rule": rule, "macs": macs} for kind, rule, macs in rows]
    kept = language.digest({"plan": plan, "qfep": None, "verification": {"worst_sqnr_db": 21.5}})
    assert kept == {
        "shares": {"int8": 0.6, "fp16": 0.3, "fp32": 0.1},
        "high_by_rule": {"qfem": pytest.approx(0.4)},
        "sqnr_db": 21.5,
    }


def test_the_first_half_of_each_text_is_what_training_and_calibration_see(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four", encoding="utf8")
    child.text(str(tmp_path), str(tmp_path / "seen"))
    assert (tmp_path / "seen" / "a.txt").read_text(encoding="utf8") == "one two"


@pytest.mark.parametrize("begin", [True, False])
def test_the_small_vocabulary_is_read_by_the_compiler(tmp_path: Path, *, begin: bool) -> None:
    text = " ".join(WORDS * 20)
    train_tokenizer([text], begin=begin).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.before == ((0,) if begin else ())
    ids = tokenizer.encode(text)
    assert len(ids) == len(WORDS) * 20  # each word has become one token
    assert max(ids) < VOCABULARY


def test_the_short_protocol_is_the_geometric_mean_over_windows_from_60_percent_on(tmp_path: Path) -> None:
    text = " ".join(WORDS * 1000)
    train_tokenizer([text], begin=True).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(text, encoding="utf8")
    tokenizer = load_tokenizer(tmp_path)
    inputs = {"input_ids": (np.dtype(np.int64), (None, None))}
    seen = []

    def run(feeds: Feeds) -> dict[str, Any]:
        """Gives the wrong one of two tokens e times the weight of the right one, e² times in the second window, ..."""
        ids = feeds["input_ids"]
        seen.append(ids[0].tolist())
        logits = np.full((1, ids.shape[1], 2), 0.0, np.float32)
        logits[..., 1] = len(seen)
        return {"logits": logits}

    def always_zero(source: Path, reader: Any) -> Any:
        yield from ([0] * 8, [0] * 8, [0] * 8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "_short_windows", always_zero)
        value = child.short(run, tmp_path / "text", tokenizer, Filler(inputs))
    assert value == pytest.approx(np.exp(np.mean([np.log1p(np.exp(k)) for k in (1, 2, 3)])))
    windows = list(child._short_windows(tmp_path / "text", tokenizer))
    assert [len(one) for one in windows] == [LENGTH - 1] * 3
    assert windows[0][:20] == tokenizer.encode(text[int(len(text) * 0.6) :][:4000])[:20]


def test_results_are_read_back(tmp_path: Path) -> None:
    cell = Cell("gemma", "whole", "plain")
    language._write(language._path(tmp_path, cell), found(3.0))
    assert language_report.read_cells(tmp_path / "cells") == {"gemma.whole.plain": json.loads(json.dumps(found(3.0)))}
