"""GPTQ and AWQ: less error at the outputs than rounding to nearest, and the same integers as the plain procedure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.errors import DataError
from qcompiler.numerics import blocks
from qcompiler.statistics.rows import Rows
from qcompiler.weight_only import awq, gptq

Array = np.ndarray[Any, np.dtype[Any]]
DEPTH, WIDTH, SIZE = 96, 24, 32


def inputs(seed: int = 0, rows: int = 400) -> Array:
    """Correlated inputs with a few large channels."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, DEPTH)) @ (np.eye(DEPTH) + 0.3 * random.standard_normal((DEPTH, DEPTH)))
    mixed[:, :4] *= 12
    return mixed.astype(np.float32)


def weight(seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((DEPTH, WIDTH)).astype(np.float32)


def hessian(x: Array) -> Array:
    return np.asarray(x.T.astype(np.float64) @ x)


def error(w: Array, stored: blocks.Blocks, h: Array) -> float:
    gap = (blocks.dequantize(stored) - w).astype(np.float64)
    return float(np.einsum("kn,kj,jn->", gap, h, gap))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("size", [None, SIZE])
def test_gptq_errs_less_than_rounding_to_nearest(size: int | None, act_order: bool) -> None:
    w, h = weight(), hessian(inputs())
    plain = error(w, blocks.clip_by_error(w, size, "int4", np.diag(h)), h)
    found = gptq.gptq(w, h, size=size, format="int4", act_order=act_order)
    assert error(w, found, h) < 0.7 * plain


def test_sweeps_of_coordinate_descent_never_add_error() -> None:
    w, h = weight(), hessian(inputs())
    without, behind = (gptq.gptq(w, h, size=SIZE, format="int4", sweeps=sweeps) for sweeps in (0, 3))
    assert error(w, behind, h) <= error(w, without, h)


def test_inputs_without_correlation_leave_nothing_to_compensate() -> None:
    w = weight()
    h = np.eye(DEPTH)
    found = gptq.gptq(w, h, size=SIZE, format="int4")
    nearest = blocks.clip_by_error(w, SIZE, "int4", None)
    assert error(w, found, h) == pytest.approx(error(w, nearest, h), rel=0.02)


def test_dead_channels_and_singular_hessians_are_survived() -> None:
    x = inputs(rows=10)
    x[:, 7] = 0
    found = gptq.gptq(weight(), hessian(x), size=SIZE, format="int4")
    assert np.isfinite(blocks.dequantize(found)).all()


def test_a_factor_serves_several_layers() -> None:
    h = hessian(inputs())
    factor = gptq.factor(h, size=SIZE)
    for seed in (1, 2):
        alone = gptq.gptq(weight(seed), h, size=SIZE, format="int4")
        shared = gptq.gptq(weight(seed), factor, size=SIZE, format="int4")
        assert (alone.values == shared.values).all()


def test_a_hessian_with_nan_is_the_data_s_fault() -> None:
    h = hessian(inputs())
    h[3, 3] = np.nan
    with pytest.raises(DataError):
        gptq.gptq(weight(), h, size=SIZE, format="int4")


def rows(x: Array) -> Rows:
    return Rows(x, np.ones(len(x), np.float32))


def test_awq_scales_lower_the_error_at_the_outputs() -> None:
    x, w = inputs(), weight()
    found = awq.find_scales(rows(x), [w], size=SIZE, format="int4")
    plain = blocks.round_to_nearest(w, SIZE, "int4")
    scaled = blocks.round_to_nearest(w * found.scales[:, None], SIZE, "int4")
    exact = x @ w
    before = float(((x @ blocks.dequantize(plain) - exact) ** 2).sum())
    after = float(((x / found.scales @ blocks.dequantize(scaled) - exact) ** 2).sum())
    assert found.ratio is not None
    assert after < before
    assert found.gain_db == pytest.approx(10 * np.log10(before / after), abs=0.05)


def test_awq_keeps_tied_channels_on_one_scale() -> None:
    classes = np.arange(DEPTH) // 2
    found = awq.find_scales(rows(inputs()), [weight(), weight(2)], size=SIZE, format="int4", classes=classes)
    assert (found.scales[0::2] == found.scales[1::2]).all()


def test_awq_leaves_alone_what_it_cannot_better() -> None:
    x = np.abs(np.random.default_rng(0).standard_normal((64, DEPTH))).astype(np.float32)
    grid = blocks.dequantize(blocks.round_to_nearest(weight(), SIZE, "int4"))
    found = awq.find_scales(rows(x), [grid], size=SIZE, format="int4")
    assert found.ratio is None
    assert (found.scales == 1).all()
    assert found.gain_db == 0.0


def test_the_clip_search_never_errs_more_at_the_outputs_of_a_block() -> None:
    x, w = inputs(), weight()
    w[5] *= 20
    plain, clipped = blocks.round_to_nearest(w, SIZE, "int4"), awq.clip(w, rows(x), size=SIZE, format="int4")
    for part in blocks.spans(DEPTH, SIZE):
        errors = [((x[:, part] @ (blocks.dequantize(one) - w)[part]) ** 2).sum(axis=0) for one in (plain, clipped)]
        assert (errors[1] <= errors[0] * (1 + 1e-4)).all()
