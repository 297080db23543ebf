"""Shapes that contradict each other in a graph are told from those that fit, by inference or by a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.signature import Feeds
from qcompiler.runtime.fitting import Fitting
from tests.kit.rewrite import Spec, model, to_graph


def graph(
    *nodes: Spec, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), opset: int = 17, **weights: Any
) -> gs.Graph:
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights=weights, opset=opset))


def ones(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def test_what_is_added_and_joined_must_fit() -> None:
    g = graph(
        ("Concat", "a b", "c", {"axis": 0}), ("Add", "c m", "y"), inputs={"a": ("n", 4), "b": ("k", 4), "m": ("t", 4)}
    )
    fitting = Fitting(g, {"a": ones(2, 4), "b": ones(3, 4), "m": ones(5, 4)})
    assert fitting.misfit({"a": (8, 4), "b": (2, 4), "m": (10, 4)}) == ""
    assert "Incompatible dimensions" in fitting.misfit({"a": (8, 4), "b": (2, 4), "m": (9, 4)})
    assert fitting.misfit({"b": (0, 4), "m": (2, 4)}) == ""  # the others are as in the feed


def test_shapes_that_depend_on_values_are_run() -> None:
    g = graph(
        ("NonZero", "x", "at"),
        ("Gather", "table ids", "e"),
        ("Add", "e m", "y"),
        inputs={"x": ("n",), "table": ("rows", 4), "ids": (np.int64, ("k",)), "m": ("t", 4)},
        outputs=("at", "y"),
    )
    feed: Feeds = {"x": ones(3), "table": ones(9, 4), "ids": np.array([8, 1], np.int64), "m": ones(2, 4)}
    fitting = Fitting(g, feed)
    assert fitting.misfit({"ids": (7,), "m": (7, 4)}) == ""
    assert fitting.misfit({"table": (3, 4)}) == ""  # where the ids of the feed are none, zeros are
    assert "ONNX Runtime failed" in fitting.misfit({"ids": (7,), "m": (6, 4)})


def test_a_window_larger_than_what_it_slides_over_is_run() -> None:
    g = graph(("Conv", "x w", "y", {"strides": [8]}), inputs={"x": (1, 1, "t")}, w=ones(4, 1, 16))
    fitting = Fitting(g, {"x": ones(1, 1, 90)})
    assert fitting.misfit({"x": (1, 1, 40)}) == ""
    assert "ONNX Runtime" in fitting.misfit({"x": (1, 1, 1)})
