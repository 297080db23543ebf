"""A choice between two branches, one session for both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.runtime.session import Session
from qcompiler.runtime.switches import alternatives, choice, node, value_info

X = np.array([[-1, 2], [3, -4]], np.float32)


def switched(*choices: onnx.NodeProto, inputs: tuple[str, ...] = ("on",)) -> Session:
    graph = onnx.GraphProto(name="g", node=choices)
    graph.input.append(value_info("x", TensorProto.FLOAT))
    graph.input.extend(value_info(name, TensorProto.BOOL, scalar=True) for name in inputs)
    graph.output.append(value_info(choices[-1].output[0], TensorProto.FLOAT))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Session((proto, {}), threads=1)


def run(session: Session, **flags: bool) -> Any:
    return session.run({"x": X, **{name: np.array(flag) for name, flag in flags.items()}})


def test_either_branch_is_taken_by_the_same_session() -> None:
    then = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"])]
    session = switched(choice("on", "own_", "y", then, [node("Abs", ["x"], ["c"])]))
    for flag, expected in ((True, -np.maximum(X, 0)), (False, np.abs(X)), (True, -np.maximum(X, 0))):
        np.testing.assert_array_equal(run(session, on=flag)["y"], expected)


def test_branches_read_what_stands_around_and_choices_follow_each_other() -> None:
    first = choice("on", "one_", "m", [node("Neg", ["x"], ["a"])], [node("Identity", ["x"], ["b"])])
    second = choice("too", "two_", "y", [node("Add", ["m", "x"], ["c"])], [node("Identity", ["m"], ["d"])])
    session = switched(first, second, inputs=("on", "too"))
    for on in (True, False):
        for too in (True, False):
            middle = -X if on else X
            np.testing.assert_array_equal(run(session, on=on, too=too)["y"], middle + X if too else middle)


def test_names_are_made_of_the_prefix_alone() -> None:
    made = choice("on", "own_", "y", [node("Neg", ["x"], ["a"])], [node("Abs", ["x"], ["b"])])
    assert (made.name, list(made.input), list(made.output)) == ("own_If", ["on"], ["y"])
    bodies = {one.name: one.g for one in made.attribute}
    assert {name: (one.name, one.output[0].name) for name, one in bodies.items()} == {
        "then_branch": ("own_then", "a"),
        "else_branch": ("own_else", "b"),
    }


@pytest.mark.parametrize("scalar", [True, False])
def test_a_value_has_the_shape_of_a_scalar_or_none(scalar: bool) -> None:
    kind = value_info("v", TensorProto.INT8, scalar=scalar).type.tensor_type
    assert kind.elem_type == TensorProto.INT8
    assert kind.HasField("shape") is scalar
    assert len(kind.shape.dim) == 0


def test_several_outputs_come_from_one_choice() -> None:
    types = {"y": TensorProto.FLOAT, "z": TensorProto.BOOL}
    then = ([node("Neg", ["x"], ["a"]), node("IsNaN", ["x"], ["b"])], ["a", "b"])
    other = ([node("Abs", ["x"], ["c"]), node("IsInf", ["x"], ["d"])], ["c", "d"])
    graph = onnx.GraphProto(name="g", node=[alternatives("on", "own_", types, then, other)])
    graph.input.extend([value_info("x", TensorProto.FLOAT), value_info("on", TensorProto.BOOL, scalar=True)])
    graph.output.extend(value_info(name, element) for name, element in types.items())
    session = Session((helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {}))
    values = np.array([[-1, np.inf], [np.nan, 2]], np.float32)
    for flag, first, second in ((True, -values, np.isnan(values)), (False, np.abs(values), np.isinf(values))):
        found = session.run({"x": values, "on": np.array(flag)})
        np.testing.assert_array_equal(found["y"], first)
        np.testing.assert_array_equal(found["z"], second)
