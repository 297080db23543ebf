from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import InternalError
from qcompiler.ir.names import Names
from qcompiler.passes.products._writer import Writer
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, to_graph

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def _started() -> tuple[gs.Graph, gs.Node, Writer]:
    graph = to_graph(model(("Neg", "x", "y"), ("Abs", "y", "z"), inputs={"x": (2, 3)}, outputs=["y", "z"]))
    return graph, graph.nodes[0], Writer(graph, graph.nodes[0], Names(graph))


def test_the_last_node_writes_what_the_old_one_wrote() -> None:
    graph, node, writer = _started()
    writer.replace(writer.transpose(writer.add("Exp", [node.inputs[0]]), [0, 1]))
    assert [one.op for one in graph.nodes] == ["Exp", "Abs"]
    assert np.allclose(Session(graph).run({"x": X})["z"], np.exp(X))


def test_a_tensor_that_is_handed_through_is_not_renamed() -> None:
    graph, node, writer = _started()
    writer.replace(node.inputs[0])
    assert [one.op for one in graph.nodes] == ["Identity", "Abs"]
    assert graph.inputs[0].name == "x"


def test_a_result_that_is_read_by_others_too_becomes_the_output() -> None:
    graph, _, writer = _started()
    first = writer.add("Exp", [graph.inputs[0]])
    writer.add("Sin", [first])
    writer.replace(first)
    assert np.allclose(Session(graph).run({"x": X})["y"], np.exp(X))


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        (lambda w, t: w.transpose(t, [1, 0]), (3, 2)),
        (lambda w, t: w.reshape(t, [0, 3, 1]), (2, 3, 1)),
        (lambda w, t: w.unsqueeze(t, [1]), (2, 1, 3)),
        (lambda w, t: w.sum(t, [0]), (3,)),
    ],
)
def test_constants_are_moved_now(how: Any, shape: tuple[int, ...]) -> None:
    _, _, writer = _started()
    moved = how(writer, writer.constant("k", X))
    assert isinstance(moved, gs.Constant)
    assert tuple(moved.shape) == shape


@pytest.mark.parametrize("sizes", [(2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 3, 0)])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_axes_of_any_size_are_joined(kept: int, sizes: tuple[int, ...]) -> None:
    graph = to_graph(model(("Neg", "x", "y"), inputs={"x": ("a", "b", "c")}))
    graph.outputs[0].shape = None
    writer = Writer(graph, graph.nodes[0], Names(graph))
    writer.replace(writer.flatten(graph.inputs[0], kept, 3))
    given = np.ones(sizes, np.float32)
    assert Session(graph).run({"x": given})["y"].shape == (*sizes[:kept], math.prod(sizes[kept:]))


def test_a_node_without_a_type_is_a_defect() -> None:
    graph, node, _ = _started()
    for tensor in (*node.inputs, *node.outputs):
        tensor.dtype = None
    with pytest.raises(InternalError, match="type is not known"):
        Writer(graph, node, Names(graph))


def test_nodes_are_called_after_the_one_they_stand_for() -> None:
    graph, node, writer = _started()
    weight = writer.constant("weight", np.ones((3, 3), np.float32))
    writer.replace(writer.matmul(writer.add("Exp", [node.inputs[0]]), weight))
    assert [one.name for one in graph.nodes[:2]] == ["Y/Exp", "Y"]
