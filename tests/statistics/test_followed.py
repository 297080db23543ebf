"""Tensors are found again by what they hold."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.runtime import shapes
from qcompiler.statistics.followed import Holding, follow
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(0)
FEED = {"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
KERNEL, SCALE = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32), np.float32(3.0)


def graph(*nodes: tuple[object, ...], outputs: tuple[str, ...] = ("y",)) -> gs.Graph:
    weights = {"w": KERNEL, "scaled": KERNEL * SCALE, "s": SCALE}
    made = to_graph(model(*nodes, inputs={"x": (1, 3, 8, 8)}, outputs=outputs, weights=weights))
    shapes.infer(made)
    return made


def test_values_are_followed_to_the_name_that_folding_left_them_under() -> None:
    before = graph(("Conv", "x w", "c"), ("Mul", "c s", "m"), ("Relu", "m", "y"))
    after = graph(("Conv", "x scaled", "c"), ("Relu", "c", "y"))
    assert follow(before, after, ["x", "c", "m", "y"], FEED) == {"x": "x", "c": "m", "y": "y"}


def test_axes_that_moved_do_not_matter() -> None:
    before = graph(("Conv", "x w", "c"), ("Relu", "c", "y"))
    after = graph(("Conv", "x w", "d"), ("Transpose", "d", "t", {"perm": [0, 2, 3, 1]}), ("Relu", "t", "y"))
    assert follow(before, after, ["c"], FEED) == {"d": "c", "t": "c"}


def test_what_holds_other_values_is_known_no_more() -> None:
    before = graph(("Conv", "x w", "c"), ("Relu", "c", "y"))
    after = graph(("Conv", "x scaled", "c"), ("Relu", "c", "y"))
    assert follow(before, after, ["c", "y"], FEED) == {}


def test_values_that_are_all_alike_tell_nothing() -> None:
    still = {"x": np.zeros_like(FEED["x"])}
    before = graph(("Conv", "x w", "c"), ("Relu", "c", "y"))
    assert follow(before, before, ["x", "c"], still) == {}
    assert not Holding(4, 1.0, 1.0, 4.0, 4.0).tells
    assert not Holding(4, 0.0, float("inf"), float("inf"), float("inf")).tells
