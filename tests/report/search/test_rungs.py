"""The goal, and the methods that were tried for it."""

from __future__ import annotations

from typing import Any

from qcompiler.report import html, terminal
from qcompiler.report.search.rungs import goal_line, rungs, rungs_line
from tests.kit.report.pages import EVIL, Document, example, words

GOAL: dict[str, Any] = {
    "kind": "sqnr",
    "target": 25.0,
    "margin": 1.0,
    "unit": "dB",
    "objective": "time",
    "met": True,
    "why": "you asked for it.",
}
RUNGS: list[dict[str, Any]] = [
    {
        "name": "ranges",
        "tried": True,
        "why": "always",
        "sqnr_db": 21.5,
        "gain_db": 2.25,
        "share": 0.95,
        "seconds": 3.5,
        "runs": 12,
        "kept": True,
    },
    {
        "name": "qfem",
        "tried": True,
        "why": EVIL,
        "sqnr_db": 21.0,
        "gain_db": -0.5,
        "share": 0.9,
        "seconds": 1.0,
        "runs": 4,
        "kept": False,
    },
    {
        "name": "smooth-quant",
        "tried": False,
        "why": "no channel stands out",
        "sqnr_db": None,
        "gain_db": None,
        "share": None,
        "seconds": None,
        "runs": None,
        "kept": False,
    },
]


def test_every_method_is_a_row_with_gain_and_cost() -> None:
    page = rungs(RUNGS, GOAL)
    assert Document(page).open == []
    assert EVIL not in page
    text = " ".join(Document(page).texts)
    for piece in ("kept", "tried, not kept", "not tried", "+2.2 dB", "−0.5 dB", "95.0 %", "3.5 s", "12", EVIL):
        assert piece in text, piece
    assert "Goal: an SQNR of 25.0 dB and a margin of 1.0 dB, chosen by time: met. you asked for it." in text


def test_nothing_recorded_is_no_section_and_a_goal_alone_is_a_line() -> None:
    assert rungs((), None) == ""
    assert "<table" not in rungs((), GOAL)
    assert "25.0 dB" in rungs((), GOAL)


def test_a_goal_is_said_in_its_own_unit() -> None:
    metric = {"kind": "metric", "target": 0.005, "margin": 0.001, "unit": "relative", "met": False}
    assert goal_line(metric) == "Goal: a loss of the metric of at most 0.50 % and a margin of 0.10 %: not met."
    likelihood = {"kind": "default", "target": 25.0, "figure": 22.0, "unit": "dB", "likelihood": True, "met": False}
    assert goal_line(likelihood) == "Goal: a perplexity that rises by at most 0.3 % (KL at 25.0 dB): not met."
    assert goal_line({"kind": "sqnr", "unit": "dB"}) == "Goal: an SQNR of nothing in particular."


def test_the_terminal_has_a_line_for_it_and_the_report_a_section() -> None:
    line = rungs_line(RUNGS)
    assert line == "ranges +2.2 dB (3.5 s); tried in vain: qfem; not tried: smooth-quant"
    assert rungs_line([{"name": "ranges", "tried": False}]) == "not tried: ranges"


def test_both_reports_show_what_the_manifest_has(tmp_path: Any) -> None:
    record = {**example(tmp_path), "rungs": RUNGS, "goal": GOAL}
    assert "<h2>How far it had to go</h2>" in html.render(record)
    text = words(terminal.summary(record))
    assert "goal an SQNR of 25.0 dB and a margin" in text
    assert "methods ranges +2.2 dB (3.5 s); tried in vain" in text
    assert "<h2>How far" not in html.render(example(tmp_path))


def test_a_metric_that_could_not_be_split_says_so_where_the_goal_stands() -> None:
    told = goal_line(GOAL | {"kind": "metric", "in_sample": "it feeds other data in each run", "why": "it holds."})
    assert ": met, in sample: all of the metric chose, as it feeds other data in each run. it holds." in told
    assert "in sample" not in goal_line(GOAL | {"in_sample": ""})
