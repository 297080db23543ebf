"""Graphs are written as they stand: large weights beside them, each once, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import InternalError
from qcompiler.ir import model as models
from tests.kit.onnx_files import WEIGHT, linear, proto, session

RNG = np.random.default_rng(7)


def test_to_proto_keeps_large_weights_outside_and_a_session_takes_them(stored: Callable[[ModelProto], Path]) -> None:
    path = stored(linear())
    graph = models.load(path).graph
    first, arrays = models.to_proto(graph)
    assert list(arrays) == ["w"]
    assert arrays["w"] is graph.nodes[0].inputs[1].values
    assert first.SerializeToString() == models.to_proto(graph)[0].SerializeToString()
    assert len(first.SerializeToString()) < 1000
    x = {"x": RNG.standard_normal((5, 64)).astype(np.float32)}
    np.testing.assert_array_equal(session(first.SerializeToString(), arrays).run(None, x), session(path).run(None, x))


def test_an_outer_weight_that_only_subgraphs_read_is_written_once(stored: Callable[[ModelProto], Path]) -> None:
    text = """g (bool c, float[2, 64] x) => (float[2, 32] y) {
        y = If (c) < then_branch = one () => (float[2, 32] a) { a = MatMul(x, w) },
                     else_branch = two () => (float[2, 32] a) { b = MatMul(x, w) a = Neg(b) } > }"""
    graph = models.load(stored(proto(text, numpy_helper.from_array(WEIGHT, "w")))).graph
    written, arrays = models.to_proto(graph)
    assert list(arrays) == ["w"]
    assert [one.name for one in written.graph.initializer] == ["w"]
    assert not any(attribute.g.initializer for attribute in written.graph.node[0].attribute)


def test_edited_graphs_are_written_as_they_stand(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.opset = 23
    graph.nodes[0].inputs[1].values = WEIGHT.astype(np.float16).T.copy().T
    graph.outputs[0].dtype = np.dtype(np.float16)
    graph.nodes[1].attrs = {"to": np.float16, "axes": [], "list": [1, 2.5], "size": np.int64(3)}
    graph.nodes[1].domain = "somewhere"
    written, arrays = models.to_proto(graph)
    assert {one.domain: one.version for one in written.opset_import} == {"": 23, "local": 1, "somewhere": 1}
    assert written.ir_version >= 11
    assert arrays["w"].dtype == np.float16
    assert arrays["w"].flags.c_contiguous
    assert written.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    values = {one.name: helper.get_attribute_value(one) for one in written.graph.node[1].attribute}
    assert values == {"to": TensorProto.FLOAT16, "axes": [], "list": [1.0, 2.5], "size": 3}


def test_an_empty_list_gets_the_type_of_the_schema(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.nodes[1].op = "RandomNormal"  # has float, int and list attributes
    graph.nodes[1].attrs = {"shape": []}
    assert models.to_proto(graph)[0].graph.node[1].attribute[0].type == AttributeProto.INTS


def test_two_tensors_of_one_name_are_not_written(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.nodes[1].inputs[1] = gs.Constant("w", WEIGHT[1])
    with pytest.raises(InternalError, match="two different tensors are named 'w'"):
        models.to_proto(graph)
