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
from qcompiler.ir.model import Model
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.base import Changed, Fact, Note, Pass, Pipeline, Report, Skipped
from qcompiler.runtime import randomness
from qcompiler.verification.equivalence import FEEDS, Equivalence, applied, differences, probes, run_checked
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


def test_errors_are_measured_against_the_graph_before_the_pass() -> None:
    equal, graph = _equal()
    one = ScaleWeights(1 + 7e-6)
    for _ in range(3):
        assert (equal.check(one, one(graph), graph) or 0) < 1e-5


@dataclass(frozen=True)
class ScaleRoughly(ScaleWeights):
    """Multiply every weight by a factor; much is allowed."""

    exact_to: ClassVar[float | None] = 5e-2


def test_each_pass_has_its_own_tolerance_whatever_was_allowed_before() -> None:
    equal, graph = _equal()
    rough, fine = ScaleRoughly(1.01), ScaleWeights(1.001)
    assert equal.check(rough, rough(graph), graph) == pytest.approx(0.01, rel=1e-2)
    with pytest.raises(EquivalenceError, match="1e-05 is allowed"):
        equal.check(fine, fine(graph), graph)


@dataclass(frozen=True)
class Break(Pass):
    """Leave a graph that ONNX Runtime refuses."""

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note for the node that nobody knows."""
        graph.nodes[0].op = "NobodyKnowsThis"
        yield Changed(graph.nodes[0].name, "broken")


def test_a_graph_that_does_not_run_any_more_is_a_miss_and_no_fault_of_the_model() -> None:
    equal, graph = _equal()
    with pytest.raises(EquivalenceError, match=r"'break' made of the model does not run.*NobodyKnowsThis"):
        equal.check(Break(), Break()(graph), graph)


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


def test_a_pass_that_misses_the_check_is_undone(tmp_path: Path) -> None:
    onnx.save(model(("MatMul", "x w", "y"), weights={"w": W}), tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    after, report, error = applied(ScaleWeights(1.01), loaded, [random_feeds(loaded.graph)])
    assert after is loaded
    assert np.array_equal(loaded.graph.nodes[0].inputs[1].values, W)
    assert error is None
    assert (report.changed, report.notes) == (0, ())
    assert "output 'y' moved by 0.01" in report.undone


@dataclass(frozen=True)
class Promise(ScaleWeights):
    """Multiply every weight by a factor, and provide a fact."""

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})


@dataclass(frozen=True)
class Rely(ScaleWeights):
    """Multiply every weight by a factor where a fact holds."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})


def _run(*passes: Pass) -> tuple[gs.Graph, list[tuple[Report, float | None]]]:
    graph = to_graph(model(("MatMul", "x w", "y"), weights={"w": W}))
    loaded = models.Model(graph, {}, None, 8)
    steps: list[None] = []
    after, done = run_checked(
        Pipeline(*passes), loaded, Equivalence(loaded, [random_feeds(graph)]), lambda: steps.append(None)
    )
    assert len(steps) == len(passes) == len(done)
    assert np.array_equal(graph.nodes[0].inputs[1].values, W)
    return after.graph, done


def test_a_pipeline_goes_on_without_the_pass_that_missed_the_check() -> None:
    small = ScaleWeights(1 + 5e-6)
    graph, done = _run(ScaleWeights(1.01), small)
    assert [bool(report.undone) for report, _ in done] == [True, False]
    np.testing.assert_allclose(graph.nodes[0].inputs[1].values, W * np.float32(1 + 5e-6), rtol=1e-7)


def test_what_relies_on_an_undone_pass_does_not_run() -> None:
    _, done = _run(Promise(1.01), Rely(1 + 5e-6))
    assert done[1][0].undone == "pass 'rely{by=1.000005}' did not run: it needs 'folded' of pass 'promise{by=1.01}'."
    _, done = _run(Promise(1.01), Promise(1 + 5e-6), Rely(1 + 5e-6))
    assert [bool(report.undone) for report, _ in done] == [True, False, False]


def test_a_model_is_copied_for_passes_that_change_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Model] = []
    original = models.copy

    def counted(source: Model) -> Model:
        made.append(source)
        return original(source)

    monkeypatch.setattr(models, "copy", counted)
    _run(*[ScaleWeights()] * 5)
    assert len(made) == 1
    _run(ScaleWeights(), ScaleWeights(1 + 5e-6), ScaleWeights(), ScaleWeights())
    assert len(made) == 3


def test_what_an_undone_pass_spoilt_is_taken_back_behind_one_that_changed_nothing() -> None:
    graph, done = _run(ScaleWeights(), ScaleWeights(1.01), ScaleWeights())
    assert [bool(report.undone) for report, _ in done] == [False, True, False]
    assert np.array_equal(graph.nodes[0].inputs[1].values, W)
    assert graph.outputs[0].shape == [2, 3]


