"""Opsets 1 to 6 against the same model in opset 7: ONNX Runtime has few of their kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, random_feeds, to_graph

IMAGE = {"x": ("n", 3, 4, 4)}
C = np.array([1, -2, 3], np.float32)


def gives(proto: onnx.ModelProto, opset: int = 7) -> Any:
    graph = to_graph(proto)
    RaiseOpset(opset)(graph)
    assert graph.opset == opset
    return Session(graph, optimize=False).run(random_feeds(graph, open_dim=2))["y"]


@pytest.mark.parametrize("target", [7, 19, 23])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_what_stood_at_an_axis_is_broadcast_from_there(op: str, target: int) -> None:
    attrs = {"broadcast": 1, "axis": 1}
    old = model((op, "x c", "y", attrs), inputs=IMAGE, weights={"c": C}, opset=6)
    new = model((op, "x c", "y"), inputs=IMAGE, weights={"c": C.reshape(3, 1, 1)}, opset=7)
    np.testing.assert_array_equal(gives(old, target), gives(new, target))


def test_a_computed_operand_is_widened_too() -> None:
    inputs = {**IMAGE, "c": (3,)}
    old = model(("Add", "x c", "y", {"broadcast": 1, "axis": -3}), inputs=inputs, opset=6)
    graph = to_graph(old)
    RaiseOpset(7)(graph)
    assert [node.op for node in graph.nodes] == ["Unsqueeze", "Add"]
    feeds = random_feeds(graph, open_dim=2)
    found = Session(graph).run(feeds)["y"]
    np.testing.assert_array_equal(found, feeds["x"] + feeds["c"].reshape(3, 1, 1))


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_a_classifier_of_2017_means_the_same(opset: int) -> None:
    rng = np.random.default_rng(0)
    four = {name: np.abs(rng.normal(1, 0.1, 3)).astype(np.float32) for name in ("s", "o", "m", "v")}
    weights: dict[str, Any] = {**four, "f": rng.normal(0, 1, (48, 5)).astype(np.float32), "b": np.ones(5, np.float32)}
    used = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    flat = ("Reshape", "r", "l", {"shape": [-1, 48]}) if opset < 5 else ("Reshape", "r shape", "l")
    held = {**weights, "shape": np.array([-1, 48])}
    old = model(
        ("BatchNormalization", "x s o m v", "n", {"is_test": 1, **used}),
        ("Relu", "n", "r", {"consumed_inputs": [0]} if opset < 6 else {}),
        flat,
        ("Gemm", "l f b", "g", {"broadcast": 1}),
        ("Dropout", "g", "y", {"is_test": 1}),
        inputs=IMAGE,
        weights=held if opset >= 5 else weights,
        opset=opset,
    )
    new = model(
        ("BatchNormalization", "x s o m v", "n"),
        ("Relu", "n", "r"),
        ("Reshape", "r shape", "l"),
        ("Gemm", "l f b", "y"),
        inputs=IMAGE,
        weights=held,
        opset=7,
    )
    np.testing.assert_array_equal(gives(old), gives(new))


@pytest.mark.parametrize(
    ("old", "attrs", "new"),
    [
        (("Upsample", 6), {"height_scale": 2.0, "width_scale": 3.0}, {"scales": [1.0, 1.0, 2.0, 3.0]}),
        (("Pad", 1), {"paddings": [0, 0, 1, 1, 0, 0, 0, 0]}, {"pads": [0, 0, 1, 1, 0, 0, 0, 0]}),
        (("Cast", 5), {"to": "INT32"}, {"to": 6}),
        (("Concat", 3), {}, {"axis": 1}),
        (("Selu", 5), {}, {"alpha": 1.6732, "gamma": 1.0507}),
    ],
)
def test_words_that_changed(old: tuple[str, int], attrs: dict[str, Any], new: dict[str, Any]) -> None:
    op, opset = old
    first = model((op, "x", "y", attrs), inputs=IMAGE, opset=opset)
    np.testing.assert_array_equal(gives(first), gives(model((op, "x", "y", new), inputs=IMAGE, opset=7)))


def test_slopes_of_channels() -> None:
    old = model(("PRelu", "x c", "y"), inputs=IMAGE, weights={"c": C}, opset=6)
    new = model(("PRelu", "x c", "y"), inputs=IMAGE, weights={"c": C.reshape(3, 1, 1)}, opset=7)
    np.testing.assert_array_equal(gives(old), gives(new))


@pytest.mark.parametrize(
    ("spec", "opset", "why"),
    [
        (("Dropout", "x", "y"), 6, r"'Y' \(Dropout\) cannot be taken from opset 6 to 7: it trains"),
        (("Tile", "x t a", "y"), 5, r"'Y' \(Tile\) cannot be taken from opset 5 to 6: opset 6 changed it.*13 or newer"),
        (("Add", "x c", "y", {"broadcast": 1, "axis": 3}), 6, "more axes than there are"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(spec: Any, opset: int, why: str) -> None:
    weights = {"t": np.float32(2), "a": np.float32(1), "c": np.ones((3, 4), np.float32)}
    graph = to_graph(model(spec, inputs=IMAGE, weights=weights, opset=opset))
    with pytest.raises(ModelError, match=why):
        RaiseOpset(7)(graph)
