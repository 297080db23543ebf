from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from qcompiler.ir.graph import is_constant
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model, to_graph

W = np.arange(16, dtype=np.float32).reshape(4, 4)


def test_a_weight_in_a_constant_node_becomes_an_initializer() -> None:
    proto = model(("Constant", "", "w", {"value": numpy_helper.from_array(W)}), ("MatMul", "x w", "y"))
    graph, report = check(NormalizeConstants(), proto, ops=["MatMul"])
    assert is_constant(graph.nodes[0].inputs[1])
    assert report.notes[0].text == "initializer 'w' float32[4, 4]"


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("value_float", 2.5, np.float32(2.5)),
        ("value_floats", [1.0, 2.0, 3.0, 4.0], np.array([1, 2, 3, 4], np.float32)),
    ],
)
def test_floats_in_attributes_become_initializers(attribute: str, value: Any, expected: Any) -> None:
    graph, _ = check(
        NormalizeConstants(), model(("Constant", "", "c", {attribute: value}), ("Mul", "x c", "y")), ops=["Mul"]
    )
    found = graph.nodes[0].inputs[1].values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("attribute", "value", "shape"), [("value_int", 8, ()), ("value_ints", [4, 2], (2,))])
def test_integers_in_attributes_become_int64_initializers(attribute: str, value: Any, shape: tuple[int, ...]) -> None:
    proto = model(("Constant", "", "c", {attribute: value}), ("Mul", "n c", "y"), inputs={"n": (np.int64, (2,))})
    graph, _ = check(NormalizeConstants(), proto, ops=["Mul"])
    assert graph.nodes[0].inputs[1].values.dtype == np.int64
    assert graph.nodes[0].inputs[1].values.shape == shape


def test_constants_of_nested_graphs_are_reached() -> None:
    body = graph_proto([("Constant", "", "c", {"value_float": 2.0}), ("Mul", "x c", "o")], {}, ["o"])
    other = graph_proto([("Relu", "x", "p")], {}, ["p"])
    proto = model(
        ("If", "flag", "y", {"then_branch": body, "else_branch": other}), inputs={"x": (2, 4), "flag": (bool, ())}
    )
    graph, _ = check(NormalizeConstants(), proto, ops=["If"])
    assert [one.op for one in graph.nodes[0].attrs["then_branch"].nodes] == ["Mul"]


def test_an_initializer_that_is_an_input_stops_being_one() -> None:
    graph = to_graph(model(("MatMul", "x w", "y"), weights={"w": W}))
    graph.inputs.append(graph.nodes[0].inputs[1])
    report = NormalizeConstants()(graph)
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert report.notes[0].node == "w"


def test_the_original_of_a_copied_graph_keeps_its_constant() -> None:
    graph = to_graph(
        model(("Constant", "", "w", {"value": numpy_helper.from_array(W, "held")}), ("MatMul", "x w", "y"))
    )
    NormalizeConstants()(graph.copy())
    assert graph.nodes[0].op == "Constant"
    assert graph.nodes[0].attrs["value"].name == "held"


def test_a_constant_that_is_an_output_stays() -> None:
    proto = model(("Constant", "", "y", {"value_float": 1.0}), ("Relu", "x", "z"), outputs=["y", "z"])
    check_skipped(NormalizeConstants(), proto, "'y' is a graph output")


def test_strings_stay() -> None:
    proto = model(
        ("Constant", "", "c", {"value_strings": ["a", "b"]}),
        ("StringNormalizer", "c", "s", {"case_change_action": "UPPER"}),
        ("Shape", "s", "y"),
    )
    check_skipped(NormalizeConstants(), proto, "strings")


SPARSE = helper.make_sparse_tensor(
    numpy_helper.from_array(np.array([3.0], np.float32), "w"), numpy_helper.from_array(np.array([1]), "i"), [4]
)


def test_sparse_values_of_a_constant_become_dense() -> None:
    proto = model(("Constant", "", "c", {"sparse_value": SPARSE}), ("Mul", "x c", "y"))
    graph, _ = check(NormalizeConstants(), proto, ops=["Mul"])
    np.testing.assert_array_equal(graph.nodes[0].inputs[1].values, np.array([0, 3, 0, 0], np.float32))


def test_sparse_initializers_become_dense_once_for_all_graphs() -> None:
    branches = {name: graph_proto([(op, "x w", name)], {}, [name]) for name, op in (("t", "Mul"), ("e", "Add"))}
    proto = model(
        ("If", "c", "z", {"then_branch": branches["t"], "else_branch": branches["e"]}),
        ("Sub", "z w", "y"),
        inputs={"x": (2, 4), "c": (np.bool_, ())},
    )
    proto.graph.sparse_initializer.append(SPARSE)
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    graph, report = check(NormalizeConstants(), proto, feeds)
    (note,) = report.notes
    assert "is dense" in note.text
    np.testing.assert_array_equal(graph.nodes[1].inputs[1].values, np.array([0, 3, 0, 0], np.float32))


def test_a_model_with_plain_initializers_is_left_alone() -> None:
    check_untouched(NormalizeConstants(), model(("MatMul", "x w", "y"), weights={"w": W}))
