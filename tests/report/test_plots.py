"""Plots by depth and of trades: everything stays inside its frame, and nothing is drawn of nothing."""

from __future__ import annotations

import re

import pytest

from qcompiler.report import plots, svg


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [0.0, 1.0],
        [5.0, 5.0],
        [1e-30, 1e30],
        [float("inf"), 2.0],
        [None, 1e-3, 7.0],
        [1.0 + k for k in range(300)],
    ],
)
def test_plots_by_depth_stay_inside_their_frame(values: list[float | None]) -> None:
    points = [plots.Point(value, "t", False) for value in values]
    texts = [plots.by_depth([plots.Series("first", points)], "a", "b", limit) for limit in (None, 10.0, 1e5)]
    texts.append(plots.alphas(points))
    texts.append(
        plots.trade([{"alpha": 1, "share": k / len(values), "sqnr_db": value} for k, value in enumerate(values)], 0)
    )
    for text in texts:
        spots = re.findall(r'cx="([-\d.naif]+)" cy="([-\d.naif]+)"', text)
        assert spots
        assert all(0 <= float(x) <= svg.WIDTH and 0 <= float(y) <= svg.HEIGHT for x, y in spots)
        marks = [float(y) for y in re.findall(r'y1="([-\d.]+)"', text)]
        assert all(0 <= y <= svg.HEIGHT for y in marks)


def test_a_plot_of_nothing_is_none() -> None:
    assert plots.by_depth([plots.Series("first", [plots.Point(0.0, "t", False)])], "a", "b", 10.0) == ""
    assert plots.alphas([]) == plots.trade([], 0) == ""
