"""What measured seconds say."""

from __future__ import annotations

import pytest

from qcompiler.tools.bench import timings as figures


def test_ratios_are_made_within_rounds() -> None:
    slow, fast = [[2.0, 2.0], [20.0, 20.0], [4.0, 4.0]], [[1.0, 1.0], [10.0, 10.0], [2.0, 2.0]]
    found = figures.seconds(fast, slow)  # the machine was ten times slower in the second round: for both
    assert found.better == figures.Ratio(2.0, 2.0, 2.0)
    assert (found.median, found.p50, found.count) == (2.0, 2.0, 6)
    assert figures.rates([10.0, 30.0, 20.0], [10.0, 10.0, 10.0], "x/s").better == figures.Ratio(2.0, 1.5, 2.5)
    assert figures.seconds(slow, None).better is None


def test_spread_is_the_distance_of_the_quartiles() -> None:
    found = figures.seconds([[1.0], [2.0], [3.0], [4.0], [5.0]], None)
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.spread == pytest.approx(2 / 3)


def test_agreement_counts_common_places_only() -> None:
    first = [(7, [1, 2]), (8, [3, 4]), (9, [5, 6])]
    assert figures.agreement([(7, [1, 9]), (9, [5, 6]), (11, [0, 0])], first) == 0.75
    assert figures.agreement([(11, [0, 0])], first) is None
