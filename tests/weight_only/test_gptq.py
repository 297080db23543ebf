"""GPTQ: less error at the outputs than rounding to nearest, and the same integers as the plain procedure."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import DataError
from qcompiler.numerics import blocks
from qcompiler.weight_only import gptq
from tests.kit.weight_only.correlated import DEPTH, SIZE, Array, inputs, weight


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
