"""infer-shapes: what the file says of inner tensors is not believed; the model's interface stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.graph import shape_of, tensors
from qcompiler.ir.weights import Weights
from qcompiler.passes.base import Changed, Skipped
from qcompiler.passes.types.infer_shapes import InferShapes
from tests.kit.rewrite import model


def chain(*told: Any) -> onnx.ModelProto:
    """x: n×4 → Relu → a → Neg → y, with the shape that the file tells of `a`."""
    proto = model(("Relu", "x", "a"), ("Neg", "a", "y"), inputs={"x": ("n", 4)})
    del proto.graph.value_info[:]
    if told:
        proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, told))
    return proto


def to_graph(proto: onnx.ModelProto) -> gs.Graph:
    """The graph as the file has it."""
    return graph_from_proto(proto, Weights(Path("test.onnx"), np.empty(0, np.uint8)))


def inner(proto: onnx.ModelProto) -> tuple[Any, tuple[Any, ...]]:
    graph = to_graph(proto)
    notes = InferShapes()(graph).notes
    (found,) = (tensor for tensor in tensors(graph) if tensor.name == "a")
    assert found.dtype == np.float32
    return shape_of(found), notes


def test_a_file_without_shapes_gets_them() -> None:
    assert inner(chain()) == (("n", 4), ())


@pytest.mark.parametrize("told", [(1, 4), ("n", 5), (4,)])
def test_a_shape_that_does_not_hold_is_replaced_and_told(told: tuple[Any, ...]) -> None:
    shape, notes = inner(chain(*told))
    assert shape == ("n", 4)
    assert [type(note) for note in notes] == [Changed]
    assert "not [" in notes[0].text


@pytest.mark.parametrize("told", [("n", 4), ("m", 4), (None, 4)])
def test_a_shape_that_holds_or_says_less_is_no_news(told: tuple[Any, ...]) -> None:
    assert inner(chain(*told)) == (("n", 4), ())


def test_a_size_that_depends_on_data_contradicts_nothing() -> None:
    proto = model(("NonZero", "x", "a"), ("Neg", "a", "y"), inputs={"x": ("n", 4)})
    del proto.graph.value_info[:]
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.INT64, (2, 7)))
    graph = to_graph(proto)
    assert InferShapes()(graph).notes == ()


def test_what_onnx_does_not_know_is_named() -> None:
    proto = model(("Relu", "x", "a"), ("Neg", "a", "y"), inputs={"x": ("n", 4)})
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Strange", "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    del proto.graph.value_info[:]
    notes = InferShapes()(to_graph(proto)).notes
    assert ("a", Skipped) in [(note.node, type(note)) for note in notes]
