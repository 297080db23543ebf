"""Weights stored in INT4 blocks or INT8: structure, numbers, refusals, and what TensorRT-RTX makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import Format
from qcompiler.passes.base import Skipped
from qcompiler.passes.quantize.weight_only import WeightOnly
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, to_graph, whole

DEPTH, WIDTH, SIZE = 64, 24, 32
W = np.random.default_rng(0).standard_normal((DEPTH, WIDTH)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, DEPTH)).astype(np.float32)


def product() -> onnx.ModelProto:
    return model(("MatMul", "x w", "y"), inputs={"x": (5, DEPTH)}, weights={"w": W}, opset=21)


@pytest.mark.parametrize(("format", "size"), [("int4", SIZE), ("int8", None)])
def test_the_weight_is_stored_and_the_product_is_that_of_the_stored_weight(format: Format, size: int | None) -> None:
    stored = blocks.round_to_nearest(W, size, format)
    graph = to_graph(product())
    one = WeightOnly({"Y": stored})
    assert one(graph).changed
    onnx.checker.check_model(whole(graph), full_check=True)
    ops = [made.op for made in graph.nodes]
    assert sorted(ops) == ["DequantizeLinear", "MatMul"]
    found = Session(graph, optimize=False).run({"x": X})["y"]
    assert np.allclose(found, X @ blocks.dequantize(stored), atol=1e-4)
    assert not one(graph).changed


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (blocks.round_to_nearest(W[:32], SIZE, "int4"), "what is to be stored is"),
        (blocks.round_to_nearest(W, 24, "int4"), "is no multiple of 24"),
    ],
)
def test_what_does_not_fit_is_skipped(stored: blocks.Blocks, why: str) -> None:
    report = WeightOnly({"Y": stored})(to_graph(product()))
    (note,) = report.notes
    assert isinstance(note, Skipped)
    assert why in note.text


def test_a_node_that_is_not_there_is_skipped() -> None:
    report = WeightOnly({"other": blocks.round_to_nearest(W, SIZE, "int4")})(to_graph(product()))
    assert [note.text for note in report.notes if isinstance(note, Skipped)] == ["there is no such node"]


def test_a_quantized_activation_keeps_its_weight() -> None:
    scalars: dict[str, Any] = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": W}
    nodes = [
        ("QuantizeLinear", "x s z", "xq"),
        ("DequantizeLinear", "xq s z", "xd"),
        ("MatMul", "xd w", "y"),
    ]
    graph = to_graph(model(*nodes, inputs={"x": (5, DEPTH)}, weights=scalars, opset=21))
    report = WeightOnly({"Y": blocks.round_to_nearest(W, SIZE, "int4")})(graph)
    assert not report.changed
    assert any("its activation is quantized" in note.text for note in report.notes if isinstance(note, Skipped))
