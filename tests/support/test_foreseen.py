"""Work that was foreseen adds up, and a clock says what it takes."""

from __future__ import annotations

import pytest

from qcompiler.support.foreseen import NOTHING, Clock, Foreseen, between

CLOCK = Clock(run=1.0, quantized=2.0, counted=3.0, observed=5.0, session=0.5)


def test_work_adds_up_and_of_memory_the_larger_counts() -> None:
    both = Foreseen(runs=3, sessions=1, copies=2) + Foreseen(runs=4, observed=2, copies=1)
    assert both == Foreseen(runs=7, observed=2, sessions=1, copies=2)
    assert both + NOTHING == both
    assert both.times(3) == Foreseen(runs=21, observed=6, sessions=3, copies=2)
    assert both.in_all == 9


def test_a_clock_prices_each_kind() -> None:
    work = Foreseen(runs=2, quantized=3, counted=1, observed=4, sessions=2, seconds=7)
    assert CLOCK.seconds(work) == 2 * 1 + 3 * 2 + 1 * 3 + 4 * 5 + 2 * 0.5 + 7
    assert CLOCK.seconds(NOTHING) == 0


def test_between_errs_by_the_same_factor_both_ways() -> None:
    middle = between(Foreseen(runs=4, copies=1), Foreseen(runs=100, sessions=6, copies=3))
    assert middle.runs == pytest.approx(20)
    assert middle.runs / 4 == 100 / middle.runs
    assert middle.sessions == 3  # of what may be nothing at all, half
    assert middle.copies == 3
