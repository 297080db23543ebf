"""Where a graph may be cut, and that a segment is a model with what it reads and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir.model import to_proto
from qcompiler.runtime.segments import at_places, crossings, cut, extract, rest_of
from qcompiler.runtime.stream import run_once
from tests.kit.rewrite import model, to_graph

W = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)


def proto(*nodes: Any, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    options = {"inputs": {"x": (4, 16)}, "outputs": ("y",), "weights": {"w": W, "v": W[::-1]}} | options
    return to_proto(to_graph(model(*nodes, **options)))


CHAIN = (("MatMul", "x w", "a"), ("Relu", "a", "b"), ("MatMul", "b v", "c"), ("Relu", "c", "y"))


def names(found: Any) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    return [(one.reads, one.tensors, one.hands_on) for one in found]


def test_segments_follow_each_other_and_hand_on_what_later_ones_read() -> None:
    whole, weights = proto(*CHAIN)
    found = cut(whole, ["b", "y"], {"b": 8, "y": 8}, 8)
    assert names(found) == [(("x",), ("b",), ("b",)), (("b",), ("y",), ())]
    assert [(one.start, one.stop) for one in found] == [(0, 2), (2, 4)]
    (first, lent), second = extract(whole, weights, found)
    assert [one.name for one in first.graph.input] == ["x"]
    assert [one.name for one in first.graph.output] == ["b"]
    assert list(lent) == ["w"]
    x = np.ones((4, 16), np.float32)
    b = run_once((first, lent), {"x": x})["b"]
    y = run_once(second, {"b": b})["y"]
    np.testing.assert_array_equal(y, run_once((whole, weights), {"x": x})["y"])


@pytest.mark.parametrize(("budget", "count"), [(0, 2), (15, 2), (16, 1)])
def test_as_few_segments_as_the_budget_allows(budget: int, count: int) -> None:
    whole, _ = proto(*CHAIN)
    assert len(cut(whole, ["b", "y"], {"b": 8, "y": 8}, budget)) == count


def test_what_nobody_else_reads_may_not_cross() -> None:
    """`d` could be fused with what follows it, so there is no cut before it is read."""
    side = (("Exp", "x", "d"), ("MatMul", "x w", "b"), ("MatMul", "b v", "c"), ("Add", "c d", "y"))
    whole, _ = proto(*side)
    assert len(cut(whole, ["b", "c"], {"b": 8, "c": 8}, 0)) == 1
    shared, _ = proto(*side[:3], ("Add", "c d", "e"), ("Sub", "e d", "y"))
    assert names(cut(shared, ["b", "y"], {"b": 8, "y": 8}, 0))[1] == (("b", "d"), ("y",), ())


def test_integers_may_cross() -> None:
    nodes = (("Shape", "x", "n"), ("MatMul", "x w", "b"), ("MatMul", "b v", "c"), ("Reshape", "c n", "y"))
    whole, _ = proto(*nodes)
    assert names(cut(whole, ["b", "y"], {"b": 8, "y": 8}, 0))[1] == (("b", "n"), ("y",), ())


def test_what_an_average_reads_may_not_cross() -> None:
    kernel = np.ones((4, 4, 1, 1), np.float32)
    nodes = (
        ("Conv", "x w", "a"),
        ("Relu", "a", "b"),
        ("Sigmoid", "b", "c"),
        ("GlobalAveragePool", "c", "d"),
        ("Conv", "d w", "y"),
    )
    whole, _ = proto(*nodes, inputs={"x": (1, 4, 8, 8)}, weights={"w": kernel})
    found = names(cut(whole, ["b", "d", "y"], {"b": 8, "d": 8, "y": 8}, 0))
    assert [tensors for _, tensors, _ in found] == [("b", "d"), ("y",)]


def test_what_nested_graphs_read_is_handed_on() -> None:
    from onnx import helper

    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["a"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [4, 16])],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    whole, weights = proto(
        ("MatMul", "x w", "a"),
        ("MatMul", "a v", "b"),
        ("If", "yes", "c", branches),
        ("Add", "b c", "y"),
        inputs={"x": (4, 16), "yes": (np.bool_, ())},
    )
    found = cut(whole, ["a", "b", "y"], dict.fromkeys("aby", 8), 0)
    assert names(found)[2] == (("yes", "a", "b"), ("y",), ())
    given = {"x": np.ones((4, 16), np.float32), "yes": np.array(True)}
    held = dict(given)
    for one, alone in zip(found, extract(whole, weights, found), strict=True):
        held |= run_once(alone, {name: held[name] for name in one.reads})
    np.testing.assert_array_equal(held["y"], run_once((whole, weights), given)["y"])
    assert names(found)[0][2] == ("a",)


def test_a_graph_in_no_order_is_not_cut() -> None:
    whole, _ = proto(*CHAIN)
    nodes = list(whole.graph.node)
    del whole.graph.node[:]
    whole.graph.node.extend(reversed(nodes))
    assert len(cut(whole, ["b", "y"], {"b": 8, "y": 8}, 0)) == 1


def test_a_long_graph_is_cut_behind_so_many_nodes_where_nothing_is_fused() -> None:
    nodes = [("Relu" if i % 2 else "Neg", "x" if not i else f"t{i - 1}", f"t{i}") for i in range(400)]
    whole, weights = proto(*nodes, ("Add", "x t399", "y"), inputs={"x": (4,)})
    found = cut(whole, ["t7", "y"], {}, 1 << 20, most=150)
    assert [one.stop - one.start for one in found] == [128, 128, 145]
    assert [one.tensors for one in found] == [("t7",), (), ("y",)]
    held = {"x": np.linspace(-1, 1, 4, dtype=np.float32)}
    for one, alone in zip(found, extract(whole, weights, found), strict=True):
        held |= run_once(alone, {name: held[name] for name in one.reads})
    np.testing.assert_array_equal(held["y"], run_once((whole, weights), {"x": held["x"]})["y"])
    assert len(cut(whole, ["t7", "y"], {}, 1 << 20)) == 1  # with fusions it is not


def typed(*nodes: Any, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    whole, weights = proto(*nodes, **options)
    whole = onnx.shape_inference.infer_shapes(whole)
    return whole, weights


def test_crossings_are_counted_in_front_of_each_node() -> None:
    whole, _ = typed(*CHAIN)
    assert crossings(whole) == [0, 1, 1, 1]
    side, _ = typed(("Exp", "x", "d"), ("MatMul", "x w", "b"), ("MatMul", "b v", "c"), ("Add", "c d", "y"))
    assert crossings(side) == [0, 1, 2, 2]


def test_there_is_no_cut_where_types_are_not_known_or_nodes_in_no_order() -> None:
    whole, _ = typed(*CHAIN)
    kept = [one for one in whole.graph.value_info if one.name != "b"]
    del whole.graph.value_info[:]
    whole.graph.value_info.extend(kept)
    assert crossings(whole) == [0, 1, None, 1]
    turned = [*whole.graph.node][::-1]
    del whole.graph.node[:]
    whole.graph.node.extend(turned)
    assert crossings(whole) == [None] * 4


def test_the_rest_from_a_node_on_gives_what_the_whole_gives() -> None:
    whole, weights = typed(*CHAIN)
    x = np.ones((4, 16), np.float32)
    known = run_once(typed(*CHAIN), {"x": x}, outputs=["a", "b", "y"])
    for start, reads in ((0, ("x",)), (1, ("a",)), (2, ("b",))):
        rest = rest_of(whole, ["b", "y"], start)
        assert (rest.start, rest.stop, rest.reads, rest.hands_on) == (start, 4, reads, ())
        assert rest.tensors == (("b", "y") if start < 2 else ("y",))
        (alone,) = extract(whole, weights, [rest])
        found = run_once(alone, {name: {**known, "x": x}[name] for name in reads})
        np.testing.assert_array_equal(found["y"], known["y"])


def test_segments_begin_where_they_are_told_to() -> None:
    whole, _ = typed(*CHAIN)
    found = at_places(whole, ["a"], (0, 1, 3))
    assert [(one.start, one.stop) for one in found] == [(0, 1), (1, 3), (3, 4)]
    assert names(found) == [(("x",), ("a",), ("a",)), (("a",), (), ("c",)), (("c",), (), ())]
