"""Maxima of rows and columns are those of |x|, to the bit, compiled or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from qcompiler.statistics.maxima import maxima

WAYS = [False, True]  # numpy, numba
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FLOATS)


def found(
    value: NDArray[Any], keep: NDArray[np.bool_] | None = None, compiled: bool | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maxima of rows and of columns, as float32."""
    columns = np.zeros(value.shape[1], np.uint32)
    return maxima(value, keep, columns, compiled).view(np.float32), columns.view(np.float32)


@settings(max_examples=60)
@given(MATRICES, st.data())
def test_they_are_the_largest_magnitudes_of_the_rows_that_count(x: NDArray[np.float32], data: st.DataObject) -> None:
    keep = data.draw(arrays.arrays(np.bool_, len(x)))
    magnitudes = np.abs(x)
    for compiled in WAYS:
        rows, columns = found(x, keep, compiled)
        np.testing.assert_array_equal(rows, np.where(keep, magnitudes.max(axis=1), 0))
        np.testing.assert_array_equal(columns, magnitudes[keep].max(axis=0, initial=0))
        assert not np.signbit(rows).any()
        np.testing.assert_array_equal(found(x, None, compiled)[0], magnitudes.max(axis=1))


@pytest.mark.parametrize("compiled", WAYS)
def test_columns_are_raised_and_never_lowered(compiled: bool) -> None:
    columns = np.array([5, 1, 0], np.float32).view(np.uint32)
    maxima(np.array([[-2, -3, 0]], np.float32), None, columns, compiled)
    assert columns.view(np.float32).tolist() == [5, 3, 0]


@pytest.mark.parametrize("compiled", WAYS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_count_as_their_float32_values(dtype: Any, compiled: bool) -> None:
    x = np.random.default_rng(0).standard_normal((7, 5)).astype(dtype)
    rows, columns = found(x, None, compiled)
    np.testing.assert_array_equal(rows, np.abs(x.astype(np.float32)).max(axis=1))
    np.testing.assert_array_equal(columns, np.abs(x.astype(np.float32)).max(axis=0))


@pytest.mark.parametrize("compiled", WAYS)
@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (600, 900), (3, 300_000)], ids=str)
def test_matrices_of_several_chunks_and_of_none(shape: tuple[int, int], compiled: bool) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    keep = np.arange(len(x)) % 3 > 0
    rows, columns = found(x, keep, compiled)
    np.testing.assert_array_equal(rows, np.where(keep, np.abs(x).max(axis=1), 0))
    np.testing.assert_array_equal(columns, np.abs(x[keep]).max(axis=0, initial=0))


@pytest.mark.parametrize("compiled", WAYS)
def test_any_layout_is_taken_and_left_as_it_is(compiled: bool) -> None:
    x = np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    before = x.copy()
    for value in (x.T, np.asfortranarray(x), x[::2, ::-1], unaligned):
        value.flags.writeable = False
        np.testing.assert_array_equal(found(value, None, compiled)[0], np.abs(value).max(axis=1))
    np.testing.assert_array_equal(x, before)
