from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from qcompiler.passes.cleanup.eliminate_identities import EliminateIdentities
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model

ONE, ZERO = np.float32(1), np.float32(0)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        pytest.param(("Identity", "x", "a"), {}, id="Identity"),
        pytest.param(("Dropout", "x", "a"), {}, id="Dropout"),
        pytest.param(("Dropout", "x", "a mask"), {}, id="Dropout whose mask nobody reads"),
        pytest.param(("Dropout", "x r t", "a"), {"r": ONE / 2, "t": np.array(False)}, id="Dropout told not to train"),
        pytest.param(("Cast", "x", "a", {"to": TensorProto.FLOAT}), {}, id="Cast to the same type"),
        pytest.param(("Transpose", "x", "a", {"perm": [0, 1]}), {}, id="Transpose that keeps the order"),
        pytest.param(("Reshape", "x s", "a"), {"s": np.array([2, 4])}, id="Reshape to the same shape"),
        pytest.param(("Reshape", "x s", "a"), {"s": np.array([0, -1])}, id="Reshape that copies and infers"),
        pytest.param(("Flatten", "x", "a"), {}, id="Flatten of a matrix"),
        pytest.param(("Expand", "x s", "a"), {"s": np.array([1, 1])}, id="Expand by ones"),
        pytest.param(("Pad", "x p", "a"), {"p": np.zeros(4, np.int64)}, id="Pad by nothing"),
        pytest.param(("Concat", "x", "a", {"axis": 0}), {}, id="Concat of one"),
        pytest.param(("Sum", "x", "a"), {}, id="Sum of one"),
        pytest.param(("Mul", "x c", "a"), {"c": ONE}, id="times 1"),
        pytest.param(("Mul", "c x", "a"), {"c": ONE}, id="1 times"),
        pytest.param(("Mul", "x c", "a"), {"c": np.ones((1, 4), np.float32)}, id="times a row of ones"),
        pytest.param(("Div", "x c", "a"), {"c": ONE}, id="divided by 1"),
        pytest.param(("Add", "x c", "a"), {"c": ZERO}, id="plus 0"),
        pytest.param(("Sub", "x c", "a"), {"c": ZERO}, id="minus 0"),
        pytest.param(("Pow", "x c", "a"), {"c": ONE}, id="to the power of 1"),
    ],
)
def test_removed(spec: Any, weights: dict[str, Any]) -> None:
    graph, report = check(EliminateIdentities(), model(spec, ("Relu", "a", "y"), weights=weights), ops=["Relu"])
    assert graph.nodes[0].inputs[0] is graph.inputs[0]
    assert "its readers read 'x'" in report.notes[0].text


def test_a_chain_goes_in_one_run() -> None:
    check(EliminateIdentities(), model(("Identity", "x", "a"), ("Dropout", "a", "b"), ("Relu", "b", "y")), ops=["Relu"])


def test_the_node_before_takes_over_the_name_of_a_graph_output() -> None:
    graph, _ = check(EliminateIdentities(), model(("Relu", "x", "a"), ("Identity", "a", "y")), ops=["Relu"])
    assert graph.nodes[0].outputs[0].name == "y"


def test_readers_inside_nested_graphs_follow() -> None:
    then, other = (graph_proto([(op, "a", out)], {}, [out]) for op, out in (("Relu", "t"), ("Neg", "o")))
    proto = model(
        ("Identity", "x", "a"),
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    check(EliminateIdentities(), proto, ops=["If"])


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        pytest.param(("Dropout", "x r t", "a"), {"r": ZERO, "t": np.array(True)}, id="Dropout told to train"),
        pytest.param(("Cast", "x", "a", {"to": TensorProto.DOUBLE}), {}, id="Cast to another type"),
        pytest.param(("Transpose", "x", "a"), {}, id="Transpose that reverses"),
        pytest.param(("Reshape", "x s", "a"), {"s": np.array([4, 2])}, id="Reshape to another shape"),
        pytest.param(("Reshape", "x s", "a"), {"s": np.array([-1])}, id="Reshape that flattens"),
        pytest.param(("Pad", "x p", "a"), {"p": np.array([0, 0, 0, 1])}, id="Pad by something"),
        pytest.param(("Expand", "x s", "a"), {"s": np.array([3, 1, 1])}, id="Expand by an axis"),
        pytest.param(("Mul", "x c", "a"), {"c": np.ones((3, 1, 1), np.float32)}, id="ones that broadcast"),
        pytest.param(("Add", "x c", "a"), {"c": np.array([0, 0, 0, 1e-9], np.float32)}, id="almost 0"),
        pytest.param(("Sub", "c x", "a"), {"c": ZERO}, id="0 minus"),
        pytest.param(("Div", "c x", "a"), {"c": ONE}, id="1 divided by"),
    ],
)
def test_kept(spec: Any, weights: dict[str, Any]) -> None:
    check_untouched(EliminateIdentities(), model(spec, ("Abs", "a", "y"), weights=weights))


def test_a_dropout_whose_mask_is_read_stays() -> None:
    proto = model(("Dropout", "x", "a m"), ("Not", "m", "n"), ("Relu", "a", "y"), outputs=["y", "n"])
    check_untouched(EliminateIdentities(), proto)


def test_reshape_of_an_open_shape_is_not_sure_and_stays() -> None:
    proto = model(
        ("Reshape", "x s", "a"), ("Relu", "a", "y"), inputs={"x": ("n", "m")}, weights={"s": np.array([3, 3])}
    )
    check_untouched(EliminateIdentities(), proto)


def test_a_copy_of_an_input_to_an_output_stays() -> None:
    check_skipped(EliminateIdentities(), model(("Identity", "x", "y")), "would have no node of its own")


def test_two_outputs_with_the_same_value_stay_two() -> None:
    proto = model(("Relu", "x", "a"), ("Identity", "a", "y"), outputs=["a", "y"])
    check_skipped(EliminateIdentities(), proto, "both 'y' and 'a' are graph outputs")


def test_a_branch_that_returns_an_outer_tensor_keeps_its_identity() -> None:
    then = graph_proto([("Identity", "a", "t")], {}, ["t"])
    other = graph_proto([("Neg", "a", "o")], {}, ["o"])
    proto = model(
        ("Relu", "x", "a"),
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    check_skipped(EliminateIdentities(), proto, "belongs to the graph around")
