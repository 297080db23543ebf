"""Two compilations side by side: every figure on the screen is one of them, and what is equal is not listed."""

from __future__ import annotations

import re

import pytest

from qcompiler.report.questions.diff import SHOWN, terminal
from qcompiler.tools.diff import diff
from tests.kit.report.pages import words
from tests.kit.tools.stored import KINDS, ODD, figures_in, spelled, stored


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_on_the_screen_is_one_of_the_difference(kind: str) -> None:
    found = diff(stored("int8"), stored(kind)).to_json()
    text = words(terminal(found, everything=True))
    cut = {figure for row in found["source"] for side in "ab" for figure in figures_in(str(row[side])[:12])}
    known = spelled(found) | cut | set(re.findall(r"and (\d+) more", text))
    assert set(figures_in(text)) - known == set()


def test_what_is_the_same_says_so_in_a_line() -> None:
    text = words(terminal(diff(stored("int8"), stored("int8")).to_json()))
    assert "the same, times apart" in text
    assert not any(word in text for word in ("Accuracy", "Precision", "Ranges", "warning"))


def test_what_changed_is_shown_with_both_sides() -> None:
    other = stored("fp8")
    other["prediction"] = {"sms": {"sm89": {"engine_us": 30.0}}}
    one = stored("int8")
    one["prediction"] = {"sms": {"sm89": {"engine_us": 24.0}}}
    other["warnings"] = ["odd <b>"]
    text = words(terminal(diff(one, other, fail_on=["time"]).to_json()))
    for piece in (
        "different in model, data or target, recipe, precision, ranges, accuracy, verdict, size, predicted time",
        "! worse: predicted time on sm89 went from 24.0 to 30.0 µs",
        "predicted on sm89 24 µs → 30 µs (× 1.25)",
        "recipe precision int8 → fp8",
        ODD["c1"],
        "int8",
        "+ warning: odd <b>",
    ):
        assert piece in text, piece


def test_long_tables_are_cut_unless_everything_is_asked_for() -> None:
    one, other = stored("int8"), stored("int8")
    row = one["quantizers"][0]
    one["quantizers"] = [{**row, "tensor": f"t{k}"} for k in range(SHOWN + 3)]
    other["quantizers"] = [{**row, "tensor": f"t{k}", "amax": 2 * row["amax"]} for k in range(SHOWN + 3)]
    found = diff(one, other).to_json()
    assert "… and 3 more: --all lists them" in words(terminal(found))
    assert f"t{SHOWN + 2}" in words(terminal(found, everything=True))


def test_what_only_one_quantizes_is_named_in_a_line() -> None:
    other = stored("int8")
    gone = other["quantizers"].pop(0)["tensor"]
    found = diff(stored("int8"), other).to_json()
    assert f"only A quantizes {gone} (" in words(terminal(found))
    assert "Ranges" not in words(terminal(found))
