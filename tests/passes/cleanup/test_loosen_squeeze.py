from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.passes.cleanup.loosen_squeeze import LoosenSqueeze
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model


def branched(axes: Any, dims: tuple[int | str, ...], *, fixed: bool = True) -> onnx.ModelProto:
    """If(flag) {Squeeze(x)} else {the same, negated}; without `fixed` the axes are an input."""
    then = graph_proto([("Squeeze", "x a", "t")], {}, ["t"])
    other = graph_proto([("Neg", "x", "n"), ("Reshape", "n shape", "e")], {}, ["e"])
    held = {"shape": np.array([-1] + [1] * (len(dims) - len(axes) - 1))}
    return model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": dims, "flag": (bool, ()), **({} if fixed else {"a": (np.int64, (len(axes),))})},
        weights={**held, **({"a": np.array(axes)} if fixed else {})},
    )


def feeds(*dims: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal(dims).astype(np.float32), "flag": np.array(True)}


@pytest.mark.parametrize("axis", [2, -1])
def test_an_open_dimension_is_selected(axis: int) -> None:
    graph, report = check(LoosenSqueeze(), branched([axis], ("batch", 4, "time")), feeds(3, 4, 1), tolerance=0)
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Gather"]
    assert report.notes[0].text == "takes element 0 of axes [2] instead of squeezing them"


def test_several_dimensions_are_selected_from_the_last() -> None:
    graph, _ = check(LoosenSqueeze(), branched([-1, 1], ("batch", "a", 4, "b")), feeds(3, 1, 4, 1), tolerance=0)
    assert [node.attrs["axis"] for node in graph.nodes[0].attrs["then_branch"].nodes] == [3, 1]


def test_a_dimension_that_is_one_stays_squeezed() -> None:
    check_untouched(LoosenSqueeze(), branched([1], ("batch", 1, 4)))


def test_axes_that_are_fed_stay() -> None:
    check_skipped(LoosenSqueeze(), branched([1], ("batch", "a", 4), fixed=False), "axes are not known")


def test_a_squeeze_outside_of_branches_is_left_alone() -> None:
    check_untouched(
        LoosenSqueeze(), model(("Squeeze", "x a", "y"), inputs={"x": ("n", "t")}, weights={"a": np.array([1])})
    )
