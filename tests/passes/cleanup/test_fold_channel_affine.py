from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.cleanup.fold_channel_affine import FoldChannelAffine
from tests.kit.rewrite import check, check_skipped, check_untouched, model

RNG = np.random.default_rng(11)
IMAGE = {"x": (2, 4, 5, 5)}


def _normal(*shape: int) -> Any:
    return (RNG.standard_normal(shape) + 3).astype(np.float32)


W = _normal(6, 4, 3, 3)


@pytest.mark.parametrize(
    "spec",
    [
        ("Mul", "a c", "y"),
        ("Mul", "c a", "y"),
        ("Add", "a c", "y"),
        ("Add", "c a", "y"),
        ("Sub", "a c", "y"),
        ("Sub", "c a", "y"),
        ("Div", "a c", "y"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,), ()], ids=str)
def test_behind_a_conv(spec: Any, shape: tuple[int, ...]) -> None:
    proto = model(("Conv", "x w b", "a"), spec, inputs=IMAGE, weights={"w": W, "b": _normal(6), "c": _normal(*shape)})
    check(FoldChannelAffine(), proto, ops=["Conv"], tolerance=2e-6)


def test_a_whole_chain_goes_in_one_run() -> None:
    proto = model(
        ("Conv", "x w", "a"),
        ("Mul", "a c", "d"),
        ("Add", "d e", "f"),
        ("Sub", "f g", "y"),
        inputs=IMAGE,
        weights={"w": W, "c": _normal(1, 6, 1, 1), "e": _normal(1, 6, 1, 1), "g": _normal(1)},
    )
    check(FoldChannelAffine(), proto, ops=["Conv"], tolerance=2e-6)


def test_a_normalisation_behind_the_bias_goes_along() -> None:
    weights = {"w": W, "c": _normal(1, 6, 1, 1), "d": _normal(1), **{name: _normal(6) for name in "gbm"}}
    proto = model(
        ("Conv", "x w", "a"),
        ("Add", "a c", "e"),
        ("BatchNormalization", "e g b m v", "f"),
        ("Mul", "f d", "y"),
        inputs=IMAGE,
        weights={**weights, "v": np.abs(_normal(6)) + 1},
    )
    check(FoldChannelAffine(), proto, ops=["Conv"], tolerance=2e-6)


def test_behind_a_grouped_conv_transpose() -> None:
    proto = model(
        ("ConvTranspose", "x w", "a", {"group": 2}),
        ("Mul", "a c", "y"),
        inputs=IMAGE,
        weights={"w": _normal(4, 3, 2, 2), "c": _normal(1, 6, 1, 1)},
    )
    check(FoldChannelAffine(), proto, ops=["ConvTranspose"], tolerance=2e-6)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_behind_a_gemm_the_last_axis_counts(shape: tuple[int, ...]) -> None:
    proto = model(
        ("Gemm", "x w b", "a"), ("Add", "a c", "y"), weights={"w": _normal(4, 6), "b": _normal(6), "c": _normal(*shape)}
    )
    check(FoldChannelAffine(), proto, ops=["Gemm"], tolerance=2e-6)


def test_a_bias_that_another_node_reads_keeps_its_value_there() -> None:
    proto = model(
        ("Conv", "x w b", "a"),
        ("Mul", "a c", "y"),
        ("Relu", "b", "z"),
        inputs=IMAGE,
        outputs=["y", "z"],
        weights={"w": W, "b": _normal(6), "c": _normal(1, 6, 1, 1)},
    )
    check(FoldChannelAffine(), proto, ops=["Conv", "Relu"], tolerance=2e-6)


@pytest.mark.parametrize(
    ("spec", "constant", "why"),
    [
        pytest.param(("Mul", "a c", "y"), _normal(1, 1, 3, 3), "not one value per output channel", id="per position"),
        pytest.param(("Mul", "a c", "y"), _normal(3), "not one value per output channel", id="per column"),
        pytest.param(("Add", "a c", "y"), _normal(1, 1, 6, 1, 1), "not one value", id="one axis more"),
        pytest.param(("Add", "a c", "y"), _normal(2, 1, 1, 1), "not one value", id="per sample"),
        pytest.param(("Div", "c a", "y"), _normal(1, 6, 1, 1), "divides by the result", id="divided by the Conv"),
        pytest.param(("Div", "a c", "y"), np.zeros((1, 6, 1, 1), np.float32), "divides by zero", id="divided by zero"),
        pytest.param(("Mul", "a c", "y"), np.full((1, 6, 1, 1), np.inf, np.float32), "not finite", id="infinite"),
    ],
)
def test_left_alone(spec: Any, constant: Any, why: str) -> None:
    proto = model(("Conv", "x w", "a"), spec, inputs=IMAGE, weights={"w": W, "c": constant})
    check_skipped(FoldChannelAffine(), proto, why)


def test_hard_swish_reads_the_conv_twice_and_is_left_alone() -> None:
    proto = model(
        ("Conv", "x w", "a"),
        ("Add", "a c", "d"),
        ("Clip", "d lo hi", "e"),
        ("Mul", "a e", "y"),
        inputs=IMAGE,
        weights={"w": W, "c": np.float32(3), "lo": np.float32(0), "hi": np.float32(6)},
    )
    check_skipped(FoldChannelAffine(), proto, "also read by other nodes")


def test_the_sum_of_two_convs_is_left_alone() -> None:
    proto = model(("Conv", "x w", "a"), ("Conv", "x w", "b"), ("Add", "a b", "y"), inputs=IMAGE, weights={"w": W})
    check_untouched(FoldChannelAffine(), proto)


def test_the_bias_of_a_matmul_is_left_alone() -> None:
    proto = model(("MatMul", "x w", "a"), ("Add", "a b", "y"), weights={"w": _normal(4, 6), "b": _normal(6)})
    check_untouched(FoldChannelAffine(), proto)
