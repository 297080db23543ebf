"""Recurrent layers behind an input."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.passes.recurrent import recurrent_reader
from tests.kit.rewrite import Spec, model, to_graph


@pytest.mark.parametrize(
    ("between", "found"),
    [(("Transpose", "x", "a", {"perm": [1, 0, 2]}), "G"), (("Identity", "x", "a"), "G"), (("Relu", "x", "a"), "")],
)
def test_it_is_found_through_what_only_moves(between: Spec, found: str) -> None:
    w, r = np.zeros((1, 24, 8), np.float32), np.zeros((1, 24, 8), np.float32)
    proto = model(between, ("GRU", "a w r", "g", {"hidden_size": 8}), ("Squeeze", "g one", "y"),
                  inputs={"x": (5, 5, 8)}, weights={"w": w, "r": r, "one": np.array([1])})  # fmt: skip
    assert recurrent_reader(to_graph(proto).inputs[0]) == found


def test_an_input_that_nothing_reads_has_none() -> None:
    graph = to_graph(model(("Relu", "x", "y"), inputs={"x": (2, 4), "unused": (2,)}))
    assert recurrent_reader(graph.inputs[1]) == ""
