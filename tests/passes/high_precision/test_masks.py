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
