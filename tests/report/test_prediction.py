"""The predicted times in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcompiler.report import html, terminal
from qcompiler.report.prediction import left_out, line, prediction, slower
from tests.kit.report.pages import EVIL, Document, example, words

TAKEN: dict[str, Any] = {"kernels": 63, "bytes": 201_000_000, "macs": {"fp16": 10**9}, "unsized": 0}
FOUND: dict[str, Any] = {
    "sms": {"sm89": {"high_us": 412.2, "engine_us": 236.1, "gpu": "GeForce RTX 4090"}},
    "leaves_out": f"caches {EVIL}",
    "warning": None,
    "high_precision": "float16",
    "shapes": {"x": [1, 3, 224, 224]},
    "high": TAKEN,
    "engine": {**TAKEN, "kernels": 68},
    "tried": [],
}
SLOW: dict[str, Any] = {
    **FOUND,
    "sms": {"sm80": {"high_us": 100.0, "engine_us": 200.0}, "sm89": {"high_us": 90.0, "engine_us": 60.0}},
    "warning": "this engine is predicted slower",
    "tried": [
        {"high": ["a", "b"], "single": ["c"], "share": 0.25, "sms": FOUND["sms"], "kept": False, "why": EVIL},
    ],
}


def test_the_line_has_the_times_and_the_speed_up_on_every_gpu() -> None:
    assert line(FOUND) == "predicted on SM89: float16 412 µs, this engine 236 µs (1.7 ×)"
    text = (
        "predicted on SM80: float16 100 µs, this engine 200 µs (0.5 ×: slower); SM89: float16 90 µs, this engine 60 µs"
    )
    assert line(SLOW) == f"{text} (1.5 ×)"
    assert left_out(FOUND).startswith("predicted for x 1x3x224x224 from the engines' own listings, without caches")
    assert (slower(FOUND), slower(SLOW), slower(None)) == (False, True, False)


def test_nothing_is_said_where_nothing_was_predicted() -> None:
    for nothing in (None, {}, {"sms": {}, "leaves_out": "everything", "warning": "no listing"}):
        assert line(nothing) == left_out(nothing) == prediction(nothing) == ""
        assert not slower(nothing)


def test_the_summary_begins_with_it_behind_the_verdict(tmp_path: Path) -> None:
    record = {**example(tmp_path), "verdict": {"verdict": "holds", "reasons": []}, "prediction": FOUND}
    assert words(terminal.summary(record)).strip().startswith(f"Holds {line(FOUND)} predicted for x")
    page = html.render(record)
    assert page.index("412 µs") < page.index("1 mismatch")
    assert Document(page).open == []


def test_the_section_has_every_figure_and_the_plans_that_were_looked_at() -> None:
    page = prediction(SLOW)
    assert Document(page).open == []
    assert EVIL not in page
    text = " ".join(Document(page).texts)
    for figure in ("SM80", "100 µs", "200 µs", "0.5 ×", "63", "68", "201 MB", "1 G fp16", "25.0 %", "1.75 ×"):
        assert figure in text, figure
    assert "2 layers to high precision, 1 with one weight scale" in text


def test_the_decode_has_times_of_its_own() -> None:
    decode = {**FOUND, "sms": {"sm89": {"high_us": 80.0, "engine_us": 40.0}}, "shapes": {"ids": [1, 1]}}
    found = {**FOUND, "decode": decode}
    assert line(found) == f"{line(FOUND)}; in the decode SM89: float16 80 µs, this engine 40 µs (2 ×)"
    assert "for x 1x3x224x224, in the decode ids 1x1 from the engines' own listings" in left_out(found)
    page = prediction(found)
    assert Document(page).open == []
    assert "In the decode" in page
    assert "In the decode" not in prediction(FOUND)
