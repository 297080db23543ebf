"""Ranks that only the nodes behind a tensor tell."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.passes.cleanup import _ranks as ranks
from tests.kit.rewrite import model, to_graph


def _of(graph: gs.Graph, name: str) -> frozenset[int]:
    found = ranks.possible(graph)
    return found[next(id(tensor) for tensor in graph.tensors().values() if tensor.name == name)]


def _open(proto: onnx.ModelProto) -> gs.Graph:
    """The graph with an input whose rank the file does not tell."""
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    return to_graph(proto)


WEIGHTS = {
    "w": np.ones((1, 8, 3), np.float32),
    "r": np.ones((1, 8, 2), np.float32),
    "k": np.ones((2, 3, 1, 1), np.float32),
    "a": np.array([0]),
}


def test_what_an_lstm_takes_passes_backward_through_unsqueeze_and_element_wise_nodes() -> None:
    graph = _open(
        model(
            ("Relu", "x", "q"), ("Unsqueeze", "q a", "u"), ("LSTM", "u w r", "y", {"hidden_size": 2}), weights=WEIGHTS
        )
    )
    assert _of(graph, "x") == {2}
    assert _of(graph, "y") == {4}


def test_a_conv_takes_the_rank_of_its_weight() -> None:
    assert _of(_open(model(("Relu", "x", "q"), ("Conv", "q k", "y"), weights=WEIGHTS)), "x") == {4}


def test_nodes_that_no_output_depends_on_say_nothing_about_their_inputs() -> None:
    proto = model(("LSTM", "x w r", "l", {"hidden_size": 2}), ("Neg", "x", "y"), weights=WEIGHTS)
    assert _of(_open(proto), "x") == ranks.ANY


def test_a_contradiction_leaves_no_rank() -> None:
    proto = model(("Conv", "x k", "c"), ("LSTM", "c w r", "y", {"hidden_size": 2}), weights=WEIGHTS)
    assert _of(_open(proto), "c") == frozenset()
