from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.numerics.rounding import grid, span


def test_a_span_is_what_was_seen_within_the_clipping_range() -> None:
    assert span(2.0, (-0.5, 7.0)) == (-0.5, 2.0)
    assert span(2.0, (-9.0, 1.0)) == (-2.0, 1.0)


def test_a_span_contains_zero() -> None:
    assert span(3.0, (1.0, 4.0)) == (0.0, 3.0)
    assert span(4.0, (-4.0, -1.0)) == (-4.0, 0.0)


def test_a_range_beyond_what_was_seen_widens_both_sides_alike() -> None:
    assert span(8.0, (-1.0, 4.0)) == (-2.0, 8.0)
    assert span(8.0, (0.0, 0.0)) == (0.0, 0.0)


@given(st.floats(0, 1e4, width=32), st.floats(2**-10, 1e4, width=32))
def test_the_grid_reaches_both_ends_to_half_a_step(below: float, high: float) -> None:
    scale, zero = grid(-below, high)
    assert 0 <= zero <= 255
    assert -zero * float(scale) == pytest.approx(-below, abs=float(scale) * 0.51)
    assert (255 - zero) * float(scale) == pytest.approx(high, abs=float(scale) * 0.51)


def test_the_grid_of_a_clipped_tensor_stays_within_its_bound() -> None:
    for high in (1.0, 6.0, 0.1, 3.3):
        scale, zero = grid(0.0, high)
        assert zero == 0
        assert np.float32(255) * scale <= high


def test_a_tensor_of_zeros_has_a_grid() -> None:
    scale, zero = grid(0.0, 0.0)
    assert scale > 0
    assert zero == 0
