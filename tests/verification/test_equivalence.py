from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import DataError, EquivalenceError, ModelError
from qcompiler.ir import model as models
from qcompiler.passes.base import Changed, Note, Pass, Skipped
from qcompiler.verification.equivalence import FEEDS, Equivalence, applied, differences
from tests.kit.rewrite import model, random_feeds, to_graph

W = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


@dataclass(frozen=True)
class ScaleWeights(Pass):
    """Multiply every weight by a factor."""

    by: float = 1.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per MatMul, a refusal where the factor is 1."""
        for node in graph.nodes:
            if node.op != "MatMul":
                continue
            if self.by == 1.0:
                yield Skipped(node.name, "nothing to do")
                continue
            values = node.inputs[1].values
            node.inputs[1].values = (values * np.float32(self.by)).astype(values.dtype)
            yield Changed(node.name, "scaled")


@dataclass(frozen=True)
class ScaleOnPurpose(ScaleWeights):
    """Multiply every weight by a factor, and say so."""

    exact_to: ClassVar[float | None] = None


def _equal(proto: onnx.ModelProto | None = None) -> tuple[Equivalence, gs.Graph]:
    graph = to_graph(proto or model(("MatMul", "x w", "y"), weights={"w": W}))
    return Equivalence(graph, [random_feeds(graph, seed) for seed in range(2)]), graph


def test_a_small_error_passes_and_is_reported() -> None:
    equal, graph = _equal()
    one = ScaleWeights(1 + 5e-6)
    error = equal.check(one, one(graph), graph)
    assert error is not None
    assert 1e-6 < error < 1e-5


def test_a_large_error_stops_with_pass_output_and_figures() -> None:
    equal, graph = _equal()
    one = ScaleWeights(1.01)
    with pytest.raises(EquivalenceError, match=r"pass 'scale-weights\{by=1.01\}'.*output 'y' moved by 0.01.*'Y'"):
        equal.check(one, one(graph), graph)


def test_a_pass_that_changed_nothing_is_not_run() -> None:
    equal, graph = _equal()
    one = ScaleWeights()
    report = one(graph)
    graph.nodes[0].inputs[1].values = W * 2
    assert equal.check(one, report, graph) is None


def test_what_changes_on_purpose_is_the_new_reference() -> None:
    equal, graph = _equal()
    on_purpose, small = ScaleOnPurpose(2.0), ScaleWeights(1 + 5e-6)
    assert equal.check(on_purpose, on_purpose(graph), graph) is None
    assert equal.check(small, small(graph), graph) is not None


def test_errors_are_measured_from_the_beginning() -> None:
    equal, graph = _equal()
    one = ScaleWeights(1 + 7e-6)
    equal.check(one, one(graph), graph)
    with pytest.raises(EquivalenceError):
        equal.check(one, one(graph), graph)


def test_integers_must_be_equal() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Mul", "m c", "k"),
        ("Cast", "k", "y", {"to": onnx.TensorProto.INT32}),
        weights={"w": W, "c": np.float32(1e5)},
    )
    equal, graph = _equal(proto)
    one = ScaleWeights(1 + 9e-6)
    with pytest.raises(EquivalenceError, match="output 'y'"):
        equal.check(one, one(graph), graph)


def test_half_precision_may_move_as_much_as_it_rounds() -> None:
    proto = model(("MatMul", "x w", "y"), inputs={"x": (np.float16, (2, 4))}, weights={"w": W.astype(np.float16)})
    equal, graph = _equal(proto)
    one = ScaleWeights(1 + 2e-3)
    assert equal.check(one, one(graph), graph) is not None


def test_feeds_that_do_not_fit_are_the_data_s_fault() -> None:
    graph = to_graph(model(("MatMul", "x w", "y"), weights={"w": W}))
    with pytest.raises(DataError):
        Equivalence(graph, [{"x": np.zeros((2, 5), np.float32)}])


@pytest.mark.parametrize(
    ("nodes", "culprit"),
    [
        pytest.param([("Neg", "x", "a"), ("Log", "a", "b"), ("Exp", "b", "y")], "'B' (Log)", id="log of a negative"),
        pytest.param(
            [("Sub", "x x", "a"), ("Div", "x a", "b"), ("Relu", "b", "y")], "'B' (Div)", id="division by zero"
        ),
    ],
)
def test_a_model_that_is_not_finite_itself_is_refused_with_the_first_node(nodes: list[Any], culprit: str) -> None:
    graph = to_graph(model(*nodes))
    with pytest.raises(ModelError) as caught:
        Equivalence(graph, [{"x": np.ones((2, 4), np.float32)}])
    assert culprit in str(caught.value)
    assert "output 'y'" in str(caught.value)


def test_infinite_masks_inside_are_ordinary() -> None:
    proto = model(("Add", "x c", "a"), ("Softmax", "a", "y"), weights={"c": np.array([0, 0, 0, -np.inf], np.float32)})
    _equal(proto)


def test_a_model_of_an_unknown_operator_is_refused() -> None:
    proto = model(("Secret", "x", "a", {}, "com.acme"), ("Cast", "a", "y", {"to": 1}), domains=["com.acme"])
    with pytest.raises(ModelError, match=r"com\.acme"):
        _equal(proto)


def test_errors_are_relative_to_the_largest_value() -> None:
    before = {"y": [np.array([1.0, 100.0])], "z": [np.array([1, 2, 3, 4])]}
    after = {"y": [np.array([2.0, 100.0])], "z": [np.array([1, 2, 3, 5])]}
    assert differences(before, after) == {"y": 0.01, "z": 0.25}


def test_another_shape_or_a_missing_output_is_infinitely_wrong() -> None:
    before = {"y": [np.zeros(3)], "z": [np.zeros(3)]}
    assert differences(before, {"y": [np.zeros(4)]}) == {"y": float("inf"), "z": float("inf")}


def test_a_pass_is_applied_to_a_copy_and_checked_on_the_first_samples(tmp_path: Path) -> None:
    onnx.save(model(("MatMul", "x w", "y"), weights={"w": W}), tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    feeds = [random_feeds(loaded.graph, seed) for seed in range(FEEDS)]
    after, report, error = applied(ScaleWeights(1 + 5e-6), loaded, [*feeds, {"no input": W}])
    assert report.changed == 1
    assert error is not None
    assert 0 < error < 1e-5
    assert np.array_equal(loaded.graph.nodes[0].inputs[1].values, W)
    assert not np.array_equal(after.graph.nodes[0].inputs[1].values, W)
    with pytest.raises(EquivalenceError):
        applied(ScaleWeights(1.01), loaded, feeds)
