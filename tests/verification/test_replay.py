"""Parts of a graph on other inputs, and a graph with tensors that are given."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.runtime.stream import OpenModel
from qcompiler.verification.replay import Repair, Replay, fitting
from tests.kit.rewrite import branching
from tests.kit.verification.chain import WEIGHTS, chain

X = {"x": np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)}
OTHER = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> models.Model:
    return models.load(chain(tmp_path / "f.onnx", WEIGHTS))


def test_each_part_is_computed_from_the_cuts_before_it_and_from_nothing_else(model: models.Model) -> None:
    replay = Replay(model.graph, ["h0", "h2"], ["h2", "h0"])
    assert replay.reads == ["h0"]  # nobody reads the other one up to here
    found = replay.run(X, {"h0": OTHER, "h2": OTHER})
    expected = np.maximum(np.maximum(OTHER, 0) @ WEIGHTS[1], 0) @ WEIGHTS[2]
    np.testing.assert_allclose(found["h2"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["h0"], X["x"] @ WEIGHTS[0], rtol=1e-4, atol=1e-5)


def test_a_tensor_that_is_no_cut_can_be_asked_for(model: models.Model) -> None:
    found = Replay(model.graph, ["h3"], ["y"]).run(X, {"h3": OTHER})
    np.testing.assert_allclose(found["y"], np.maximum(OTHER, 0) @ WEIGHTS[4], rtol=1e-4, atol=1e-5)


def test_what_is_given_stands_in_the_place_of_what_is_computed_and_else_nothing_changes(model: models.Model) -> None:
    repair = Repair(model.graph, ["h1", "h3"], ["y", "h1"])
    plain = OpenModel(model, outputs=["y", "h1"], quick=True).run(X)
    for name, value in repair.run(X).items():
        np.testing.assert_array_equal(value, plain[name])
    given = repair.run(X, {"h3": OTHER})
    np.testing.assert_allclose(given["y"], np.maximum(OTHER, 0) @ WEIGHTS[4], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(given["h1"], plain["h1"])


def test_what_is_computed_may_be_no_number_where_something_is_given(model: models.Model) -> None:
    broken = {"x": np.full((3, 8), np.nan, np.float32)}
    found = Repair(model.graph, ["h3"], ["y"]).run(broken, {"h3": OTHER})
    assert np.isfinite(found["y"]).all()


def test_the_graph_stays_as_it_is(model: models.Model) -> None:
    before = models.to_proto(model.graph)[0].SerializeToString(deterministic=True)
    Replay(model.graph, ["h0"], ["h1"])
    Repair(model.graph, ["h0"], ["y"])
    assert models.to_proto(model.graph)[0].SerializeToString(deterministic=True) == before


def test_branches_read_what_is_given() -> None:
    graph = branching()
    node = graph.nodes[0]
    session = OpenModel(graph, quick=True)
    feed = {
        name: np.ones([3 if not isinstance(dim, int) else dim for dim in shape or ()], dtype or np.float32)
        for name, (dtype, shape) in session.inputs.items()
    }
    plain = OpenModel(graph, outputs=[node.outputs[0].name, *session.outputs], quick=True).run(feed)
    name = node.outputs[0].name
    found = Replay(graph, [name], session.outputs).run(feed, {name: plain[name]})
    for output in session.outputs:
        np.testing.assert_array_equal(found[output], plain[output])


def test_feeds_are_cut_to_what_a_graph_reads_and_take_its_width(model: models.Model) -> None:
    found = fitting({"x": X["x"].astype(np.float64), "more": OTHER}, OpenModel(model, quick=True))
    assert list(found) == ["x"]
    assert found["x"].dtype == np.float32


def test_feeds_of_any_float_fit(model: models.Model) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        found = fitting({"x": OTHER.astype(dtype)}, OpenModel(model))["x"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, OTHER.astype(dtype).astype(np.float32))
