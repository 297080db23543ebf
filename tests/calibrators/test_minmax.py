"""The largest value seen, whatever it is."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from qcompiler.calibrators.minmax import MinMax
from qcompiler.statistics.histogram import Histogram


def test_minmax_is_the_largest_absolute_value() -> None:
    assert MinMax().range(Histogram.of(np.array([1, -7.25, 3], np.float32))) == 7.25


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=3),
)
def test_nothing_finite_is_clipped_and_what_is_not_finite_does_not_count(
    x: NDArray[np.float32], others: list[float]
) -> None:
    largest = float(np.abs(x).max())
    assume(largest)
    found = MinMax().range(Histogram.of(np.concatenate([x, np.array(others, np.float32)])))
    assert found == max(largest, MinMax.SMALLEST)
