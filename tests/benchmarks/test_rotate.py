"""The rotated copy of a decoder: other weights, the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import rotate
from benchmarks.measure import BenchmarkError
from qcompiler.runtime.session import Session
from tests.kit import glu
from tests.kit.rewrite import Spec, model


def test_a_rotated_decoder_computes_the_same_with_other_weights() -> None:
    before = glu.stack(layers=2)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert rotate.rotate(after, seed=3) == (2 * 5 + 1, 2 * 2)
    first, second = (Session((proto, {})).run(glu.feeds(1)[0])["logits"] for proto in (before, after))
    np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())
    old, new = ({one.name: numpy_helper.to_array(one) for one in proto.graph.initializer} for proto in (before, after))
    for name in ("embedding", "l0.q.w", "l1.down.w", "head.w"):
        assert np.abs(old[name] - new[name]).max() > 0.1 * np.abs(old[name]).max()
    assert (new["l0.n1.g"] == 1).all()


def norm(x: str, gain: str, y: str) -> list[Spec]:
    return [
        ("Pow", f"{x} two", f"{y}.p"),
        ("ReduceMean", f"{y}.p", f"{y}.m", {"axes": [-1], "keepdims": 1}),
        ("Sqrt", f"{y}.m", f"{y}.r"),
        ("Div", f"{x} {y}.r", f"{y}.n"),
        ("Mul", f"{y}.n {gain}", y),
    ]


def test_a_tied_table_becomes_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"table": (50, 16), "g1": (16,), "g2": (16,), "w1": (16, 24), "w2": (24, 16)}
    weights = {name: rng.uniform(-1, 2, size).astype(np.float32) for name, size in sizes.items()}
    proto = model(
        ("Gather", "table input_ids", "x"),
        *norm("x", "g1", "n1"),
        ("MatMul", "n1 w1", "up"),
        ("Sigmoid", "up", "s"),
        ("MatMul", "s w2", "down"),
        ("Add", "x down", "y"),
        *norm("y", "g2", "n2"),
        ("Transpose", "table", "t"),
        ("MatMul", "n2 t", "logits"),
        inputs={"input_ids": (np.int64, ("batch", "length"))},
        outputs=("logits",),
        weights={**weights, "two": np.float32(2)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    assert rotate.rotate(proto) == (2, 1)
    assert not [node for node in proto.graph.node if node.op_type == "Transpose"]
    onnx.save(proto, tmp_path / "r.onnx")
    ids = {"input_ids": np.arange(50)[None]}
    first, second = (Session(tmp_path / name).run(ids)["logits"] for name in ("m.onnx", "r.onnx"))
    np.testing.assert_allclose(first, second, atol=1e-4 * np.abs(first).max())


def test_another_kind_of_model_is_refused() -> None:
    proto = model(("MatMul", "x w", "y"), inputs={"x": (4, 16)}, weights={"w": np.ones((16, 16), np.float32)})
    with pytest.raises(BenchmarkError, match="no embedding table"):
        rotate.rotate(proto)
