"""Plots as inline SVG: everything stays inside its frame."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qcompiler.report import svg


@pytest.mark.parametrize("layers", [1, 2, 96])
def test_plots_stay_inside_their_frame(layers: int) -> None:
    figures: list[Any] = ["inf", "-inf", None, 55.5]
    rows = [{"node": "n", "op": "Conv", "sqnr_db": figures[k % 4], "drifts": False} for k in range(layers)]
    steps = [{"share": share, "sqnr_db": value} for share, value in ((1.0, "-inf"), (0.0, "inf"))]
    for text in (svg.drift(rows, 12.0), svg.curve(steps, 25.0)):
        for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text):
            assert 0 <= float(x) <= svg.WIDTH
            assert 0 <= float(y) <= svg.HEIGHT
    assert svg.drift([], 12.0) == svg.curve([], None) == ""
