from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.products.plain_gemm import PlainGemm
from tests.kit.rewrite import check, check_untouched, model

RANDOM = np.random.default_rng(5)
W = RANDOM.standard_normal((4, 6)).astype(np.float32)
C = RANDOM.standard_normal(6).astype(np.float32)


def _gemm(reads: str, attrs: dict[str, Any], inputs: dict[str, Any] | None = None, **weights: Any) -> Any:
    given = {"w": W, "c": C, **weights}
    used = {name: value for name, value in given.items() if name in reads.split()}
    return model(("Gemm", reads, "y", attrs), inputs=inputs or {"x": ("n", 4)}, opset=18, weights=used)


def test_alpha_goes_into_the_weight_and_beta_into_the_bias() -> None:
    graph, _ = check(PlainGemm(), _gemm("x w c", {"alpha": 0.25, "beta": 3.0}), ops=["Gemm"])
    assert np.array_equal(graph.nodes[0].inputs[1].values, W * np.float32(0.25))
    assert np.array_equal(graph.nodes[0].inputs[2].values, C * np.float32(3))


def test_a_weight_that_is_read_turned_stays_turned() -> None:
    graph, _ = check(PlainGemm(), _gemm("x w", {"alpha": 0.5, "transB": 1}, w=W.T.copy()), ops=["Gemm"])
    assert graph.nodes[0].attrs == {"transB": 1}


def test_a_shared_weight_keeps_its_other_reader() -> None:
    proto = model(
        ("Gemm", "x w c", "a", {"alpha": 2.0}),
        ("Gemm", "x w c", "b"),
        ("Add", "a b", "y"),
        inputs={"x": (3, 4)},
        weights={"w": W, "c": C},
    )
    check(PlainGemm(), proto, ops=["Gemm", "Gemm", "Add"])


def test_a_bias_times_nothing_goes() -> None:
    graph, _ = check(PlainGemm(), _gemm("x w c", {"beta": 0.0}), ops=["Gemm"])
    assert [tensor.name for tensor in graph.nodes[0].inputs] == ["x", "w"]


def test_a_bias_that_must_be_there_is_zero_instead() -> None:
    proto = model(("Gemm", "x w c", "y", {"beta": 0.0}), inputs={"x": (3, 4)}, opset=9, weights={"w": W, "c": C})
    graph, _ = check(PlainGemm(), proto, ops=["Gemm"])
    assert not graph.nodes[0].inputs[2].values.any()


def test_a_bias_may_be_one_number() -> None:
    graph, _ = check(PlainGemm(), _gemm("x w c", {"beta": 0.5}, c=np.array(3, np.float32)), ops=["Gemm"])
    assert graph.nodes[0].inputs[2].values == 1.5


def test_a_computed_bias_is_multiplied_in_front() -> None:
    proto = _gemm("x w b", {"beta": 0.5}, {"x": ("n", 4), "b": ("n", 6)})
    check(PlainGemm(), proto, ops=["Mul", "Gemm"])


def test_a_turned_activation_gets_a_transpose() -> None:
    graph, _ = check(PlainGemm(), _gemm("x w c", {"transA": 1}, {"x": (4, "n")}), ops=["Transpose", "Gemm"])
    assert graph.nodes[1].attrs == {}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_a_matrix_on_the_left_comes_to_the_right(trans_a: int, trans_b: int, beta: float) -> None:
    weight = W if trans_a else W.T.copy()
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": beta}
    bias = RANDOM.standard_normal((6, 1)).astype(np.float32)
    proto = _gemm("w x c", attrs, {"x": ("n", 4) if trans_b else (4, "n")}, w=weight, c=bias)
    graph, _ = check(PlainGemm(), proto)
    product = next(node for node in graph.nodes if node.op == "MatMul")
    assert product.inputs[1].shape == (4, 6)
    assert product.name == proto.graph.node[0].name


def test_two_activations_are_left_alone() -> None:
    proto = model(("Gemm", "a b", "y", {"alpha": 0.5, "transA": 1}), inputs={"a": (4, 3), "b": (4, 5)})
    check_untouched(PlainGemm(), proto)


def test_a_plain_gemm_is_left_alone() -> None:
    check_untouched(PlainGemm(), _gemm("x w c", {"transB": 0}))
