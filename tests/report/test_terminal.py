"""Tables for the terminal: what matters is in them."""

from __future__ import annotations

from pathlib import Path

from qcompiler.report import html, terminal
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


def test_the_verification_table_says_where_the_error_begins(tmp_path: Path) -> None:
    record = example(tmp_path, nodes=24)["verification"]
    text = words(terminal.verification({**record, "remarks": ["compared as it is"]}))
    assert "It begins at node '/backbone/stage1/block0/Conv' (Conv)." in text
    assert "compared as it is" in text
    assert "exact" in text


def test_a_summary_that_is_not_good_says_where_the_error_begins(tmp_path: Path) -> None:
    record = example(tmp_path, nodes=24)
    for word, told in (("doubtful", True), ("broken", True), ("holds", False)):
        text = words(terminal.summary({**record, "verdict": {"verdict": word, "reasons": []}}))
        assert ("It begins at node" in text) is told


def test_layers_with_stored_weights_are_not_listed_among_those_that_stay_float(tmp_path: Path) -> None:
    record = example(tmp_path, nodes=9)
    plan = [{**one, "precision": "int4-weight" if one["op"] == "Conv" else one["precision"]} for one in record["plan"]]
    assert "not quantized" not in words(terminal.summary({**record, "plan": plan}))
    assert "not quantized" in words(terminal.summary(record))


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


def test_how_data_was_prepared_and_where_ranges_come_from_is_told(tmp_path: Path) -> None:
    found = {
        **example(tmp_path),
        "data": {"name": "folder 'a'", "feeds": 8, "files": "8 of 90 pictures", "preprocess": "stretched to 8x8"},
        "ranges": {"name": "calib.cache", "kind": "a calibration table of TensorRT", "given": 7},
    }
    text = words(terminal.summary(found))
    assert "8 of 90 pictures: stretched to 8x8" in text
    assert "7 given by calib.cache, a calibration table of TensorRT" in text
    page = html.render(found)
    assert "(8 of 90 pictures: stretched to 8x8)" in page
    assert "7 given by calib.cache" in page
