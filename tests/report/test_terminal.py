"""Tables for the terminal: what matters is in them."""

from __future__ import annotations

from pathlib import Path

from qcompiler.report import terminal
from tests.kit.report.pages import EVIL, example, inspected, words


def test_the_terminal_summary_has_what_matters(tmp_path: Path) -> None:
    text = words(terminal.summary(example(tmp_path)))
    for figure in (
        "0.9762 → 0.9743 (−0.19 %)",
        "24.3 dB on 16 feeds",
        "int8",
        "nodes confirmed, 1 mismatch",
        "10.8 MB",
    ):
        assert figure in text, figure
    assert EVIL in text
    assert "sensitive" not in text
    assert "alone it costs" in text


def test_verdict_and_warnings_come_before_all_figures(tmp_path: Path) -> None:
    record = {**example(tmp_path), "verdict": {"verdict": "doubtful", "reasons": ["3 samples", "12.1 dB in 'boxes'"]}}
    text = words(terminal.summary(record)).strip()
    assert text.startswith("Doubtful: 3 samples; 12.1 dB in 'boxes' ! node '<x>' was promised in INT8")
    assert text.index("! node") < text.index("compiled to")
    assert words(terminal.summary(example(tmp_path))).strip().startswith("! node")


def test_the_verification_table_names_the_first_drifting_layer(tmp_path: Path) -> None:
    text = words(terminal.verification(example(tmp_path, nodes=24)["verification"]))
    assert "First drifting layer: /backbone/stage1/block0/Conv (Conv)" in text
    assert "exact" in text


def test_the_plan_lists_every_node(tmp_path: Path) -> None:
    text = words([terminal.plan_table(example(tmp_path, nodes=9))])
    assert text.count("/Relu") == 9


def test_an_inspection_is_cut_unless_everything_is_asked_for() -> None:
    found = {"nodes": 3, "empty": [], "plan": [{"node": f"n{k}", "macs": k} for k in range(100)]}
    assert "and 60 more" in words(terminal.inspection(found))
    assert "n99" in words(terminal.inspection(found, everything=True))


def test_the_terminal_shows_where_activations_spike_the_strongest_first() -> None:
    text = words(terminal.inspection(inspected()))
    assert text.index("1954") < text.index("Where they spike") < text.index("9 ×12.5")
    assert "2 (id 101) 7816" in text
    assert "depth" not in text
    assert text.index("add_1") < text.index("add_0")
