"""The goal in a line, and what of a metric is held out."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.report.goal import held_out, line

METRIC: dict[str, Any] = {
    "kind": "metric",
    "target": 0.005,
    "figure": 0.0022,
    "margin": 0.0016,
    "met": True,
    "in_sample": "",
    "why": "because",
}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (METRIC, "metric loses at most 0.50 %: held with 0.22 % ± 0.16 %; because"),
        (
            {**METRIC, "met": False, "in_sample": "few calls"},
            "metric loses at most 0.50 %: missed with 0.22 % ± 0.16 % (by all of the metric: few calls); because",
        ),
        (
            {"kind": "default", "target": 25.0, "figure": 27.25, "margin": 0.5, "met": True, "why": "so"},
            "25.0 dB at the worst view: held with 27.2 dB ± 0.5 dB; so",
        ),
        (
            {"kind": "sqnr", "target": 30.0, "figure": None, "met": None, "why": "next"},
            "30.0 dB at the worst view; next",
        ),
    ],
)
def test_the_goal_is_a_line(found: dict[str, Any], says: str) -> None:
    assert line(found) == says


@pytest.mark.parametrize(
    ("halves", "says"),
    [
        (None, ""),
        ({"split": False, "judging_loss": None}, "in sample: all of it chose"),
        ({"split": True, "judging_loss": 0.002}, "held out, the other half alone: −0.20 %"),
        ({"split": True, "judging_loss": -0.002}, "held out, the other half alone: +0.20 %"),
        ({"split": True, "judging_loss": 0.0}, "held out, the other half alone: +0.00 %"),
    ],
)
def test_what_is_held_out_is_said(halves: Any, says: str) -> None:
    assert held_out({"halves": halves}) == says
