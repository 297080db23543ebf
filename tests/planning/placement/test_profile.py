"""Shapes at the sizes that are served: the user's, else those of the data, that fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.samples import ShapeRange
from qcompiler.errors import DataError
from qcompiler.ir.signature import Feeds
from qcompiler.planning.placement.profile import LARGEST, SMALLEST, USUAL, shapes_at, shapes_of_many
from qcompiler.statistics.observe import Observations
from tests.kit.rewrite import Spec, model, to_graph

W = np.ones((4, 8), np.float32)


def graph(
    *nodes: Spec, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), opset: int = 17, **weights: Any
) -> gs.Graph:
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights=weights, opset=opset))


def seen(*feeds: Feeds, kept: int = 1, axes: BatchAxes = NO_BATCH) -> Observations:
    shapes = ShapeRange()
    for feed in feeds:
        shapes.watch(feed)
    return Observations(kept=feeds[:kept], shapes=shapes, axes=axes)


def rows(*counts: int) -> list[Feeds]:
    return [{"x": np.ones((count, 4), np.float32)} for count in counts]


@pytest.mark.parametrize(("which", "size"), [(SMALLEST, 3), (USUAL, 6), (LARGEST, 9)])
def test_they_are_those_of_the_data_as_it_was_given(which: int, size: int) -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, w=W)
    assert shapes_at(g, seen(*rows(3, 6, 9)), None, which, ["x", "y"]) == {"x": (size, 4), "y": (size, 8)}


def test_a_batch_goes_from_one_up_and_its_usual_size_is_that_of_the_feeds() -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, w=W)
    observed = Observations(
        kept=tuple(rows(1)), shapes=seen(*rows(8, 8)).shapes, axes=BatchAxes({"x": 0})
    )  # kept sample by sample
    assert shapes_at(g, observed, None, USUAL, ["y"]) == {"y": (8, 8)}
    assert shapes_at(g, observed, None, SMALLEST, ["y"]) == {"y": (1, 8)}


def test_the_user_stands_over_the_data() -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, w=W)
    asked = {"x": ((1, 4), (2, 4), (64, 4))}
    assert shapes_at(g, seen(*rows(3)), asked, USUAL, ["y"]) == {"y": (2, 8)}
    assert shapes_at(g, seen(*rows(3)), asked, LARGEST, ["y"]) == {"y": (64, 8)}


def test_where_values_do_not_serve_another_size_those_of_a_feed_are_taken() -> None:
    inputs = {"x": ("n",), "ids": (np.int64, ("k",))}
    g = graph(("Gather", "x ids", "z"), ("NonZero", "z", "y"), inputs=inputs)
    feeds: list[Any] = [{"x": np.ones(n, np.float32), "ids": np.full(2, n - 1)} for n in (5, 3, 3)]
    assert shapes_at(g, seen(*feeds), None, USUAL, ["x", "y"]) == {"x": (5,), "y": (1, 2)}
    assert shapes_at(g, seen(*feeds, kept=2), None, USUAL, ["x", "y"]) == {"x": (3,), "y": (1, 2)}


def test_ends_that_do_not_fit_together_are_an_error() -> None:
    g = graph(
        ("Concat", "a b", "c", {"axis": 0}),
        ("Add", "c w", "y"),
        inputs={"a": ("n", 4), "b": ("m", 4)},
        w=np.ones((10, 4), np.float32),
    )
    feeds = [{"a": np.ones((n, 4), np.float32), "b": np.ones((10 - n, 4), np.float32)} for n in (2, 5, 7)]
    with pytest.raises(DataError, match="--shapes"):
        shapes_at(g, seen(*feeds), None, SMALLEST, ["y"])
    assert shapes_at(g, seen(*feeds), None, USUAL, ["y"]) == {"y": (10, 4)}


def test_a_batch_that_nobody_has_chosen_is_several() -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, w=W)
    assert shapes_of_many(g, seen(*rows(1, 1), axes=BatchAxes({"x": 0})), None, ["y"]) == {"y": (2, 8)}
    assert shapes_of_many(g, seen(*rows(8, 8), axes=BatchAxes({"x": 0})), None, ["y"]) == {"y": (8, 8)}


def test_several_are_several_of_each_input() -> None:
    g = graph(("Add", "a b", "s"), ("MatMul", "s w", "y"), inputs={"a": ("n", 4), "b": ("n", 4)}, w=W)
    feed = {name: np.ones((1, 4), np.float32) for name in "ab"}
    assert shapes_of_many(g, seen(feed, axes=BatchAxes({"a": 0, "b": 0})), None, ["y"]) == {"y": (2, 8)}


@pytest.mark.parametrize(
    ("axis", "axes", "asked"),
    [
        pytest.param(1, BatchAxes({"x": 0}), None, id="the model has fixed it"),
        pytest.param("n", BatchAxes({"x": 0}), {"x": ((1, 4),) * 3}, id="the user has"),
        pytest.param("n", NO_BATCH, None, id="it is no batch"),
    ],
)
def test_one_row_that_is_meant_so_stays_one(axis: Any, axes: BatchAxes, asked: Any) -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": (axis, 4)}, w=W)
    assert shapes_of_many(g, seen(*rows(1, 1), axes=axes), asked, ["y"]) == {"y": (1, 8)}
