"""Attention masks that overflow FP16, and what must not be taken for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from qcompiler.engines import listing
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import graph as graphs
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, random_feeds, to_graph, whole
from tests.kit.typed import F32, by_name, ops, stays, typed

if TYPE_CHECKING:
    pass


_ATTENTION: tuple[Spec, ...] = (
    ("MatMul", "q kt", "s"),
    ("Add", "s mask", "logits"),
    ("Softmax", "logits", "p", {"axis": -1}),
    ("MatMul", "p v", "y"),
)


def attention(*mask: Spec, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    return model(
        *mask,
        *_ATTENTION,
        inputs={
            "q": (1, 2, 6, 8),
            "kt": (1, 2, 8, 6),
            "v": (1, 2, 6, 8),
            **(inputs or {"m": (np.int64, (1, 1, 1, 6))}),
        },
        weights=weights,
    )


_MULTIPLIED: tuple[Spec, ...] = (("Cast", "m", "f", {"to": 1}), ("Sub", "one f", "inv"), ("Mul", "inv low", "mask"))


@pytest.mark.parametrize("low", [-3.4028235e38, -1e9, -1e4])
def test_a_multiplied_padding_mask_leaves_attention_in_half(low: float) -> None:
    proto = attention(*_MULTIPLIED, weights={"one": F32.type(1), "low": F32.type(low)})
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.array([1, 1, 1, 1, 0, 0]).reshape(1, 1, 1, 6)
    graph, decisions = typed(proto, feeds)
    assert {decisions[name].precision for name in ("S", "LOGITS", "P", "Y")} == {DType.FP16}
    assert ("Max" in ops(graph)) == (low < -30000)
    # A row with another mask than the observed one: nothing leaks through, and nothing is NaN.
    feeds["m"] = np.array([1, 0, 0, 0, 0, 0]).reshape(1, 1, 1, 6)
    expected = np.broadcast_to(feeds["v"][..., :1, :], (1, 2, 6, 8))
    np.testing.assert_allclose(Session(graph, optimize=False).run(feeds)["y"], expected, rtol=2e-3, atol=1e-3)


def test_a_mask_that_was_never_seen_at_work_is_clamped_all_the_same() -> None:
    proto = attention(*_MULTIPLIED, weights={"one": F32.type(1), "low": F32.type(-3.4028235e38)})
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 1, 6), np.int64)
    graph, _ = typed(proto, feeds)
    feeds["m"] = np.zeros((1, 1, 1, 6), np.int64)
    assert np.all(np.isfinite(Session(graph, optimize=False).run(feeds)["y"]))


def test_a_constant_mask_is_clamped_as_it_is_converted() -> None:
    causal = np.triu(np.full((6, 6), -3.4028235e38, np.float32), 1)
    graph, decisions = typed(attention(weights={"mask": causal}, inputs={"unused": (1,)}))
    assert decisions["LOGITS"].precision is DType.FP16
    assert "Max" not in ops(graph)
    assert graphs.values_of(by_name(graph, "LOGITS").inputs[1]).min() == -30000


def test_a_mask_selected_by_where_and_two_masks_in_a_row() -> None:
    proto = attention(
        ("Cast", "m", "b", {"to": 9}),
        ("Where", "b zero low", "mask1"),
        ("MatMul", "q kt", "s0"),
        ("Add", "s0 mask1", "s1"),
        ("Identity", "causal", "mask"),
        weights={"zero": F32.type(0), "low": F32.type(-1e9), "causal": np.triu(np.full((6, 6), -1e9, np.float32), 1)},
    )
    for one in proto.graph.node:
        if one.name == "S":
            proto.graph.node.remove(one)
            break
    next(one for one in proto.graph.node if one.name == "LOGITS").input[0] = "s1"
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.array([1, 1, 1, 1, 1, 0]).reshape(1, 1, 1, 6)
    _, decisions = typed(proto, feeds)
    assert {decisions[name].precision for name in ("S1", "LOGITS", "P", "Y")} == {DType.FP16}


def test_a_masked_tensor_that_is_also_read_elsewhere_stays_fp32() -> None:
    proto = attention(*_MULTIPLIED, weights={"one": F32.type(1), "low": F32.type(-1e9)})
    proto.graph.output.append(onnx.helper.make_tensor_value_info("logits", 1, (1, 2, 6, 6)))
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.array([1, 1, 1, 1, 0, 0]).reshape(1, 1, 1, 6)
    stays(proto, "LOGITS", "fp16-range", feeds)


def test_large_logits_leave_no_room_for_a_mask() -> None:
    proto = attention(*_MULTIPLIED, weights={"one": F32.type(1), "low": F32.type(-1e9)})
    feeds = random_feeds(to_graph(proto))
    feeds["q"] *= 3000
    feeds["m"] = np.array([1, 1, 1, 1, 0, 0]).reshape(1, 1, 1, 6)
    stays(proto, "LOGITS", "fp16-range", feeds)


def test_tensorrt_rtx_fuses_masked_attention_in_half(tmp_path: Path) -> None:
    proto = model(
        *_MULTIPLIED,
        *_ATTENTION,
        inputs={"q": (1, 4, 64, 32), "kt": (1, 4, 32, 64), "v": (1, 4, 64, 32), "m": (np.int64, (1, 1, 1, 64))},
        weights={"one": F32.type(1), "low": F32.type(-3.4028235e38)},
    )
    graph, _ = typed(proto)
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine")
    fused = [op for one in listing.read(tmp_path / "m.engine") for op in one.ops if "mha" in op.name]
    assert fused
    assert set(fused[0].input_types[:2]) == {"half"}


_GUARDED: tuple[Spec, ...] = (
    *_ATTENTION[:3],
    ("IsNaN", "p", "nan"),
    ("Where", "nan zero p", "pg"),
    ("MatMul", "pg v", "y"),
)
_CHOSEN: tuple[Spec, ...] = (("Cast", "m", "b", {"to": 9}), ("Where", "b zero low", "mask"))


def guarded(*behind: Spec, low: float, **weights: Any) -> onnx.ModelProto:
    return model(
        *_CHOSEN,
        *behind,
        inputs={"q": (1, 2, 6, 8), "kt": (1, 2, 8, 6), "v": (1, 2, 6, 8), "m": (np.int64, (1, 1, 6, 6))},
        weights={"zero": F32.type(0), "low": F32.type(low), **weights},
    )


GUARDS: dict[str, tuple[Spec, ...]] = {
    "IsNaN behind the softmax": _GUARDED,
    "IsNaN behind the product": (
        *_ATTENTION[:3],
        ("MatMul", "p v", "u"),
        ("IsNaN", "u", "nan"),
        ("Where", "nan zero u", "y"),
    ),
    "x == x": (*_ATTENTION[:3], ("Equal", "p p", "ok"), ("Where", "ok p zero", "pg"), ("MatMul", "pg v", "y")),
    "p >= 0": (
        *_ATTENTION[:3],
        ("GreaterOrEqual", "p zero", "ok"),
        ("Where", "ok p zero", "pg"),
        ("MatMul", "pg v", "y"),
    ),
}


@pytest.mark.parametrize("behind", GUARDS.values(), ids=GUARDS)
def test_infinity_stays_where_a_guard_behind_the_softmax_depends_on_it(behind: tuple[Spec, ...]) -> None:
    proto = guarded(*behind, low=-np.inf)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 6, 6), np.int64)
    feeds["m"][..., 4:, :] = 0  # rows that see nothing
    graph, decisions = typed(proto, feeds)
    assert decisions["LOGITS"].precision is DType.FP16
    assert "Max" not in ops(graph)
    found = Session(graph, optimize=False).run(feeds)["y"]
    np.testing.assert_allclose(found, Session(to_graph(proto), optimize=False).run(feeds)["y"], rtol=3e-3, atol=2e-3)
    assert np.all(found[..., 4:, :] == 0)


def test_infinity_is_clamped_where_nothing_behind_the_softmax_looks_for_it() -> None:
    proto = guarded(*_ATTENTION, low=-np.inf)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 6, 6), np.int64)
    feeds["m"][..., 4:] = 0
    graph, decisions = typed(proto, feeds)
    assert decisions["LOGITS"].precision is DType.FP16
    assert "Max" in ops(graph)


def test_finite_masks_are_clamped_in_front_of_a_guard_too() -> None:
    proto = guarded(*_GUARDED, low=-3.4028235e38)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 6, 6), np.int64)
    feeds["m"][..., 4:] = 0
    graph, decisions = typed(proto, feeds)
    assert decisions["LOGITS"].precision is DType.FP16
    assert "Max" in ops(graph)


@pytest.mark.parametrize("causal", [-1e9, -3.4028235e38])
def test_masks_that_mix_both_kinds_stay_fp32_in_front_of_a_guard(causal: float) -> None:
    table = np.where(np.triu(np.ones((6, 6)), 1) > 0, np.float32(causal), np.float32(0))
    mixed = (("Identity", "table", "other"), ("Add", "mask other", "both"))
    attended = tuple((op, ins.replace("s mask", "s both"), *rest) for op, ins, *rest in _GUARDED)
    proto = guarded(*mixed, *attended, low=-np.inf, table=table)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 6, 6), np.int64)
    feeds["m"][..., 4:, :] = 0
    stays(proto, "LOGITS", "fp16-range", feeds)


def test_finite_masks_that_add_up_to_infinity_stay_fp32_in_front_of_a_guard() -> None:
    table = np.full((6, 6), -3.4028235e38, np.float32)
    twice = (("MatMul", "q kt", "s0"), ("Add", "s0 mask", "s"))
    attended = tuple(one for one in _GUARDED if one[2] != "s")
    attended = tuple((op, ins.replace("s mask", "s table"), *rest) for op, ins, *rest in attended)
    proto = guarded(*twice, *attended, low=-3.4028235e38, table=table)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.zeros((1, 1, 6, 6), np.int64)
    stays(proto, "LOGITS", "fp16-range", feeds)


@pytest.mark.parametrize("low", [-np.inf, -1e9])
def test_in_front_of_an_output_no_mask_is_clamped(low: float) -> None:
    proto = guarded(*_ATTENTION[:2], ("Softmax", "logits", "p", {"axis": -1}), ("Transpose", "p", "y"), low=low)
    feeds = random_feeds(to_graph(proto))
    feeds["m"] = np.ones((1, 1, 6, 6), np.int64)
    feeds["m"][..., 4:] = 0
    graph, decisions = typed(proto, feeds)
    assert "Max" not in ops(graph)
    assert decisions["LOGITS"].precision is (DType.FP16 if np.isinf(low) else DType.FP32)
