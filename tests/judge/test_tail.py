"""The tail of an output: which steps make it discrete, what these read, and whether rows were picked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.judge.tail import Tail, Tails
from tests.kit.rewrite import Spec, model, to_graph

W = np.ones((4, 4), np.float32)
K = np.array([2])


def tail_of(*nodes: Spec, output: str = "y", **options: Any) -> tuple[Tail, list[str]]:
    graph = to_graph(model(("MatMul", "x w", "h"), *nodes, outputs=(output,), weights={"w": W, "k": K}, **options))
    found = Tails(graph).of(graph.outputs[0])
    return found, [tensor.name for tensor in found.sources]


def test_a_plain_output_has_no_tail() -> None:
    found, sources = tail_of(("Relu", "h", "y"))
    assert (found.steps, sources, found.selected) == ((), [], False)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions_of_the_largest_stand_where_they_stood(op: str) -> None:
    found, sources = tail_of((op, "h", "i", {"axis": 1}), ("Cast", "i", "y", {"to": 6}))
    assert (found.steps, sources, found.selected) == ((op,), ["h"], False)


def test_a_threshold_is_discrete_and_picks_nothing() -> None:
    found, sources = tail_of(("Greater", "h zero", "y"), inputs={"x": (2, 4), "zero": (1,)})
    assert (found.steps, found.selected) == (("Greater",), False)
    assert set(sources) == {"h"} | ({"zero"} & set(sources))


def test_what_topk_orders_and_what_is_gathered_by_it_is_picked() -> None:
    found, sources = tail_of(
        ("MatMul", "x w", "b"), ("TopK", "h k", "v i", {"axis": 1}), ("GatherElements", "b i", "y", {"axis": 1})
    )
    assert (found.steps, sorted(sources), found.selected) == (("TopK",), ["b", "h"], True)


def test_boxes_that_are_scaled_behind_their_choice_are_still_picked() -> None:
    nodes = [
        ("NonMaxSuppression", "boxes scores", "s"),
        ("Gather", "s k", "i", {"axis": 1}),
        ("Gather", "flat i", "g"),
        ("Mul", "g scale", "y"),
    ]
    before = [("Reshape", "h one", "boxes"), ("Reshape", "h two", "scores"), ("Reshape", "h three", "flat")]
    graph = to_graph(
        model(
            ("MatMul", "x w", "h"),
            *before,
            *nodes,
            inputs={"x": (2, 4), "scale": (1,)},
            weights={
                "w": W, "k": np.array(2), "one": np.array([1, 2, 4]), "two": np.array([1, 1, 8]),
                "three": np.array([2, 4]),
            },
        )
    )  # fmt: skip
    found = Tails(graph).of(graph.outputs[0])
    assert found.selected
    assert {tensor.name for tensor in found.sources} == {"boxes", "scores", "flat"} | (
        {"scale"} & {tensor.name for tensor in found.sources}
    )


def test_experts_that_are_weighed_by_a_choice_stand_where_they_stood() -> None:
    found, sources = tail_of(
        ("MatMul", "x w", "e"), ("TopK", "h k", "v i", {"axis": 1}), ("ReduceSum", "v", "s", {"keepdims": 1}),
        ("Mul", "e s", "y"), opset=13,
    )  # fmt: skip
    assert not found.selected
    assert set(sources) <= {"h", "e"}


def test_a_layer_behind_a_choice_ends_the_tail() -> None:
    found, _ = tail_of(("TopK", "h k", "v i", {"axis": 1}), ("MatMul", "v u", "y"), inputs={"x": (2, 4), "u": (2, 4)})
    assert found.steps == ()


def test_a_choice_by_sizes_or_inputs_alone_is_none() -> None:
    found, _ = tail_of(("Shape", "x", "n"), ("Greater", "n k", "b"), ("Where", "b h h", "y"))
    assert found.steps == ()


def test_a_picture_in_bytes_moves_numbers_as_well() -> None:
    graph = to_graph(
        model(
            ("Cast", "x", "f", {"to": 1}), ("MatMul", "f w", "h"), ("ArgMax", "h", "y", {"axis": 1}),
            inputs={"x": (np.uint8, (2, 4))}, weights={"w": W},
        )
    )  # fmt: skip
    tails = Tails(graph)
    assert [tensor.name for tensor in tails.of(graph.outputs[0]).sources] == ["h"]
    assert not tails.computed(graph.inputs[0])


def test_what_holds_floats_is_told_by_type_or_by_what_writes_it() -> None:
    graph = to_graph(model(("MatMul", "x w", "h"), ("ArgMax", "h", "y"), weights={"w": W}))
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.name != "x":
            tensor.dtype = None
    tails = Tails(graph)
    assert [tails.is_float(node.outputs[0]) for node in graph.nodes] == [True, False]


def test_scales_that_are_found_at_run_time_belong_to_the_layer_behind() -> None:
    stored = {"w8": np.ones((4, 4), np.int8), "ws": np.float32(0.01)}
    nodes: list[Spec] = [
        ("DynamicQuantizeLinear", "x", "q s z"),
        ("MatMulInteger", "q w8 z", "i"),
        ("Cast", "i", "f", {"to": 1}),
        ("Mul", "s ws", "scale"),
        ("Mul", "f scale", "y"),
    ]
    graph = to_graph(model(*nodes, inputs={"x": ("n", 4)}, outputs=("y",), weights=stored))
    found = Tails(graph).of(graph.outputs[0])
    assert (found.steps, found.sources, found.selected) == ((), (), False)


def test_an_output_of_integers_whose_scale_is_found_at_run_time_is_judged_by_the_floats() -> None:
    found, sources = tail_of(("DynamicQuantizeLinear", "h", "y s z"))
    assert (found.steps, sources, found.selected) == (("DynamicQuantizeLinear",), ["h"], False)
