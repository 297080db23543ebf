"""Headroom is the largest value times a factor that is never below 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.calibrators import parse
from qcompiler.calibrators.headroom import Headroom
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram

SEEN = Histogram.of(np.array([1.0, -3.0, 2.0], np.float32))


@pytest.mark.parametrize("times", [1.0, 1.5, 4.0])
def test_it_is_the_largest_value_times_the_factor(times: float) -> None:
    assert Headroom(times).range(SEEN) == 3 * times


def test_its_text_reads_back_equal() -> None:
    assert parse("headroom{times=2.0}") == Headroom(2.0)
    assert parse(str(Headroom(1.1))) == Headroom(1.1)


@pytest.mark.parametrize("times", [0.9, -1.0, math.inf, math.nan])
def test_less_than_what_was_seen_is_no_room(times: float) -> None:
    with pytest.raises(UsageError, match="times of 1 and more"):
        Headroom(times)
