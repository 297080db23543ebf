"""Weights in blocks: the grid, what is stored, and that searching for a range never makes it worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import ModelError
from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import LARGEST, LOWEST, Format

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 9), st.sampled_from([None, 16, 32]), st.integers(0, 999))


def weight(depth: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_t(4, (depth, width)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.sampled_from(["int4", "int8"]))
def test_values_lie_on_the_grid_and_scales_are_positive_numbers_of_fp16(
    shape: tuple[int, int, int | None, int], format: Format
) -> None:
    depth, width, size, seed = shape
    found = blocks.round_to_nearest(weight(depth, width, seed), size, format)
    assert found.values.min() >= LOWEST[format]
    assert found.values.max() <= LARGEST[format]
    assert (found.scales > 0).all()
    assert (found.scales.astype(np.float16).astype(np.float32) == found.scales).all()
    assert found.scales.shape == ((width,) if size is None else (-(-depth // size), width))


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_nearest_errs_by_half_a_step_at_most(shape: tuple[int, int, int | None, int]) -> None:
    depth, width, size, seed = shape
    w = weight(depth, width, seed)
    found = blocks.round_to_nearest(w, size, "int4", half=False)
    steps = np.repeat(np.atleast_2d(found.scales), size or depth, axis=0)[:depth]
    assert (np.abs(blocks.dequantize(found) - w) <= steps * 0.5001).all()


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.booleans())
def test_clipping_never_errs_more_than_nearest(shape: tuple[int, int, int | None, int], weighted: bool) -> None:
    depth, width, size, seed = shape
    w = weight(depth, width, seed)
    importance = np.random.default_rng(seed).gamma(1, 1, depth) if weighted else np.ones(depth)
    plain = blocks.round_to_nearest(w, size, "int4")
    clipped = blocks.clip_by_error(w, size, "int4", importance)
    errors = [float((importance[:, None] * (blocks.dequantize(one) - w) ** 2).sum()) for one in (plain, clipped)]
    assert errors[1] <= errors[0] * (1 + 1e-5)


def test_a_heavy_tail_is_clipped() -> None:
    w = np.full((128, 1), 0.1, np.float32) * np.random.default_rng(0).choice([-1, 1], (128, 1)).astype(np.float32)
    w[0] = 1.0
    plain, clipped = blocks.round_to_nearest(w, 128, "int4"), blocks.clip_by_error(w, 128, "int4", None)
    assert float(clipped.scales[0, 0]) < float(plain.scales[0, 0])


def test_blocks_have_scales_of_their_own_and_the_last_has_what_is_left() -> None:
    w = np.concatenate([np.full((32, 1), 1.0), np.full((32, 1), 100.0), np.full((5, 1), 0.01)]).astype(np.float32)
    found = blocks.round_to_nearest(w, 32, "int4")
    assert np.allclose(blocks.dequantize(found), w, rtol=2e-3)


def test_zeros_stay_zeros() -> None:
    found = blocks.round_to_nearest(np.zeros((16, 3), np.float32), 16, "int4")
    assert not blocks.dequantize(found).any()
    assert (found.scales > 0).all()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (np.zeros((2, 3, 4), np.float32), "must be a matrix"),
        (np.array([[np.nan]], np.float32), "holds NaN or infinity"),
        (np.array([[1e9]], np.float32), "FP16 ends at 65504"),
    ],
)
def test_what_cannot_be_stored_is_refused(bad: np.ndarray[Any, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        blocks.round_to_nearest(bad, None, "int4")
