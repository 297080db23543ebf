"""ONNX Runtime's attentions, written out and held against its own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit.rewrite import check_skipped, check_written, model, to_graph

RNG = np.random.default_rng(0)
I32 = np.int32


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def zeros_and_ones(*shape: int) -> Any:
    return RNG.integers(0, 2, shape).astype(I32)


WEIGHTS = {"w": draw(8, 24), "b": draw(24)}
MASKS: dict[str, tuple[Any, Any]] = {
    "ends": (("batch",), np.array([3, 5], I32)),
    "keys": (("batch", "rows"), np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], I32)),
    "nothing is seen": (("batch", "rows"), np.zeros((2, 5), I32)),
    "pairs": (("batch", "rows", "rows"), zeros_and_ones(2, 5, 5)),
}


def joint(reads: str, attrs: dict[str, Any], more: dict[str, Any], feeds: dict[str, Any], writes: str = "y") -> None:
    """Attention with two heads over x [2, 5, 8]."""
    proto = model(
        ("Attention", reads, writes, {"num_heads": 2, **attrs}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8), **more}, weights=WEIGHTS, outputs=writes.split(), opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto, {"x": draw(2, 5, 8), **feeds})
    found = [node for node in graph.nodes if node.op == "MatMul"]
    assert [node.inputs[1].shape for node in found[:3]] == [(8, 8)] * 3  # each projection has a weight of its own


@pytest.mark.parametrize("attrs", [{}, {"unidirectional": 1}, {"scale": 0.7}])
def test_projections_stand_apart(attrs: dict[str, Any]) -> None:
    joint("x w b", attrs, {}, {})


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_padding_is_hidden(mask: str, unidirectional: int) -> None:
    shape, value = MASKS[mask]
    joint("x w b m", {"unidirectional": unidirectional}, {"m": (I32, shape)}, {"m": value})


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_padding_on_both_sides(unidirectional: int) -> None:
    more = {"x": (2, 5, 8), "m": (I32, (4,))}
    joint("x w b m", {"unidirectional": unidirectional}, more, {"m": np.array([3, 5, 1, 2], I32)})


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_a_cache_in_front(masked: bool, unidirectional: int) -> None:
    more: dict[str, Any] = {"p": (2, "batch", 2, "past", 4)} | ({"m": (I32, ("batch", "all"))} if masked else {})
    feeds = {"p": draw(2, 2, 2, 3, 4)} | ({"m": zeros_and_ones(2, 8)} if masked else {})
    attrs = {"unidirectional": unidirectional, "mask_filter_value": -3.0}
    joint(f"x w b {'m' if masked else '_'} p", attrs, more, feeds, "y present")


def test_a_bias_of_pairs() -> None:
    joint("x w b _ _ a", {"unidirectional": 1}, {"a": (1, 2, "rows", "rows")}, {"a": draw(1, 2, 5, 5)})


def test_values_of_another_width() -> None:
    proto = model(
        ("Attention", "x w b", "y", {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8)}, weights={"w": draw(8, 20), "b": draw(20)}, opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_a_weight_that_is_computed_is_multiplied_as_a_whole() -> None:
    proto = model(
        ("Relu", "v", "w"), ("Attention", "x w b", "y", {"num_heads": 2}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8), "v": (8, 24)}, weights={"b": WEIGHTS["b"]}, opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_integers_stand_behind_dequantizers() -> None:
    proto = model(
        ("DynamicQuantizeLinear", "x", "q s z"),
        ("QAttention", "q w b s ws m z wz", "y", {"num_heads": 2}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8), "m": (I32, ("batch",))},
        weights={
            "w": RNG.integers(-90, 90, (8, 24)).astype(np.int8), "b": draw(24),
            "ws": np.float32(0.01), "wz": np.int8(0),
        },
        opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto, {"x": draw(2, 5, 8), "m": np.array([3, 5], I32)})


# --- Behind its projections -------------------------------------------------------------------------------------------

CROSS = {"q": ("batch", "rows", 8), "k": ("batch", "keys", 8), "v": ("batch", "keys", 6)}
CROSS_FEEDS = {"q": draw(2, 5, 8), "k": draw(2, 7, 8), "v": draw(2, 7, 6)}
OWN = {"q": ("batch", "rows", 8), "k": ("batch", "rows", 8), "v": ("batch", "rows", 8)}
OWN_FEEDS = {"q": draw(2, 5, 8), "k": draw(2, 5, 8), "v": draw(2, 5, 8)}
PAST = {"pk": ("batch", 2, "past", 4), "pv": ("batch", 2, "past", 4)}
PAST_FEEDS = {"pk": draw(2, 2, 3, 4), "pv": draw(2, 2, 3, 4)}


def apart(
    reads: str, attrs: dict[str, Any], inputs: dict[str, Any], feeds: dict[str, Any], writes: str = "y", **weights: Any
) -> None:
    """MultiHeadAttention with two heads."""
    proto = model(
        ("MultiHeadAttention", reads, writes, {"num_heads": 2, **attrs}, MICROSOFT),
        inputs=inputs, weights=weights, outputs=[one for one in writes.split() if one != "_"], opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto, feeds)


@pytest.mark.parametrize("attrs", [{}, {"scale": 0.3}])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("writes", ["y", "y nk nv"])
def test_heads_attend(attrs: dict[str, Any], biased: bool, writes: str) -> None:
    bias = {"b": draw(22)} if biased else {}
    apart("q k v b" if biased else "q k v", attrs, CROSS, CROSS_FEEDS, writes, **bias)


@pytest.mark.parametrize("inputs", ["own", "cross"])
def test_what_comes_later_is_hidden(inputs: str) -> None:
    kinds = {"own": (OWN, OWN_FEEDS), "cross": (CROSS, CROSS_FEEDS)}
    apart("q k v", {"unidirectional": 1}, *kinds[inputs])


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (("batch",), np.array([3, 6], I32)),
        (("batch", "keys"), zeros_and_ones(2, 7)),
        (("batch", "rows", "keys"), zeros_and_ones(2, 5, 7)),
    ],
)
def test_keys_that_are_padding(shape: Any, value: Any, unidirectional: int) -> None:
    inputs, feeds = {**CROSS, "m": (I32, shape)}, {**CROSS_FEEDS, "m": value}
    apart("q k v _ m", {"unidirectional": unidirectional}, inputs, feeds)


def test_a_bias_and_padding() -> None:
    inputs = {**CROSS, "m": (I32, ("batch", "keys")), "a": ("batch", 1, "rows", "keys")}
    apart("q k v _ m a", {}, inputs, {**CROSS_FEEDS, "m": zeros_and_ones(2, 7), "a": draw(2, 1, 5, 7)})


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_keys_and_values_of_a_cache(unidirectional: int) -> None:
    attrs = {"unidirectional": unidirectional}
    apart("q k v _ _ _ pk pv", attrs, {**OWN, **PAST}, {**OWN_FEEDS, **PAST_FEEDS}, "y nk nv")


def test_keys_and_values_by_head() -> None:
    inputs = {"q": OWN["q"], "k": ("batch", 2, "keys", 4), "v": ("batch", 2, "keys", 4)}
    apart("q k v", {}, inputs, {"q": draw(2, 5, 8), "k": draw(2, 2, 3, 4), "v": draw(2, 2, 3, 4)})


def _plain(q: Any, k: Any, v: Any) -> Any:
    """Two heads of four over [2, rows, heads, width], as the operator is defined."""
    products = np.einsum("bihd,bjhd->bhij", q, k) / 2
    wide = np.exp(products - products.max(-1, keepdims=True))
    return np.einsum("bhij,bjhd->bihd", wide / wide.sum(-1, keepdims=True), v).reshape(len(q), q.shape[1], -1)


def test_packed_inputs_that_the_cpu_lacks() -> None:
    whole, pair = draw(2, 5, 2, 3, 4), draw(2, 7, 2, 2, 4)
    cases: list[tuple[str, dict[str, Any], Any]] = [
        ("x", {"x": whole}, _plain(*np.moveaxis(whole, 3, 0))),
        ("q x", {"q": draw(2, 5, 8), "x": pair}, None),
    ]
    for reads, feeds, expected in cases:
        right = _plain(feeds["q"].reshape(2, 5, 2, 4), *np.moveaxis(pair, 3, 0)) if expected is None else expected
        graph = to_graph(
            model(
                ("MultiHeadAttention", reads, "y", {"num_heads": 2}, MICROSOFT),
                inputs={name: value.shape for name, value in feeds.items()}, opset=21,
            )
        )  # fmt: skip
        assert WriteOutFused()(graph).changed == 1
        np.testing.assert_allclose(Session(graph).run(feeds)["y"], right, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "reads", "attrs", "why"),
    [
        ("Attention", "x w b", {"num_heads": 2, "do_rotary": 1}, "has do_rotary=1"),
        ("Attention", "x w b", {"num_heads": 2, "past_present_share_buffer": 1}, "has past_present_share_buffer=1"),
        ("Attention", "x w b", {"num_heads": 2, "qkv_hidden_sizes": [4, 12, 8]}, "where q and k are not alike"),
        ("Attention", "x w b", {"num_heads": 2, "novelty": 3}, "has the attribute 'novelty'"),
        ("Attention", "x w b", {}, "has no attribute 'num_heads'"),
    ],
)
def test_other_forms_stay(op: str, reads: str, attrs: dict[str, Any], why: str) -> None:
    proto = model((op, reads, "y", attrs, MICROSOFT), inputs={"x": ("batch", "rows", 8)}, weights=WEIGHTS, opset=21)
    check_skipped(WriteOutFused(), proto, why)


def test_a_mask_of_unknown_length_stays() -> None:
    proto = model(
        ("Attention", "x w b m", "y", {"num_heads": 2}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8), "m": (I32, ("other",))}, weights=WEIGHTS, opset=21,
    )  # fmt: skip
    check_skipped(WriteOutFused(), proto, "a vector of unknown length")


def test_onnxruntime_keeps_integers() -> None:
    proto = model(
        ("QAttention", "q w b s ws", "y", {"num_heads": 2}, MICROSOFT),
        inputs={"q": (np.uint8, ("batch", "rows", 8))},
        weights={"w": np.zeros((8, 24), np.int8), "b": draw(24), "s": np.float32(1), "ws": np.float32(1)}, opset=21,
    )  # fmt: skip
    graph = to_graph(proto)
    assert not WriteOutFused(parse_target("onnxruntime"))(graph).changed
