"""Ranges that the user knows, and the tensors of a graph that they are of."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from qcompiler.data.files.known_ranges import Span
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement import known
from qcompiler.planning.placement.candidates import Candidates
from tests.kit.rewrite import model, to_graph

BOTH, LOOSE = Span(-2.0, 3.0), Span(-3.0, 3.0, exact=False)


@pytest.fixture
def graph() -> gs.Graph:
    """x → Relu → MaxPool → Flatten → y, and a Sigmoid beside it."""
    return to_graph(
        model(
            ("Relu", "x", "r"),
            ("MaxPool", "r", "m", {"kernel_shape": [2, 2]}),
            ("Flatten", "m", "y"),
            ("Sigmoid", "x", "z"),
            inputs={"x": (1, 3, 4, 4)},
            outputs=("y", "z"),
        )
    )


def test_what_keeps_the_largest_value_hands_its_range_on(graph: gs.Graph) -> None:
    found = known.spread(graph, {"r": LOOSE, "elsewhere": LOOSE})
    assert found == {"r": Span(0.0, 3.0), "m": Span(0.0, 3.0), "y": Span(0.0, 3.0)}


def test_ranges_go_back_through_what_rearranges_but_not_through_a_pool(graph: gs.Graph) -> None:
    assert known.spread(graph, {"y": BOTH}) == {"y": BOTH, "m": BOTH}


def test_a_relu_cuts_a_range_whose_ends_are_known(graph: gs.Graph) -> None:
    assert known.spread(graph, {"x": BOTH})["r"] == Span(0.0, 3.0)
    assert known.spread(graph, {"x": LOOSE}) == {"x": LOOSE}
    assert known.spread(graph, {"x": Span(-2.0, -1.0)}) == {"x": Span(-2.0, -1.0)}


def test_a_range_of_its_own_stands_over_what_is_handed_on(graph: gs.Graph) -> None:
    own = Span(0.0, 2.5)
    assert known.spread(graph, {"r": LOOSE, "m": own})["y"] == own


def test_candidates_learn_what_is_known_and_keep_what_they_came_with(graph: gs.Graph) -> None:
    layers = Candidates(
        (
            Candidate("A", "MatMul", "y", "w", 1),
            Candidate("B", "MatMul", "z", "w", 1),
            Candidate("C", "MatMul", "r", "w", 1, amax=1.0),
        ),
        (Refusal("D", "MatMul", "gemv", "small"),),
    )
    found = known.told(layers, graph, {"r": BOTH})
    assert [one.known for one in found.found] == [3.0, None, None]
    assert found.refused == layers.refused
    assert known.told(layers, graph, {}) is layers


def test_an_unsigned_grid_needs_both_ends() -> None:
    assert known.grid(Span(0.0, 2.0)) == (0.0, 2.0)
    assert known.grid(LOOSE) is None
    assert known.grid(Span(-0.1, 2.0)) is None
