"""What is said of inputs: that they never changed, were one number, or count positions; in any order of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.data.sights import Sight, Sights

RNG = np.random.default_rng(0)
ONCE = RNG.standard_normal((1, 4)).astype(np.float32)


def sight(samples: Sequence[Any]) -> Sight:
    seen = Sights()
    for one in samples:
        seen.watch({"x": one})
    return seen.found["x"]


@pytest.mark.parametrize(
    ("samples", "value", "same"),
    [
        ([np.zeros((1, 3))] * 4, 0.0, True),
        ([np.zeros((1, 3)), np.zeros((1, 5))], 0.0, False),
        ([np.ones((1, 3), bool)] * 2, 1.0, True),
        ([np.full((1, 2), 0.5, ml_dtypes.bfloat16)] * 2, 0.5, True),
        ([np.zeros((1, 0)), np.zeros((1, 3))], 0.0, False),
        ([ONCE, ONCE.copy()], None, True),
    ],
    ids=["zeros", "of two lengths", "mask", "bfloat16", "empty first", "one content"],
)
def test_an_input_that_never_changed_is_fixed(samples: Sequence[Any], value: float | None, same: bool) -> None:
    for order in (samples, samples[::-1]):
        found = sight(order)
        assert (found.samples, found.value, found.same, found.fixed) == (len(samples), value, same, True)


@pytest.mark.parametrize(
    "samples",
    [
        [ONCE, -ONCE],
        [np.zeros((1, 4)), ONCE],
        [np.zeros((1, 4)), np.ones((1, 4))],
        [ONCE, ONCE[:, :2]],
        [np.full((1, 2), np.nan)] * 2,
        [np.zeros((1, 0))] * 2,
        [np.array(["a"]), np.array(["a"])],
        [[ONCE], [ONCE]],
        [None, None],
    ],
    ids=["values", "zeros but once", "numbers", "lengths", "nan", "empty", "texts", "sequences", "optionals"],
)
def test_an_input_that_changed_or_that_nothing_is_known_of_is_not(samples: Sequence[Any]) -> None:
    assert not sight(samples).fixed
    assert not sight(samples[::-1]).fixed


def test_positions_are_the_same_in_all_samples_by_nature() -> None:
    found = sight([np.arange(6)[None]] * 3)
    assert found.same
    assert found.counts
    assert not found.fixed
    assert not sight([np.arange(6, dtype=np.float32)[None]] * 3).counts


def test_samples_may_be_views_of_a_buffer_that_is_used_again() -> None:
    buffer, seen = np.zeros((1, 2)), Sights()
    for number in range(3):
        buffer[:] = number
        seen.watch({"x": buffer})
    assert not seen.found["x"].fixed
