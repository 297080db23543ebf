"""A model in two, and one again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.passes.behind import apart, joined
from qcompiler.passes.cleanup.name_everything import NameEverything
from tests.kit.rewrite import content, graph_proto, model, to_graph, whole

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def named(*nodes: Any, **more: Any) -> Model:
    graph = to_graph(model(*nodes, opset=17, **more))
    NameEverything()(graph)
    for tensor in graph.outputs:  # as the file declares them: nobody infers what is behind an unknown operator
        tensor.dtype, tensor.shape = tensor.dtype or np.dtype(np.float32), tensor.shape or [None]
    return Model(graph, {}, None, 8)


def detector() -> Model:
    """Boxes and scores, a plugin that reads them, and a sum behind it; `s` is an output of the model, too."""
    return named(
        ("MatMul", "x w", "h"), ("Relu", "h", "b"), ("Sigmoid", "h", "s"),
        ("Nms", "b s", "kept count", {}, "their.own"), ("Add", "kept k", "y"), ("Identity", "x", "same"),
        inputs={"x": ("batch", 8)}, weights={"w": draw(8, 8), "k": draw(8)},
        outputs=("y", "s", "count", "same"), domains=("their.own",),
    )  # fmt: skip


def ops(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_what_is_read_of_the_first_part_becomes_its_outputs() -> None:
    source = detector()
    before = content(source.graph)
    front, behind = apart(source, {"KEPT"})
    assert content(source.graph) == before
    assert ops(front.graph) == ["MatMul", "Relu", "Sigmoid", "Identity"]
    assert [tensor.name for tensor in front.graph.outputs] == ["s", "same", "b"]
    assert ops(behind.model.graph) == ["Nms", "Add"]
    assert [tensor.name for tensor in behind.model.graph.inputs] == ["b", "s"]
    assert (behind.reads, behind.outputs) == (("b", "s"), ("y", "s", "count", "same"))
    assert [(one.node, one.op, one.domain) for one in behind.unknown] == [("KEPT", "Nms", "their.own")]


def test_the_whole_is_what_it_was() -> None:
    source = detector()
    front, behind = apart(source, {"KEPT"})
    again = joined(front, behind.model, behind.outputs)
    assert [tensor.name for tensor in again.graph.outputs] == ["y", "s", "count", "same"]
    assert {node.name for node in again.graph.nodes} == {node.name for node in source.graph.nodes}
    proto = whole(again.graph)
    onnx.checker.check_model(proto)
    assert {one.domain for one in proto.opset_import} == {"", "their.own"}


def test_names_that_the_first_part_has_taken_meanwhile() -> None:
    front, behind = apart(detector(), {"KEPT"})
    front.graph.nodes[1].name = "Y"
    front.graph.nodes[0].outputs[0].name = "kept"  # as the second part calls a tensor of its own
    again = joined(front, behind.model, behind.outputs).graph
    names = [node.name for node in again.nodes]
    assert len(names) == len(set(names))
    written = [tensor.name for node in again.nodes for tensor in node.outputs if tensor.name]
    assert len(written) == len(set(written))
    onnx.checker.check_model(whole(again))


def test_a_type_that_changed_is_cast_back() -> None:
    front, behind = apart(detector(), {"KEPT"})
    next(one for one in front.graph.outputs if one.name == "b").dtype = np.float16
    again = joined(front, behind.model, behind.outputs).graph
    nms = next(node for node in again.nodes if node.op == "Nms")
    cast = graphs.producer(nms.inputs[0])
    assert cast is not None
    assert (cast.op, cast.attrs["to"], nms.inputs[1].name) == ("Cast", onnx.TensorProto.FLOAT, "s")


def test_a_nested_graph_with_an_unknown_node_is_behind_with_all_that_it_reads() -> None:
    then = graph_proto([("Nms", "h x", "t", {}, "their.own")], {}, ["t"])
    other = graph_proto([("Neg", "h", "o")], {}, ["o"])
    source = named(
        ("Relu", "x", "h"), ("If", "flag", "z", {"then_branch": then, "else_branch": other}), ("Abs", "z", "y"),
        inputs={"x": (2, 8), "flag": (bool, ())}, domains=("their.own",),
    )  # fmt: skip
    front, behind = apart(source, {"T"})
    assert ops(front.graph) == ["Relu"]
    assert [tensor.name for tensor in front.graph.outputs] == ["h"]
    assert [tensor.name for tensor in behind.model.graph.inputs] == ["x", "flag", "h"]
    again = joined(front, behind.model, behind.outputs).graph
    assert ops(again) == ["Relu", "If", "Abs"]
    onnx.checker.check_model(whole(again))


def test_layers_behind_are_told() -> None:
    source = named(
        ("Relu", "x", "h"), ("Mine", "h", "m", {}, "their.own"), ("MatMul", "m w", "y"),
        weights={"w": draw(4, 4)}, domains=("their.own",),
    )  # fmt: skip
    told = apart(source, {"M"})[1].told()
    assert told.startswith("not measured: node 'M' (Mine of domain 'their.own'), and 1 more behind")
    assert "by what it reads, 'h'" in told
    assert "Among them are 1 layers that stay float: 'Y'" in told


def test_nothing_in_front_is_refused() -> None:
    source = named(("Mine", "x", "m", {}, "their.own"), ("Relu", "m", "y"), domains=("their.own",))
    with pytest.raises(ModelError, match="nothing stands in front of it"):
        apart(source, {"M"})


def test_parts_of_two_opsets_are_refused() -> None:
    front, behind = apart(detector(), {"KEPT"})
    front.graph.opset = 21
    with pytest.raises(ModelError, match="of opset 17 and cannot be raised to 21"):
        joined(front, behind.model, behind.outputs)
