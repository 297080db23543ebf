"""The first node that gives other numbers when it is run again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.graph import walk
from qcompiler.runtime import randomness
from qcompiler.runtime.restless import differ, first_restless
from tests.kit.rewrite import model, to_graph

X = {"x": np.ones((2, 4), np.float32)}


def test_what_draws_is_held_and_nothing_is_restless() -> None:
    assert first_restless(to_graph(model(("RandomNormalLike", "x", "a"), ("Relu", "a", "y"))), X) is None


def test_the_first_node_is_named_where_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "held", lambda proto, draw=0: proto)
    graph = to_graph(model(("Relu", "x", "a"), ("RandomNormalLike", "a", "b"), ("Add", "b a", "y")))
    node = first_restless(graph, X)
    assert node is not None
    assert (node.name, node in list(walk(graph))) == ("B", True)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, 2.00001], False),
        ([1.0, 2.0], [1.0, 2.01], True),
        ([1.0, np.nan], [1.0, np.nan], False),
        ([1.0, np.inf], [1.0, -np.inf], True),
        ([1, 2], [1, 3], True),
        ([1.0], [1.0, 2.0], True),
    ],
)
def test_rounding_is_no_difference(first: Any, second: Any, expected: bool) -> None:
    assert differ([np.array(first)], [np.array(second)]) is expected


def test_another_number_of_parts_is_a_difference() -> None:
    assert differ([np.ones(1)], [])
