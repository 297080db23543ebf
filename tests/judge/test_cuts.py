"""Where an output was joined, through whatever keeps elements apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.judge.cuts import MOST_PARTS, cuts_of, tensors_for_cuts
from qcompiler.runtime.shapes import concrete_shapes
from tests.kit.rewrite import Spec, model, random_feeds, to_graph

BOXES, SCORES = (1, 4, 6), (1, 8, 6)


def cut(*nodes: Spec, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[int, list[tuple[int, int]]]:
    proto = model(*nodes, inputs=inputs or {"b": BOXES, "s": SCORES}, weights=weights)
    graph = to_graph(proto)
    output = graph.outputs[0]
    shapes = concrete_shapes(graph, random_feeds(graph), list(tensors_for_cuts(output)))
    return {axis: [(one.start, one.stop) for one in found] for axis, found in cuts_of(output, shapes).items()}


JOIN: Spec = ("Concat", "b s", "j", {"axis": 1})


def test_a_join_is_cut_where_it_joins() -> None:
    assert cut(("Concat", "b s", "y", {"axis": 1})) == {1: [(0, 4), (4, 12)]}
    assert cut(("Concat", "b s", "y", {"axis": -2})) == {1: [(0, 4), (4, 12)]}


def test_another_order_of_the_axes_moves_the_cut() -> None:
    assert cut(JOIN, ("Transpose", "j", "y", {"perm": [0, 2, 1]})) == {2: [(0, 4), (4, 12)]}


@pytest.mark.parametrize(
    ("target", "expected"),
    [((12, 6), {0: [(0, 4), (4, 12)]}), ((1, 1, 12, 6), {2: [(0, 4), (4, 12)]}),
     ((1, 12, 2, 3), {1: [(0, 4), (4, 12)]}), ((1, 72), {})],
)  # fmt: skip
def test_another_shape_keeps_the_cut_where_the_axis_stays_one(target: tuple[int, ...], expected: object) -> None:
    assert cut(JOIN, ("Reshape", "j to", "y"), to=np.array(target)) == expected


def test_functions_of_single_elements_keep_it() -> None:
    nodes: list[Spec] = [("Sigmoid", "j", "g"), ("Mul", "g two", "m"), ("Sub", "one m", "y")]
    assert cut(JOIN, *nodes, two=np.float32(2), one=np.ones(6, np.float32)) == {1: [(0, 4), (4, 12)]}
    assert cut(JOIN, ("Add", "j o", "y"), inputs={"b": BOXES, "s": SCORES, "o": (1, 12, 6)}) == {}


def test_joins_of_joins_are_cut_along_both() -> None:
    levels = {f"{kind}{level}": (1, 3 + level, size) for level in (0, 1) for kind, size in (("b", 4), ("s", 2))}
    nodes: list[Spec] = [(("Concat"), f"b{i} s{i}", f"l{i}", {"axis": 2}) for i in (0, 1)]
    assert cut(*nodes, ("Concat", "l0 l1", "y", {"axis": 1}), inputs=levels) == {
        1: [(0, 3), (3, 7)],
        2: [(0, 4), (4, 6)],
    }
    along: list[Spec] = [("Concat", "b0 s0", "l", {"axis": 2}), ("Concat", "l b0", "y", {"axis": 2})]
    assert cut(*along, inputs=levels) == {2: [(0, 4), (4, 6), (6, 10)]}


def test_stacked_results_are_cut_along_the_new_axis() -> None:
    nodes: list[Spec] = [(("Unsqueeze"), f"{name} axis", f"{name}u") for name in ("b", "c")]
    same = {"b": BOXES, "c": BOXES}
    assert cut(*nodes, ("Concat", "bu cu", "y", {"axis": 1}), inputs=same, axis=np.array([1])) == {1: [(0, 1), (1, 2)]}


def test_many_small_pieces_are_no_quantities() -> None:
    names = [f"b{i}" for i in range(MOST_PARTS + 1)]
    assert cut(("Concat", " ".join(names), "y", {"axis": 1}), inputs=dict.fromkeys(names, (1, 1, 2))) == {}


def test_where_no_size_is_known_nothing_is_cut() -> None:
    graph = to_graph(model(("Concat", "b s", "y", {"axis": 1}), inputs={"b": BOXES, "s": SCORES}))
    assert cuts_of(graph.outputs[0], {}) == {}
    assert list(tensors_for_cuts(graph.outputs[0])) == ["y", "b", "s"]
