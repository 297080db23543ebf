from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import dtype_of, shape_of
from qcompiler.runtime import shapes
from qcompiler.runtime.shapes import concrete_shapes
from tests.kit.rewrite import graph_proto, model, random_feeds, to_graph

W = np.ones((4, 6), np.float32)


def _tensor(graph: gs.Graph, name: str) -> gs.Tensor:
    return graph.tensors()[name]


def test_open_dimensions_keep_their_names() -> None:
    graph = to_graph(model(("MatMul", "x w", "a"), ("Relu", "a", "y"), inputs={"x": ("batch", 4)}, weights={"w": W}))
    assert shapes.infer(graph) == []
    assert shape_of(_tensor(graph, "a")) == ("batch", 6)
    assert dtype_of(_tensor(graph, "a")) == np.float32


def test_shapes_computed_by_the_graph_are_followed() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Gather", "s i", "d"),
        ("Concat", "d m", "t", {"axis": 0}),
        ("Reshape", "x t", "y"),
        inputs={"x": (2, 4, 3)},
        weights={"i": np.array([1]), "m": np.array([-1])},
    )
    graph = to_graph(proto)
    assert shape_of(graph.outputs[0]) == (4, 6)


def test_what_the_file_says_wrongly_is_forgotten() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    _tensor(graph, "a").shape = [7, 7, 7]
    _tensor(graph, "a").dtype = np.dtype(np.int8)
    shapes.infer(graph)
    assert shape_of(_tensor(graph, "a")) == (2, 4)
    assert dtype_of(_tensor(graph, "a")) == np.float32


def test_tensors_of_branches_are_inferred() -> None:
    then, other = (graph_proto([("Relu", "x", f"{n}1"), ("Neg", f"{n}1", n)], {}, [n]) for n in "po")
    graph = to_graph(
        model(
            ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={"x": (2, 4), "flag": (bool, ())}
        )
    )
    assert shapes.infer(graph) == []
    assert shape_of(graph.nodes[0].attrs["then_branch"].nodes[0].outputs[0]) == (2, 4)


def test_tensors_behind_unknown_operators_are_listed() -> None:
    proto = model(
        ("Secret", "x", "a", {}, "com.acme"), ("Relu", "a", "b"), ("Cast", "b", "y", {"to": 1}), domains=["com.acme"]
    )
    assert shapes.infer(to_graph(proto)) == ["a", "b"]


def test_a_run_gives_every_shape() -> None:
    graph = to_graph(model(("MatMul", "x w", "a"), ("Relu", "a", "y"), inputs={"x": ("n", 4)}, weights={"w": W}))
    found = shapes.run_once(graph, {"x": np.zeros((5, 4), np.float32)})
    assert found == {"x": (5, 4), "w": (4, 6), "a": (5, 6), "y": (5, 6)}
    assert shape_of(_tensor(graph, "a")) == ("n", 6)


def test_a_run_corrects_what_it_contradicts() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    _tensor(graph, "a").shape = [2, 99]
    graph.outputs[0].shape = [1]
    shapes.run_once(graph, random_feeds(graph))
    assert shape_of(_tensor(graph, "a")) == (2, None)
    assert shape_of(graph.outputs[0]) == (None, None)


def test_a_run_finds_types_that_inference_cannot() -> None:
    proto = model(
        ("Gelu", "x", "a", {}, "com.microsoft"),
        ("Relu", "a", "b"),
        ("Cast", "b", "y", {"to": 1}),
        domains=["com.microsoft"],
    )
    graph = to_graph(proto)
    assert shapes.infer(graph) == ["a", "b"]
    shapes.run_once(graph, random_feeds(graph))
    assert dtype_of(_tensor(graph, "a")) == np.float32
    assert shapes.run_once(graph, random_feeds(graph))["b"] == (2, 4)


def test_sequences_are_left_out() -> None:
    proto = model(("SequenceConstruct", "x x", "s"), ("ConcatFromSequence", "s", "y", {"axis": 0}))
    graph = to_graph(proto)
    assert shapes.run_once(graph, random_feeds(graph))["y"] == (4, 4)


def free() -> onnx.ModelProto:
    """The number of columns depends on the values of x."""
    return model(
        ("NonZero", "x", "i"),
        ("Cast", "i", "f", {"to": onnx.TensorProto.FLOAT}),
        ("MatMul", "w f", "y"),
        inputs={"x": ("n",)},
        weights={"w": np.ones((4, 1), np.float32)},
    )


def test_shapes_that_depend_on_data_are_read_off_a_run() -> None:
    feeds = {"x": np.array([0, 1, 0, 2, 3], np.float32)}
    assert concrete_shapes(to_graph(free()), feeds, ["f", "y", "w", "x"]) == {
        "f": (1, 3),
        "y": (4, 3),
        "w": (4, 1),
        "x": (5,),
    }


def test_names_that_the_graph_does_not_have_are_left_out() -> None:
    feeds: dict[str, Any] = {"x": np.ones(5, np.float32)}
    assert concrete_shapes(to_graph(free()), feeds, ["nothing", "x"]) == {"x": (5,)}
    assert concrete_shapes(to_graph(free()), feeds, ["nothing"]) == {}


def test_a_wrong_declared_output_shape_does_not_matter() -> None:
    proto = model(("Conv", "x w", "y"), inputs={"x": ("n", 3, "h", "w0")}, weights={"w": np.ones((8, 3, 3, 3), "f")})
    dims = proto.graph.output[0].type.tensor_type.shape
    del dims.dim[:]
    for size in (9, 9, 9, 9):
        dims.dim.add(dim_value=size)
    found = concrete_shapes(to_graph(proto), {"x": np.ones((2, 3, 6, 6), np.float32)}, ["y"])
    assert found == {"y": (2, 8, 4, 4)}


def test_the_graph_itself_stays_as_it_is() -> None:
    graph = to_graph(free())
    concrete_shapes(graph, {"x": np.ones(5, np.float32)}, ["f", "y"])
    assert graph.inputs[0].shape == ["n"]
    assert [tensor.name for tensor in graph.outputs] == ["y"]
    assert [node.op for node in graph.nodes] == ["NonZero", "Cast", "MatMul"]


def test_without_a_sample_open_axes_are_taken_for_one_or_stay_open() -> None:
    then, other = (graph_proto([("MatMul", "a w", f"{n}1"), ("Neg", f"{n}1", n)], {}, [n]) for n in "po")
    nodes = (("Relu", "x", "a"), ("If", "flag", "y", {"then_branch": then, "else_branch": other}))
    graph = to_graph(model(*nodes, inputs={"x": ("n", "t", 4), "flag": (bool, ())}, weights={"w": W}))
    assert shapes.assumed_shapes(graph, rest=1)["p1"] == (1, 1, 6)
    assert shapes.assumed_shapes(graph, {"x": (2, 3, 4)})["o1"] == (2, 3, 6)
    assert "a" not in shapes.assumed_shapes(graph)  # a batch of one, and the other axis is not known
    assert shape_of(_tensor(graph, "x")) == ("n", "t", 4)
