"""Numbers of other float types as float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qcompiler.passes.types import _values as numbers
from qcompiler.support.memory import PIECE

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_number_is_widened_exactly(dtype: type) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    found = numbers.widened(every.view(dtype))
    assert found.dtype == np.float32
    exact = every.view(np.float16).astype(np.float64) if dtype is np.float16 else (every.astype("u4") << 16).view("f4")
    np.testing.assert_array_equal(found, exact)  # NaN equals NaN here
    assert not found.flags.writeable


def test_what_is_larger_than_a_piece_and_not_contiguous_comes_out_in_order() -> None:
    values = np.resize(np.arange(2001, dtype=np.float16), PIECE + 3000)[::2].reshape(-1, 2).T
    assert values.nbytes * 2 > PIECE
    assert np.array_equal(numbers.widened(values), values.astype(np.float32))


def test_a_scalar_stays_one() -> None:
    found = numbers.widened(np.array(0.5, np.float16))
    assert (found.shape, float(found)) == ((), 0.5)


def test_doubles_beyond_float32_end_where_it_ends_and_infinity_stays() -> None:
    values = np.array([-1.7e308, 1e39, -np.inf, np.nan, 1.5])
    np.testing.assert_array_equal(
        numbers.widened(values), np.array([-LARGEST, LARGEST, -np.inf, np.nan, 1.5], np.float32)
    )
    assert numbers.beyond(values) == 2
    assert numbers.beyond(np.array([1e38], np.float32)) == 0


def test_a_single_double_that_guards_a_division_does_not_vanish() -> None:
    assert float(numbers.widened(np.array([-1e-300]))[0]) == -np.finfo(np.float32).tiny
    np.testing.assert_array_equal(numbers.widened(np.array([1e-300, 0.0])), [0, 0])


def test_back_to_16_bits_what_does_not_fit_is_infinite() -> None:
    np.testing.assert_array_equal(
        numbers.as_type(np.array([1e5, 1.5], np.float32), np.dtype(np.float16)), [np.inf, 1.5]
    )
