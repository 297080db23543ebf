from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.data.sights import Sights
from qcompiler.planning.search.deciders import told
from tests.kit.rewrite import graph_proto, model, to_graph


def merged(condition: tuple[Any, ...] = ("Identity", "flag", "c")) -> Any:
    """If(flag) {x·W} else {x·W + x}; `n` is another input, an INT64 scalar."""
    branches = {
        "then_branch": graph_proto([("MatMul", "x w", "p")], {}, ["p"]),
        "else_branch": graph_proto([("MatMul", "x w", "q"), ("Add", "q x", "s")], {}, ["s"]),
    }
    inputs = {"x": (2, 4), "flag": (bool, (1,)), "n": (np.int64, ())}
    weights = {"w": np.eye(4, dtype=np.float32), "three": np.array(3)}
    return to_graph(model(condition, ("If", "c", "y", branches), inputs=inputs, weights=weights))


def seen(flags: list[bool], numbers: list[int] | None = None) -> Any:
    sights = Sights()
    for i, flag in enumerate(flags):
        n = np.array((numbers or list(range(len(flags))))[i])
        sights.watch({"x": np.full((2, 4), i, np.float32), "flag": np.array([flag]), "n": n})
    return sights.found


@pytest.mark.parametrize("flag", [True, False])
def test_an_input_that_was_always_the_same_is_named_with_the_option_that_fixes_it(flag: bool) -> None:
    (text,) = told(merged(), seen([flag] * 3))
    assert text.startswith("input 'flag' decides which branch of 'Y' is taken")
    assert f"--fix-input flag={str(flag).lower()} " in text


def test_a_number_that_is_compared() -> None:
    (text,) = told(merged(("Greater", "n three", "c")), seen([True, False], [5, 5]))
    assert "--fix-input n=5 " in text


@pytest.mark.parametrize(
    ("graph", "sights"),
    [
        (merged(), seen([True, False])),
        (merged(("Greater", "n three", "c")), seen([True, True])),
    ],
    ids=["both", "another-input"],
)
def test_nothing_is_said_where_it_varies_or_does_not_matter(graph: Any, sights: Any) -> None:
    assert list(told(graph, sights)) == []
