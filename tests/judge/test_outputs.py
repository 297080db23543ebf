"""What is counted of an output: error, agreement, what is not finite; padding counts nowhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.data.padding import Padding
from qcompiler.judge.outputs import OutputTally, failures_of

NONE = Padding({})


def test_error_and_agreement_are_pooled_over_samples() -> None:
    tally = OutputTally("y")
    tally.add(np.array([[1.0, 3.0]], np.float32), np.array([[1.0, 2.0]], np.float32), NONE)
    tally.add(np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 2.0]], np.float32), NONE)
    found = tally.result()
    assert found.elements == 4
    assert found.top1 == 0.5
    assert found.max_abs == 2.0
    assert found.sqnr_db == pytest.approx(10 * math.log10(14 / 9))
    assert not list(failures_of(found, reshaped=True))


def test_whole_numbers_are_equal_or_not() -> None:
    tally = OutputTally("classes")
    tally.add(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]), NONE)
    assert tally.result().equal == 0.75
    assert tally.result().sqnr_db is None


def test_what_is_finite_in_the_float_model_alone_is_a_failure() -> None:
    tally = OutputTally("y")
    tally.add(np.array([1.0, -np.inf], np.float32), np.array([np.nan, 0.0], np.float32), NONE)
    found = tally.result()
    assert (found.not_finite, found.unlike) == (1, 1)
    assert found.sqnr_db == -math.inf
    told = list(failures_of(found, reshaped=True))
    assert len(told) == 2
    assert all("'y'" in one for one in told)


def test_another_shape_is_told_where_nothing_could_be_compared() -> None:
    tally = OutputTally("y")
    tally.add(np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32), NONE)
    found = tally.result()
    assert found.reshaped == 1
    assert list(failures_of(found, reshaped=True))
    assert not list(failures_of(found, reshaped=False))
