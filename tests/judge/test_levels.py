"""Channels of one layer that differ by far in size are compared apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.judge.cuts import Piece
from qcompiler.judge.levels import MOST_CHANNELS, channel_axis, levels_of
from qcompiler.judge.noise import cut
from qcompiler.judge.views import Role, View, find_views
from qcompiler.runtime.shapes import concrete_shapes
from tests.kit.rewrite import Spec, model, random_feeds, to_graph

RNG = np.random.default_rng(0)


def sized(*sizes: float) -> Any:
    return RNG.standard_normal((1, len(sizes), 50)) * np.array(sizes)[None, :, None]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((100, 90, 1, 0.9), [(0, 1), (2, 3)]), ((1, 100, 1, 100), [(1, 3), (0, 2)]), ((5, 1, 2), [(0, 1, 2)]),
        ((1000, 30, 1), [(0,), (1,), (2,)]), ((1, 0, 2), [(0, 2)]), ((3,), [(0,)]),
    ],
)  # fmt: skip
def test_channels_are_grouped_by_their_size(sizes: tuple[float, ...], expected: list[tuple[int, ...]]) -> None:
    assert levels_of(sized(*sizes), 1) == expected


def test_many_channels_are_one_quantity() -> None:
    assert len(levels_of(sized(*np.geomspace(1, 1e4, MOST_CHANNELS + 1)), 1)) == 1


def graph_of(*tail: Spec, sizes: tuple[float, ...] = (100, 1, 100, 1), **options: Any) -> Any:
    kernel = (RNG.standard_normal((len(sizes), 3, 1, 1)) * np.array(sizes)[:, None, None, None]).astype(np.float32)
    return to_graph(model(*tail, inputs={"x": (1, 3, 4, 4)}, weights={"k": kernel, **options}))


def test_the_axis_of_the_channels_is_followed_to_the_output() -> None:
    graph = graph_of(
        ("Conv", "x k", "c"), ("Transpose", "c", "t", {"perm": [0, 2, 3, 1]}), ("Reshape", "t to", "y"),
        to=np.array([1, 16, 4]),
    )  # fmt: skip
    shapes = concrete_shapes(graph, random_feeds(graph), ["y", "t", "c", "x"])
    assert channel_axis(graph.outputs[0], shapes) == 2


def test_a_layer_s_quantities_are_views() -> None:
    graph = graph_of(("Conv", "x k", "y"))
    found = {view.name: view for view in find_views(graph, random_feeds(graph))}
    assert list(found) == ["y", "y[:, [0, 2]]", "y[:, [1, 3]]"]
    assert found["y[:, [1, 3]]"].role is Role.PART
    alike = graph_of(("Conv", "x k", "y"), sizes=(1, 1.5, 2))
    assert [view.name for view in find_views(alike, random_feeds(alike))] == ["y"]


def test_pieces_side_by_side_are_a_slice_and_others_are_taken() -> None:
    array = np.arange(24).reshape(2, 4, 3)
    for indices in ((1, 2), (0, 3)):
        piece = Piece.of(1, indices)
        found = cut(View("y", "y", "y", Role.PART, piece=piece), array)
        assert found is not None
        np.testing.assert_array_equal(found, array[:, list(indices)])
    assert Piece.of(1, (1, 2)).indices == ()


def test_a_single_value_says_nothing_of_a_channel_s_size() -> None:
    assert levels_of(np.array([[100.0, 1.0, 50.0]]), 1) == [(0, 1, 2)]
