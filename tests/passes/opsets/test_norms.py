from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import ModelError
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, random_feeds, to_graph

FOUR = {name: np.full(4, 1 + i, np.float32) for i, name in enumerate("sbmv")}
X = {"x": ("n", 4, 3)}


def test_statistics_that_nobody_reads_go() -> None:
    proto = model(("BatchNormalization", "x s b m v", "y a c d e"), inputs=X, weights=FOUR, opset=9)
    graph = to_graph(proto)
    RaiseOpset(21)(graph)
    assert [tensor.name for tensor in graph.nodes[0].outputs] == ["y"]


def test_statistics_of_a_training_step_are_refused() -> None:
    spec = ("BatchNormalization", "x s b m v", "y a c d e")
    graph = to_graph(model(spec, inputs=X, weights=FOUR, opset=9, outputs=["y", "d"]))
    with pytest.raises(ModelError, match=r"'Y' \(BatchNormalization\) .* statistics of a training step"):
        RaiseOpset(21)(graph)


@pytest.mark.parametrize("opset", [7, 10])
def test_a_mask_that_somebody_reads_keeps_its_type(opset: int) -> None:
    graph = to_graph(model(("Dropout", "x", "d m"), ("Cast", "m", "y", {"to": 1}), inputs=X, opset=opset))
    feeds = random_feeds(graph)
    before = Session(graph, optimize=False).run(feeds)["y"]
    RaiseOpset(21)(graph)
    np.testing.assert_array_equal(before, Session(graph, optimize=False).run(feeds)["y"], strict=True)
    assert [node.op for node in graph.nodes] == ["Dropout", "Not", *["Cast"] * (opset < 10), "Cast"]


def test_a_group_norm_of_unknown_width_is_refused() -> None:
    weights = {"s": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    inputs = {"x": ("n", "c", 3)}
    graph = to_graph(model(("GroupNormalization", "x s b", "y", {"num_groups": 2}), inputs=inputs, weights=weights))
    graph.opset = 18
    with pytest.raises(ModelError, match="number of its channels is not known"):
        RaiseOpset(21)(graph)
