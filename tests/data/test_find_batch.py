"""The batch axis is found by running samples joined and apart, or told: kinds of models with one and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.data.find_batch import find
from qcompiler.errors import UsageError
from qcompiler.ir.signature import Feeds, inputs_of
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(0)
I64 = np.int64


def graph(
    *nodes: Spec, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), opset: int = 17, **weights: Any
) -> gs.Graph:
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights=weights, opset=opset))


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def axes(g: gs.Graph, *feeds: Feeds, told: Any = None) -> dict[str, int]:
    return dict(find(g, feeds, inputs_of(g), told or {}).axes)


def ints(*values: int) -> Any:
    return np.array(values, I64)


MLP: Sequence[Spec] = (("Gemm", "x w", "a"), ("Relu", "a", "y"))


@pytest.mark.parametrize(
    "feeds",
    [
        [{"x": normal(6, 4)}],
        [{"x": normal(1, 4)}, {"x": normal(1, 4)}],
        [{"x": normal(1, 4)}],
        [{"x": np.ones((1, 4), np.float32)}],
        [{"x": normal(1, 4)}, {"x": normal(5, 4)}],
    ],
)
def test_rows_that_do_not_know_of_each_other_are_samples(feeds: list[Feeds]) -> None:
    assert axes(graph(*MLP, inputs={"x": ("rows", 4)}, w=normal(4, 8)), *feeds) == {"x": 0}


def test_it_says_how_it_is_known() -> None:
    g = graph(*MLP, inputs={"x": ("rows", 4)}, w=normal(4, 8))
    feeds: list[Feeds] = [{"x": normal(6, 4)}]
    assert find(g, feeds, inputs_of(g), {}).how == "run"
    assert find(g, feeds, inputs_of(g), {"x": 0}).how == "told"
    assert find(g, feeds, inputs_of(g), {"x": None}).how == "told"
    pooled = graph(("ReduceMax", "x", "y", {"axes": [0]}), inputs={"x": ("n", 4)}, opset=13)
    assert find(pooled, feeds, inputs_of(pooled), {}).how == ""


NO_BATCH: dict[str, tuple[Sequence[Spec], dict[str, Any], dict[str, Any], list[Feeds]]] = {
    "points with a maximum": (
        (("Gemm", "x w", "a"), ("ReduceMax", "a", "m", {"axes": [0]}), ("Add", "a m", "y")),
        {"x": ("n", 4)},
        {"w": normal(4, 8)},
        [{"x": normal(300, 4)}],
    ),
    "sound": (
        (("Reshape", "x s", "u"), ("Conv", "u w", "c"), ("ReduceMean", "c", "y", {"axes": [2]})),
        {"x": ("t",)},
        {"s": ints(1, 1, -1), "w": normal(8, 1, 5)},
        [{"x": normal(90)}, {"x": normal(90)}],
    ),
    "picture in rows, columns, channels": (
        (
            ("Transpose", "x", "t", {"perm": [2, 0, 1]}),
            ("Unsqueeze", "t z", "u"),
            ("Conv", "u w", "c", {"pads": [1, 1, 1, 1]}),
            ("Squeeze", "c z", "s"),
            ("Transpose", "s", "y", {"perm": [1, 2, 0]}),
        ),
        {"x": ("h", "w", 3)},
        {"z": ints(0), "w": normal(8, 3, 3, 3)},
        [{"x": normal(40, 30, 3)}],
    ),
    "graph with edges": (
        (("Gather", "edges one", "to"), ("Gather", "x to", "g"), ("ReduceSum", "g z", "y", {"keepdims": 0})),
        {"x": ("nodes", 4), "edges": (I64, (2, "count"))},
        {"one": np.array(1, I64), "z": ints(0)},
        [{"x": normal(5, 4), "edges": RNG.integers(0, 5, (2, 12))}],
    ),
    "text as tokens": (
        (("Gather", "table ids", "e"), ("ReduceMean", "e", "y", {"axes": [0]})),
        {"ids": (I64, ("tokens",))},
        {"table": normal(20, 8)},
        [{"ids": RNG.integers(0, 20, 17)}, {"ids": RNG.integers(0, 20, 9)}],
    ),
    "differences in time": (
        (("CumSum", "x z", "y"),),
        {"x": ("t", 4)},
        {"z": np.array(0, I64)},
        [{"x": normal(30, 4)}],
    ),
    "a matrix of n by n": (
        (("MatMul", "x x", "y"),),
        {"x": ("n", "n")},
        {},
        [{"x": normal(6, 6)}],
    ),
    "a choice among all": (
        (("Gemm", "x w", "a"), ("Softmax", "a", "s", {"axis": 0}), ("ArgMax", "s", "y", {"axis": 1})),
        {"x": ("n", 4)},
        {"w": normal(4, 2) * 100},
        [{"x": normal(30, 4)}],
    ),
    "a size that is fixed inside": (
        (("Reshape", "x s", "r"), ("Relu", "r", "y")),
        {"x": ("batch", 4)},
        {"s": ints(1, 2, 2)},
        [{"x": normal(1, 4)}, {"x": normal(1, 4)}],
    ),
}


@pytest.mark.parametrize("kind", NO_BATCH)
def test_what_mixes_along_an_axis_has_no_batch_there(kind: str) -> None:
    nodes, inputs, weights, feeds = NO_BATCH[kind]
    assert axes(graph(*nodes, inputs=inputs, opset=13, **weights), *feeds) == {}


def lstm() -> gs.Graph:
    return graph(
        ("LSTM", "x w r", "y h c", {"hidden_size": 3}),
        inputs={"x": ("t", "b", 4)},
        outputs=("y",),
        w=normal(1, 12, 4),
        r=normal(1, 12, 3),
    )


def test_time_in_front_is_no_batch_and_what_is_called_one_behind_it_is() -> None:
    assert axes(lstm(), {"x": normal(9, 1, 4)}) == {"x": 1}
    assert axes(lstm(), {"x": normal(9, 5, 4)}) == {"x": 1}
    unnamed = lstm()
    unnamed.inputs[0].shape = ["t", "s", 4]
    assert axes(unnamed, {"x": normal(9, 5, 4)}) == {}


def test_only_some_of_the_inputs_have_a_batch() -> None:
    nodes: Sequence[Spec] = (
        ("MatMul", "x table", "a"),
        ("ReduceMax", "table", "m", {"axes": [1]}),
        ("Add", "a m", "y"),
    )
    table = {"x": ("batch", 6), "table": ("rows", 5)}
    g = graph(*nodes[:1], ("Relu", "a", "y"), inputs=table)
    assert axes(g, {"x": normal(3, 6), "table": normal(6, 5)}) == {"x": 0}
    assert axes(g, {"x": normal(6, 6), "table": normal(6, 5)}) == {"x": 0}
    nameless = graph(*nodes[:1], ("Relu", "a", "y"), inputs={"x": (None, 6), "table": (None, 5)})
    assert axes(nameless, {"x": normal(3, 6), "table": normal(6, 5)}) == {"x": 0}


def test_inputs_whose_batch_stands_at_different_axes_share_its_name() -> None:
    nodes: Sequence[Spec] = (
        ("LSTM", "x w r _ _ h", "y last c", {"hidden_size": 3}),
        ("Relu", "last", "z"),
    )
    g = graph(
        *nodes,
        inputs={"x": ("t", "batch", 4), "h": (1, "batch", 3)},
        outputs=("y", "z"),
        w=normal(1, 12, 4),
        r=normal(1, 12, 3),
    )
    assert axes(g, {"x": normal(5, 2, 4), "h": normal(1, 2, 3)}) == {"x": 1, "h": 1}


def test_choices_are_compared_by_what_is_chosen_among() -> None:
    g = graph(("Gemm", "x w", "a"), ("ArgMax", "a", "y", {"axis": 1}), inputs={"x": ("n", 4)}, w=normal(4, 8))
    assert axes(g, {"x": normal(30, 4)}) == {"x": 0}


def test_halves_move_by_more_and_are_samples_still() -> None:
    weights = {"w": (normal(64, 64) / 8).astype(np.float16)}
    nodes: Sequence[Spec] = (("Cast", "x", "h", {"to": 10}), ("MatMul", "h w", "a"), ("Cast", "a", "y", {"to": 1}))
    assert axes(graph(*nodes, inputs={"x": ("n", 64)}, **weights), {"x": normal(9, 64)}) == {"x": 0}


def test_what_is_told_is_not_looked_for() -> None:
    g = graph(("ReduceMax", "x", "y", {"axes": [0]}), inputs={"x": ("n", "m")}, opset=13)
    assert axes(g, {"x": normal(3, 4)}, told={"x": 0}) == {"x": 0}
    assert axes(g, {"x": normal(3, 4)}, told={"x": None}) == {}


def test_inputs_that_are_not_told_are_found_beside_those_that_are() -> None:
    g = graph(("Add", "a b", "y"), inputs={"a": ("n", 4), "b": ("m", 4)})
    feed = {"a": normal(3, 4), "b": normal(3, 4)}
    assert axes(g, feed, told={"a": 0}) == {"a": 0, "b": 0}
    alone = {"a": normal(3, 4), "b": normal(1, 4)}
    assert axes(g, alone, told={"b": None}) == {"a": 0}


def test_a_model_that_cannot_be_run_has_no_samples() -> None:
    g = to_graph(model(("Strange", "x", "y", {}, "house"), inputs={"x": ("n", 4)}, domains=("house",)))
    assert axes(g, {"x": normal(3, 4)}) == {}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"y": 0}, "batch axis y=0: the model has no input 'y'"),
        ({"x": 2}, r"batch axis x=2: 'x' is \[n, 4\] and has axes 0 to 1"),
        ({"x": 1}, r"batch axis x=1: the model fixes that axis of 'x' \[n, 4\]"),
    ],
)
def test_axes_that_there_are_not_are_refused(told: dict[str, int], says: str) -> None:
    g = graph(*MLP, inputs={"x": ("n", 4)}, w=normal(4, 8))
    with pytest.raises(UsageError, match=says):
        axes(g, {"x": normal(3, 4)}, told=told)
