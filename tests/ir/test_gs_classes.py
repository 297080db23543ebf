"""Copies share arrays and nothing else, and keep what graphsurgeon forgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto

from qcompiler.ir import model as models
from tests.kit.onnx_files import SPARSE, UNUSUAL, linear, proto, round_trip


def test_a_sparse_initializer_comes_back_and_can_be_read(stored: Callable[[ModelProto], Path]) -> None:
    original = proto("g (float[2, 4] x) => (float[2, 4] y) { y = Add(x, s) }")
    original.graph.sparse_initializer.append(SPARSE)
    path = stored(original)
    assert list(round_trip(path).graph.sparse_initializer) == [SPARSE]
    (node,) = models.load(path).graph.nodes
    assert node.inputs[1].values.dtype == np.float32
    np.testing.assert_array_equal(node.inputs[1].values, [[0, 1.5, 0, 0], [0, 0, 2.5, 0]])


def test_a_copy_shares_arrays_and_nothing_else(stored: Callable[[ModelProto], Path]) -> None:
    model = models.load(stored(linear()))
    before = models.to_proto(model.graph)[0].SerializeToString()
    twin = models.copy(model)
    assert twin.graph.nodes[0].inputs[1].values is model.graph.nodes[0].inputs[1].values
    twin.graph.nodes[0].inputs[1].values = np.zeros((64, 32), np.float16)
    twin.graph.nodes[1].name = "other"
    twin.graph.inputs[0].shape[0] = 3
    twin.graph.outputs.clear()
    twin.metadata["new"] = "entry"
    assert models.to_proto(model.graph)[0].SerializeToString() == before
    assert model.metadata == {}


def test_a_copy_keeps_subgraphs_wired_to_its_own_outer_tensors(stored: Callable[[ModelProto], Path]) -> None:
    model = models.load(stored(proto(UNUSUAL["an If whose branches read outer tensors and have weights"])))
    twin = models.copy(model).graph
    relu, branch = twin.nodes
    inner = branch.attrs["then_branch"].nodes
    assert inner[0].inputs[0] is relu.outputs[0]
    assert inner[1].inputs[1] is branch.attrs["else_branch"].nodes[1].inputs[1]
    assert inner[0].inputs[0] is not model.graph.nodes[0].outputs[0]
