"""name-dimensions: free sizes get names of their own, names that mean something stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.graph import shape_of
from qcompiler.passes.base import Changed
from qcompiler.passes.cleanup.name_dimensions import NameDimensions
from tests.kit.rewrite import check, check_untouched, model, to_graph


def proto(*dims: Any) -> Any:
    return model(("Relu", "x", "y"), inputs={"x": dims})


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((None, 3, None), ("x_dim0", 3, "x_dim2")),
        (("?", 3, "?"), ("x_dim0", 3, "x_dim2")),
        (("batch", "?"), ("batch", "x_dim1")),
        (("n", "n"), ("x_dim0", "x_dim1")),
        (("-1", 4), ("x_dim0", 4)),
    ],
)
def test_sizes_without_a_meaning_get_names(dims: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    feeds = {"x": np.ones([dim if isinstance(dim, int) else 2 for dim in dims], np.float32)}
    graph, report = check(NameDimensions(), proto(*dims), feeds, tolerance=0)
    assert shape_of(graph.inputs[0]) == expected
    assert [type(note) for note in report.notes] == [Changed]


@pytest.mark.parametrize("dims", [(2, 3), ("batch", 3, "height"), ()])
def test_fixed_sizes_and_names_stay(dims: tuple[Any, ...]) -> None:
    check_untouched(NameDimensions(), proto(*dims))


def test_a_name_that_two_inputs_share_says_that_they_are_equal_and_stays() -> None:
    check_untouched(NameDimensions(), model(("Add", "x z", "y"), inputs={"x": ("n", 3), "z": ("n", 3)}))


def test_inputs_of_unknown_rank_are_left_alone() -> None:
    graph = to_graph(model(("Relu", "x", "y"), inputs={"x": (2, 3)}))
    graph.inputs[0].shape = None
    assert NameDimensions()(graph).notes == ()
