"""ONNX Runtime's activations, written out and held against its own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from qcompiler.runtime.session import Session
from tests.kit.rewrite import check_skipped, check_written, model, to_graph

RNG = np.random.default_rng(0)
BIAS = RNG.standard_normal(8).astype(np.float32)
X = {"x": ("batch", "rows", 8)}


@pytest.mark.parametrize(
    ("op", "reads", "attrs"),
    [
        ("Gelu", "x", {}),
        ("BiasGelu", "x b", {}),
        ("FastGelu", "x", {}),
        ("FastGelu", "x b", {}),
        ("QuickGelu", "x", {}),
        ("QuickGelu", "x", {"alpha": 1.0}),
        ("QuickGelu", "x", {"alpha": 0.7}),
    ],
)
def test_an_activation_is_what_onnxruntime_computes(op: str, reads: str, attrs: dict[str, Any]) -> None:
    weights = {"b": BIAS} if " b" in reads else {}
    check_written(WriteOutFused(), model((op, reads, "y", attrs, MICROSOFT), inputs=X, weights=weights, opset=21))


def _plain(op: str, reads: str, attrs: dict[str, Any], feeds: dict[str, Any], **weights: Any) -> Any:
    """What is written for an operator that ONNX Runtime has on GPUs only."""
    inputs = {name: value.shape for name, value in feeds.items()}
    graph = to_graph(model((op, reads, "y", attrs, MICROSOFT), inputs=inputs, weights=weights, opset=21))
    assert WriteOutFused()(graph).changed == 1
    return Session(graph).run(feeds)["y"]


def _gelu(x: Any) -> Any:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def test_halves_of_a_sum_are_multiplied() -> None:
    x = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    left, right = np.split(x + BIAS, 2, axis=-1)
    np.testing.assert_allclose(_plain("BiasSplitGelu", "x b", {}, {"x": x}, b=BIAS), left * _gelu(right), atol=1e-5)


def test_sums() -> None:
    x, skip = (RNG.standard_normal((2, 3, 8)).astype(np.float32) for _ in range(2))
    both = {"x": x, "s": skip}
    np.testing.assert_allclose(_plain("BiasAdd", "x b s", {}, both, b=BIAS), x + BIAS + skip, rtol=1e-6)
    np.testing.assert_allclose(_plain("BiasDropout", "x b s", {"seed": 1}, both, b=BIAS), x + BIAS + skip, rtol=1e-6)


def test_probabilities_of_a_sum() -> None:
    x = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    wide = np.exp(x + BIAS)
    found = _plain("BiasSoftmax", "x b", {"axis": 2, "is_inner_broadcast": 1}, {"x": x}, b=BIAS)
    np.testing.assert_allclose(found, wide / wide.sum(-1, keepdims=True), rtol=1e-5)


def test_probabilities_over_more_than_one_axis_stay() -> None:
    proto = model(
        ("BiasSoftmax", "x b", "y", {"axis": 1, "is_inner_broadcast": 1}, MICROSOFT),
        inputs=X, weights={"b": BIAS}, opset=21,
    )  # fmt: skip
    check_skipped(WriteOutFused(), proto, "has axis=1 and reads 3 of them")


def test_a_mask_of_what_was_dropped_stays() -> None:
    proto = model(
        ("BiasDropout", "x b", "y m", {}, MICROSOFT), inputs=X, weights={"b": BIAS}, outputs=("y", "m"), opset=21
    )
    check_skipped(WriteOutFused(), proto, "gives the output 'mask'")
