"""Weights that are made when somebody looks have the numbers, the type and the shape of those made beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.compiler.content import digest
from qcompiler.ir import made
from qcompiler.ir.gs_classes import Constant
from qcompiler.support import memory

RNG = np.random.default_rng(5)
STORED = RNG.standard_normal((24, 40)).astype(np.float16)
WIDE = STORED.astype(np.float32)
FACTOR = RNG.uniform(0.5, 2, (24, 1)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_are_widened_exactly(dtype: Any) -> None:
    one = made.WidenedWeights(STORED.astype(dtype))
    assert (one.shape, one.dtype, one.size, one.nbytes) == ((24, 40), np.dtype(np.float32), 960, 3840)
    np.testing.assert_array_equal(one.load(), STORED.astype(dtype).astype(np.float32))
    assert not one.load().flags.writeable


def test_factors_are_taken_one_after_the_other() -> None:
    one = made.ScaledWeights(made.WidenedWeights(STORED), ((FACTOR, True), (FACTOR.T[:, :1], False)))
    np.testing.assert_array_equal(one.load(), WIDE * FACTOR / FACTOR.T[:, :1])


def test_rounding_holds_the_bounds() -> None:
    one = made.RoundedWeights(WIDE * 1e5, np.dtype(np.float16), (-3e4, 3e4))
    expected = np.clip(WIDE * 1e5, -3e4, 3e4).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(one.load(), expected)
    assert np.isinf(made.RoundedWeights(WIDE * 1e5, np.dtype(np.float16), None).load()).any()


@pytest.mark.parametrize(("axis", "block", "count"), [(0, 0, 24), (1, 0, 40), (1, 0, 1), (0, 8, 3)])
def test_scales_lie_along_their_axis_or_are_repeated_in_blocks(axis: int, block: int, count: int) -> None:
    stored = RNG.integers(-128, 128, (24, 40)).astype(np.int8)
    scale = RNG.uniform(0.1, 1, (count, 40) if block else count).astype(np.float32)
    zero = np.full(scale.shape, 3, np.int8)
    whole = np.repeat(scale, block, 0) if block else scale.reshape(*[-1 if at == axis else 1 for at in range(2)])
    expected = ((stored.astype(np.float32) - 3) * whole).astype(np.float16).astype(np.float32)
    one = made.DequantizedWeights(stored, scale, zero, axis, block, np.dtype(np.float16))
    np.testing.assert_array_equal(one.load(), expected)


def test_a_constant_keeps_nothing_of_what_it_makes() -> None:
    constant = Constant("w", made.WidenedWeights(STORED))
    assert constant.values is not constant.values
    assert (tuple(constant.shape), constant.dtype) == ((24, 40), np.float32)
    constant.values = WIDE
    assert constant.values is WIDE


def test_the_content_is_that_of_the_parts() -> None:
    one, same = made.WidenedWeights(STORED), made.WidenedWeights(STORED.copy())
    assert digest(one) == digest(same)
    assert digest(made.ScaledWeights(one, ((FACTOR, True),))) != digest(made.ScaledWeights(one, ((FACTOR, False),)))
    assert digest(one) != digest(made.WidenedWeights(STORED[::-1].copy()))


def test_only_what_is_large_is_made_later_and_only_where_memory_is_short(tmp_path: Path) -> None:
    large = np.zeros(memory.SMALLEST, np.uint8)
    assert not made.later(large)
    with memory.limited(8, tmp_path):
        memory.weigh(8)
        assert made.later(large)
        assert not made.later(large[1:])


@pytest.mark.parametrize(("axis", "block"), [(0, 0), (1, 0), (0, 8), (1, 8)])
def test_pieces_of_weights_are_the_whole(axis: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = RNG.integers(-128, 128, (24, 40)).astype(np.int8)
    shape = {(0, 0): (24,), (1, 0): (40,), (0, 8): (3, 40), (1, 8): (24, 5)}[axis, block]
    scale, zero = RNG.uniform(0.1, 1, shape).astype(np.float32), RNG.integers(-3, 3, shape).astype(np.int8)
    whole = made.DequantizedWeights(stored, scale, zero, axis, block, np.dtype(np.float16)).load()
    lossy = made.RoundedWeights(WIDE, np.dtype(np.float16), (-1, 1)).load()
    monkeypatch.setattr(made, "PIECE", 4 * 40 * 5)  # five rows
    one = made.DequantizedWeights(stored, scale, zero, axis, block, np.dtype(np.float16))
    np.testing.assert_array_equal(one.load(), whole)
    np.testing.assert_array_equal(made.RoundedWeights(WIDE, np.dtype(np.float16), (-1, 1)).load(), lossy)
