from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from qcompiler.passes.layout.cast_bytes import CastBytes
from tests.kit.rewrite import check, check_skipped, check_untouched, model

NHWC, NCHW = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
IMAGE = {"x": (np.uint8, (1, "h", "w", 4))}
FLOAT, HALF, BYTE = {"to": TensorProto.FLOAT}, {"to": TensorProto.FLOAT16}, {"to": TensorProto.UINT8}
PICKED: dict[str, Any] = {"s": np.array([0]), "e": np.array([3]), "a": np.array([3])}


def _pixels(*shape: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)}


def test_the_cast_comes_first() -> None:
    proto = model(("Transpose", "x", "t", NCHW), ("Cast", "t", "f", FLOAT), ("Sqrt", "f", "y"), inputs=IMAGE)
    check(CastBytes(), proto, _pixels(1, 3, 5, 4), ops=["Cast", "Transpose", "Sqrt"])


def test_a_crop_and_casts_to_other_types() -> None:
    proto = model(
        ("Slice", "x s e a", "c"), ("Cast", "c", "h", HALF), ("Cast", "c", "i", {"to": TensorProto.INT32}),
        ("Sqrt", "h", "y"), ("Neg", "i", "z"), inputs=IMAGE, outputs=["y", "z"], weights=PICKED,
    )  # fmt: skip
    check(CastBytes(), proto, _pixels(1, 3, 5, 4), ops=["Cast", "Slice", "Cast", "Cast", "Sqrt", "Neg"])


def test_a_border_of_bytes_becomes_one_of_floats() -> None:
    proto = model(
        ("Pad", "x p v", "b"), ("Concat", "b k", "c", {"axis": 0}), ("Shape", "c", "z"), ("Cast", "c", "f", FLOAT),
        ("Sqrt", "f", "y"), inputs={"x": (np.uint8, (2, 4))}, outputs=["y", "z"],
        weights={"p": np.array([0, 1, 0, 1]), "v": np.uint8(114), "k": np.full((1, 6), 200, np.uint8)},
    )  # fmt: skip
    check(CastBytes(), proto, _pixels(2, 4), ops=["Cast", "Pad", "Concat", "Shape", "Sqrt"])


def test_a_picture_that_is_given() -> None:
    proto = model(
        ("Clip", "x lo hi", "c"), ("Cast", "c", "b", BYTE), ("Transpose", "b", "t", NHWC), ("Squeeze", "t a", "y"),
        inputs={"x": (1, 3, 4, 4)}, weights={"lo": np.float32(0), "hi": np.float32(255), "a": np.array([0])},
    )  # fmt: skip
    graph, _ = check(CastBytes(), proto, ops=["Clip", "Transpose", "Squeeze", "Cast"])
    assert graph.outputs[0].name == "y"


def test_what_stands_right_already() -> None:
    proto = model(("Cast", "x", "f", FLOAT), ("Transpose", "f", "y", NCHW), inputs=IMAGE)
    check_untouched(CastBytes(), proto)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([("Transpose", "x", "t", NCHW), ("Resize", "t _ r", "q"), ("Cast", "q", "y", FLOAT)], "'Q' (Resize) reads"),
        ([("Transpose", "x", "y", NCHW)], "given as output 'y'"),
    ],
)
def test_bytes_that_are_computed_with(nodes: Any, why: str) -> None:
    weights = {"r": np.array([1, 1, 2, 2], np.float32)}
    check_skipped(CastBytes(), model(*nodes, inputs=IMAGE, weights=weights, opset=19), why)


def test_bytes_of_another_operator_are_given() -> None:
    nodes = [("QuantizeLinear", "x s z", "q"), ("Transpose", "q", "y", NHWC)]
    weights = {"s": np.float32(0.1), "z": np.uint8(3)}
    check_skipped(CastBytes(), model(*nodes, inputs={"x": (1, 3, 4, 4)}, weights=weights), "not by a Cast")