MASKED: list[Any] = [("MatMul", "x w", "a"), ("Where", "mask a odd", "y")]


@pytest.mark.parametrize("odd", [-np.inf, np.inf, np.nan])
def test_what_is_no_number_on_purpose_must_be_the_same(odd: float) -> None:
    mask = np.array([True, False, True])
    equal, graph = _equal(model(*MASKED, weights={"w": W, "mask": mask, "odd": np.float32(odd)}))
    assert equal.infinite == ([] if np.isnan(odd) else ["y"])
    one = ScaleWeights(1 + 5e-6)
    error = equal.check(one, one(graph), graph)
    assert error is not None
    assert 1e-6 < error < 1e-5


@pytest.mark.parametrize(("before", "after"), [(np.inf, -np.inf), (np.inf, 1.0), (1.0, np.nan), (np.nan, np.inf)])
def test_what_only_one_has_is_infinitely_wrong(before: float, after: float) -> None:
    found = differences({"y": [np.array([1.0, before])]}, {"y": [np.array([1.0, after])]})
    assert found == {"y": float("inf")}


def test_random_numbers_are_the_same_before_and_behind() -> None:
    proto = model(("MatMul", "x w", "a"), ("RandomNormalLike", "a", "e"), ("Add", "a e", "y"), weights={"w": W})
    equal, graph = _equal(proto)
    assert equal.restless is None
    one = ScaleWeights(1 + 5e-6)
    assert (equal.check(one, one(graph), graph) or 1) < 1e-5


def test_other_unrest_is_found_and_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "held", lambda proto, draw=0: proto)
    proto = model(("MatMul", "x w", "a"), ("RandomNormalLike", "a", "e"), ("Add", "a e", "y"), weights={"w": W})
    equal, graph = _equal(proto)
    assert equal.restless is not None
    assert equal.restless.name == "E"
    one = ScaleWeights(1 + 5e-6)
    assert equal.check(one, one(graph), graph) is not None


FREE = model(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, weights={"w": W})


def _loaded(proto: onnx.ModelProto = FREE) -> models.Model:
    return models.Model(to_graph(proto), {}, None, 8)


def test_a_sample_is_joined_by_itself_in_another_size() -> None:
    loaded = _loaded()
    feeds = [{"x": np.ones((1, 4), np.float32)}] * 3
    found = probes(loaded, inputs_of(loaded.graph), feeds)
    assert (len(found.samples), len(found.made), found.why) == (1, 1, "")
    assert [shapes["x"] for shapes in found.to_json()["shapes"]] == [[1, 4], [2, 4]]


def test_a_sample_of_another_size_is_better_than_a_made_one() -> None:
    loaded = _loaded()
    feeds = [{"x": np.ones((size, 4), np.float32)} for size in (1, 1, 5)]
    found = probes(loaded, inputs_of(loaded.graph), feeds)
    assert [feed["x"].shape for feed in found.feeds] == [(1, 4), (5, 4)]
    assert found.made == ()


def test_without_data_two_sizes_are_made_up() -> None:
    loaded = _loaded()
    found = probes(loaded, inputs_of(loaded.graph), [])
    assert (found.samples, len(found.made), found.why) == ((), 2, "")
    assert len({feed["x"].shape for feed in found.made}) == 2


def test_where_nothing_runs_the_reason_is_told() -> None:
    proto = model(("Reshape", "x s", "y"), inputs={"x": ("n", "m")}, weights={"s": np.array([7919, -1])})
    loaded = _loaded(proto)
    found = probes(loaded, inputs_of(loaded.graph), [])
    assert found.feeds == ()
    assert "no feed that was made up runs" in found.why


def test_a_model_that_runs_in_one_size_only_is_checked_in_that() -> None:
    proto = model(("Reshape", "x s", "y"), inputs={"x": ("n", "m")}, weights={"s": np.array([1, 5])})
    loaded = _loaded(proto)
    found = probes(loaded, inputs_of(loaded.graph), [{"x": np.ones((1, 5), np.float32)}])
    assert (len(found.samples), found.made) == (1, ())
    assert found.why.startswith("one size of each free axis only: ")


def test_an_unknown_operator_is_no_error_without_data() -> None:
    proto = model(("Secret", "x", "a", {}, "com.acme"), ("Cast", "a", "y", {"to": 1}), domains=["com.acme"])
    loaded = _loaded(proto)
    assert "com.acme" in probes(loaded, inputs_of(loaded.graph), []).why
