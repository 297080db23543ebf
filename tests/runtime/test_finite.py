"""The first tensor that is NaN or infinite, and the node that made it out of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.model import Model
from qcompiler.runtime.finite import (
    finite,
    first_not_finite,
    flat,
    not_finite,
    overflowing,
    refuse_not_finite,
    refuse_outputs,
)
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, model, to_graph

ONES = np.ones((2, 4), np.float32)
LARGE = np.float32(3e38)


def culprit(*nodes: Spec, x: Any = ONES, **weights: Any) -> str | None:
    """Name of the node that is to blame where the model reads x."""
    node = first_not_finite(to_graph(model(*nodes, weights=weights)), {"x": np.asarray(x, np.float32)})
    return node.name if node is not None else None


def test_numbers_have_no_culprit() -> None:
    assert culprit(("Relu", "x", "a"), ("Neg", "a", "y")) is None


def test_the_first_node_that_makes_nan_is_to_blame_and_not_those_behind() -> None:
    assert culprit(("Neg", "x", "a"), ("Log", "a", "b"), ("Relu", "b", "y")) == "B"


def test_a_mask_of_minus_infinity_is_ordinary_where_nothing_comes_of_it() -> None:
    mask = np.array([0, 0, 0, -np.inf], np.float32)
    assert culprit(("Add", "x m", "a"), ("Softmax", "a", "b"), ("Sqrt", "b", "y"), m=mask, x=-ONES) == "A"
    assert culprit(("Add", "x m", "a"), ("Softmax", "a", "b"), ("Neg", "b", "c"), ("Log", "c", "y"), m=mask) == "Y"


def test_where_nan_comes_of_an_infinity_the_node_that_made_it_is_to_blame() -> None:
    nodes: list[Spec] = [("Mul", "x big", "a"), ("Identity", "a", "b"), ("Sub", "b b", "c"), ("Relu", "c", "y")]
    assert culprit(*nodes, x=ONES * 10, big=LARGE) == "A"


def test_infinity_that_is_given_is_the_fault_of_nobody_before() -> None:
    assert culprit(("Identity", "x", "a"), ("Sub", "a a", "y"), x=ONES * np.inf) == "Y"
    assert culprit(("Sub", "x x", "y"), x=ONES * np.inf) == "Y"


def test_an_overflow_counts_where_there_is_no_nan() -> None:
    assert culprit(("Mul", "x big", "a"), ("Relu", "a", "y"), x=ONES * 10, big=LARGE) == "A"


def test_tensors_without_a_declared_type_are_looked_at_too() -> None:
    graph = to_graph(model(("Neg", "x", "a"), ("Log", "a", "y")))
    for node in graph.nodes:
        node.outputs[0].dtype = None
    node = first_not_finite(graph, {"x": ONES})
    assert node is not None
    assert node.name == "Y"


def test_integers_are_no_concern() -> None:
    assert culprit(("Cast", "x", "i", {"to": onnx.TensorProto.INT64}), ("Neg", "i", "y")) is None


def loaded(*nodes: Spec) -> Model:
    return Model(to_graph(model(*nodes)), {}, None, 8)


def test_the_first_sample_with_such_an_output_is_named_with_the_node() -> None:
    model_ = loaded(("Neg", "x", "a"), ("Sqrt", "a", "y"))
    refuse_not_finite(model_, [{"x": -ONES}, {"x": ONES * 0}])
    with pytest.raises(ModelError) as caught:
        refuse_not_finite(model_, [{"x": -ONES}, {"x": ONES}, {"x": ONES * 2}])
    message = str(caught.value)
    assert message.startswith("output 'y' of the float model has NaN or infinite values on sample 1; node 'Y' (Sqrt)")
    assert "\n" not in message


def test_an_error_without_a_culprit_says_so() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    assert "no node explains it" in str(not_finite(graph, {"x": ONES}, "output 'y'", "sample 0"))


def test_sequences_and_maps_count_as_their_elements() -> None:
    parts = list(flat([ONES, [np.zeros(1), {"a": 1.5}]]))
    assert [part.tolist() for part in parts] == [ONES.tolist(), [0.0], ["a"], [1.5]]
    assert list(flat([])) == []
    assert [part.tolist() for part in flat(np.float32(2))] == [2.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1.0, -1e308]), True),
        (np.array([np.nan]), False),
        (np.array([np.inf], np.float16), False),
        (np.array(-np.inf), False),
        (np.zeros(0), True),
        (np.array([1, 2]), True),
        (np.array(["nan"], object), True),
        (np.array([True]), True),
    ],
)
def test_an_array_is_finite_without_nan_and_infinity(value: Any, expected: bool) -> None:
    assert finite(value) is expected


def outputs(*nodes: Spec, x: Any = ONES, **weights: Any) -> None:
    graph = to_graph(model(*nodes, weights=weights))
    feeds = {"x": np.asarray(x, np.float32)}
    refuse_outputs(graph, feeds, Session(graph).run(feeds), 3)


MASK = np.array([True, False, True, True])


@pytest.mark.parametrize("odd", [-np.inf, np.inf, np.nan])
def test_what_is_put_into_an_output_on_purpose_is_taken(odd: float) -> None:
    outputs(("Relu", "x", "a"), ("Where", "m a odd", "y"), m=MASK, odd=np.float32(odd))


def test_the_logarithm_of_zero_is_taken_and_that_of_less_is_not() -> None:
    x = np.array([[0, 1, 2, 3]] * 2)
    outputs(("Log", "x", "y"), x=x)
    with pytest.raises(ModelError, match=r"output 'y' .* on sample 3; node 'Y' \(Log\) is the first"):
        outputs(("Log", "x", "y"), x=x - 1)


def test_nan_on_purpose_does_not_excuse_another() -> None:
    nodes: list[Spec] = [("Log", "x", "a"), ("Where", "m a odd", "y")]
    with pytest.raises(ModelError, match="'A' .Log."):
        outputs(*nodes, x=-ONES, m=MASK, odd=np.float32(np.nan))


def test_outputs_without_any_number_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'A' \(Mul\)"):
        outputs(("Mul", "x big", "a"), ("Relu", "a", "y"), x=ONES * 10, big=LARGE)


def test_infinities_that_are_constant_have_no_maker() -> None:
    feeds = {"x": ONES * 10}
    masked = model(("Where", "m x odd", "y"), weights={"m": MASK, "odd": np.float32(-np.inf)})
    assert overflowing(to_graph(masked), feeds) is None
    made = overflowing(to_graph(model(("Mul", "x big", "a"), ("Relu", "a", "y"), weights={"big": LARGE})), feeds)
    assert made is not None
    assert made.name == "A"
