"""Comparing two models: the figures against numpy's, the failures that are named, and the gates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import AccuracyError, DataError, ModelError, UsageError
from qcompiler.ir import model as models
from qcompiler.verification.compare import Output, Verification, verify
from qcompiler.verification.gates import Gates
from qcompiler.verification.metric import Score

Feeds = dict[str, NDArray[Any]]
WEIGHTS = [np.random.default_rng(k).normal(size=(8, 8)).astype(np.float32) / 3 for k in range(5)]


def chain(
    path: Path, weights: list[NDArray[Any]], *, extra: tuple[onnx.NodeProto, ...] = (), outputs: str = "y"
) -> Path:
    """x -> MatMul, Relu -> ... -> y; the MatMul k is called mm{k} and writes h{k}."""
    nodes, last = [], "x"
    for k in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [last, f"w{k}"], [f"h{k}"], name=f"mm{k}"))
        last = "y" if k == len(weights) - 1 else f"r{k}"
        nodes.append(helper.make_node("Relu" if last != "y" else "Identity", [f"h{k}"], [last], name=f"act{k}"))
    listed = [
        helper.make_tensor_value_info(name, kind, ["n", "m"][: 1 + (kind == TensorProto.FLOAT)])
        for name, kind in {"y": TensorProto.FLOAT, "index": TensorProto.INT64}.items()
        if name in outputs.split()
    ]
    graph = helper.make_graph(
        [*nodes, *extra],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        listed,
        [numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def changed(layer: int, amount: float) -> list[NDArray[Any]]:
    noise = np.random.default_rng(9).normal(size=(8, 8)).astype(np.float32)
    return [weight + amount * noise if k == layer else weight for k, weight in enumerate(WEIGHTS)]


class Samples:
    """Feeds of random rows, the same at each iteration."""

    name = "random rows"
    random = False

    def __init__(self, count: int = 6, rows: int = 3) -> None:
        self.count, self.rows = count, rows

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            yield {"x": rng.normal(size=(self.rows, 8)).astype(np.float32)}


def numpy_chain(weights: list[NDArray[Any]]) -> Callable[[Mapping[str, NDArray[Any]]], Feeds]:
    def run(feeds: Mapping[str, NDArray[Any]]) -> Feeds:
        x = feeds["x"]
        for k, weight in enumerate(weights):
            x = x @ weight
            x = np.maximum(x, 0) if k < len(weights) - 1 else x
        return {"y": x}

    return run


def test_the_figures_are_those_of_the_definition_pooled_over_samples(tmp_path: Path) -> None:
    other = changed(2, 0.05)
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", other), Samples())
    ref = np.concatenate([numpy_chain(WEIGHTS)(feed)["y"] for feed in Samples()]).astype(np.float64)
    got = np.concatenate([numpy_chain(other)(feed)["y"] for feed in Samples()]).astype(np.float64)
    (output,) = found.outputs
    assert output.sqnr_db == pytest.approx(10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum()), abs=1e-2)
    cosine = (ref * got).sum() / np.sqrt((ref**2).sum() * (got**2).sum())
    assert output.cosine == pytest.approx(cosine, abs=1e-5)
    assert output.max_abs == pytest.approx(np.abs(ref - got).max(), rel=1e-3)
    assert output.top1 == pytest.approx((ref.argmax(1) == got.argmax(1)).mean())
    assert (found.samples, output.elements, output.not_finite) == (6, 6 * 3 * 8, 0)
    assert found.data == "random rows"


def test_equal_models_have_infinite_sqnr_and_still_become_json(tmp_path: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    found = verify(model, model, Samples())
    assert (found.worst_sqnr_db, found.first_drift, found.failures) == (math.inf, None, ())
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["worst_sqnr_db"] == "inf"


def test_the_first_drifting_layer_is_the_one_that_was_changed(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(2, 0.2)), Samples())
    assert [layer.tensor for layer in found.layers] == [f"h{k}" for k in range(5)]
    first = found.first_drift
    assert first is not None
    assert (first.node, first.op, first.before_db) == ("mm2", "MatMul", math.inf)
    assert first.sqnr_db < 15
    assert not found.layers[3].drifts or found.layers[3].sqnr_db < 12


def test_a_small_change_is_no_drift(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(1, 1e-3)), Samples())
    assert found.first_drift is None
    assert math.isfinite(found.layers[1].sqnr_db)


def test_a_tensor_that_keeps_its_name_but_not_its_meaning_is_not_compared(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(3.0, np.float32), "factor")
    paths = []
    for name, weights in (("f", WEIGHTS), ("folded", [WEIGHTS[0] * 3, *WEIGHTS[1:]])):
        model = onnx.load(chain(tmp_path / f"{name}.onnx", weights))
        if name == "f":
            model.graph.initializer.append(scale)
            model.graph.node.insert(1, helper.make_node("Mul", ["h0", "factor"], ["m0"], name="scale"))
            next(node for node in model.graph.node if node.name == "act0").input[0] = "m0"
        onnx.save(model, tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    first, second = paths
    found = verify(first, second, Samples())
    assert [layer.tensor for layer in found.layers] == ["h1", "h2", "h3", "h4"]
    assert found.first_drift is None
    inner = verify(first, second, Samples(), inner=models.load(second))
    assert [layer.tensor for layer in inner.layers] == [f"h{k}" for k in range(5)]


def test_without_drift_no_layer_is_looked_at(tmp_path: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    assert verify(model, model, Samples(), drift=False).layers == ()


def test_samples_limits_how_many_feeds_are_run(tmp_path: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    seen: list[int] = []
    found = verify(model, model, Samples(50), samples=3, drift=False, advance=lambda: seen.append(1))
    assert (found.samples, len(seen)) == (3, 3)


def test_a_function_can_stand_for_the_quantized_model(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), numpy_chain(changed(0, 0.1)), Samples())
    assert found.worst_sqnr_db is not None
    assert 0 < found.worst_sqnr_db < 40
    assert found.layers == ()


def test_integer_outputs_are_compared_for_equality(tmp_path: Path) -> None:
    argmax = helper.make_node("ArgMax", ["y"], ["index"], name="argmax", axis=1, keepdims=0)
    first = chain(tmp_path / "f.onnx", WEIGHTS, extra=(argmax,), outputs="index")
    second = chain(tmp_path / "q.onnx", changed(0, 0.5), extra=(argmax,), outputs="index")
    (output,) = verify(first, second, Samples(20), drift=False).outputs
    ref = np.concatenate([numpy_chain(WEIGHTS)(feed)["y"].argmax(1) for feed in Samples(20)])
    got = np.concatenate([numpy_chain(changed(0, 0.5))(feed)["y"].argmax(1) for feed in Samples(20)])
    assert output.equal == pytest.approx((ref == got).mean())
    assert output.equal is not None
    assert output.equal < 1
    assert output.sqnr_db is None


def test_values_that_stop_being_finite_are_a_failure_with_the_output_named(tmp_path: Path) -> None:
    def broken(feeds: Mapping[str, NDArray[Any]]) -> Feeds:
        y = numpy_chain(WEIGHTS)(feeds)["y"]
        y[0, :2] = np.nan, np.inf
        return {"y": y}

    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), broken, Samples(2))
    assert found.outputs[0].not_finite == 4
    assert found.worst_sqnr_db == -math.inf
    with pytest.raises(AccuracyError, match="output 'y' has 4 of 48 values that are NaN or infinite"):
        Gates().require(found)


def test_values_that_are_infinite_in_the_float_model_already_are_left_out(tmp_path: Path) -> None:
    log = helper.make_node("Log", ["zero"], ["y2"], name="log")
    minus = helper.make_node("Sub", ["y", "y"], ["zero"], name="zero")
    add = helper.make_node("Concat", ["y", "y2"], ["index"], name="both", axis=1)
    path = chain(tmp_path / "f.onnx", WEIGHTS, extra=(minus, log, add))
    model = onnx.load(path)
    model.graph.output[0].name = "index"
    onnx.save(model, path)
    (output,) = verify(path, path, Samples(2), drift=False).outputs
    assert (output.not_finite, output.float_not_finite, output.sqnr_db) == (0, 48, math.inf)


def test_another_shape_in_every_sample_is_a_failure(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), lambda _: {"y": np.zeros((1, 1), np.float32)}, Samples(2))
    assert found.failures == ("output 'y' has another shape than in the float model in all 2 samples",)


def test_a_missing_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no output 'y'"):
        verify(chain(tmp_path / "f.onnx", WEIGHTS), lambda _: {"z": np.zeros(1, np.float32)}, Samples())


def test_empty_data_is_refused(tmp_path: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    with pytest.raises(DataError, match="the data is empty"):
        verify(model, model, Samples(0))


def test_fp8_graphs_are_run_with_optimisations_off(tmp_path: Path) -> None:
    path = chain(tmp_path / "f.onnx", WEIGHTS)
    model = onnx.load(path)
    scale = numpy_helper.from_array(np.array(np.abs(WEIGHTS[0]).max() / 448, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, ml_dtypes.float8_e4m3fn), "zero")
    model.graph.initializer.extend([scale, zero])
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["w0", "scale", "zero"], ["q"], name="q"))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"))
    next(node for node in model.graph.node if node.name == "mm0").input[1] = "d"
    onnx.save(model, tmp_path / "q.onnx")
    found = verify(path, tmp_path / "q.onnx", Samples())
    assert found.worst_sqnr_db is not None
    assert 15 < found.worst_sqnr_db < 60


METRIC = """
import numpy as np
{constants}
def score(run):
    return float(np.abs(run({{"x": np.ones((1, 8), np.float32)}})["y"]).sum())
def broken(run):
    raise ValueError("no labels")
def words(run):
    return "good"
def places(run):
    outputs = run({{"x": np.ones((1, 8), np.float32)}})
    return float(outputs[0].sum() - outputs[:1][0].sum() + len(outputs) - 1)
"""


@pytest.fixture
def metric(tmp_path: Path) -> Path:
    path = tmp_path / "my metric.py"
    path.write_text(METRIC.format(constants="HIGHER_IS_BETTER = False\nMETRIC = 'sum of outputs'"))
    return path


def test_the_metric_is_run_on_both_models_and_knows_its_direction(tmp_path: Path, metric: Path) -> None:
    first, second = chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(4, 0.5))
    score = verify(first, second, Samples(), metric=f"{metric}:score", drift=False).score
    ones = {"x": np.ones((1, 8), np.float32)}
    expected = [np.abs(numpy_chain(w)(ones)["y"]).sum() for w in (WEIGHTS, changed(4, 0.5))]
    assert score is not None
    assert (score.float_score, score.quantized_score) == pytest.approx(expected, rel=1e-4)
    assert score.drop == pytest.approx((expected[1] - expected[0]) / expected[0], rel=1e-3)
    assert (score.name, score.higher_is_better) == ("sum of outputs", False)


def test_a_metric_may_take_outputs_by_position(tmp_path: Path, metric: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    score = verify(model, model, Samples(), metric=f"{metric}:places", drift=False).score
    assert score is not None
    assert score.float_score == 0


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("scores", "has no function 'scores'; did you mean 'score'"),
        ("broken", "failed with ValueError: no labels"),
        ("words", "failed with ValueError: could not convert"),
    ],
)
def test_a_metric_that_does_not_work_is_a_usage_error(tmp_path: Path, metric: Path, function: str, says: str) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    with pytest.raises(UsageError, match=says):
        verify(model, model, Samples(), metric=f"{metric}:{function}")


@pytest.mark.parametrize("text", ["none.py:score", "no.such.module:score"])
def test_a_metric_that_is_not_there_is_named(tmp_path: Path, text: str) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    with pytest.raises(UsageError, match=rf"metric {text} cannot be loaded"):
        verify(model, model, Samples(), metric=text)


def measured(sqnr: float | None, score: Score | None = None) -> Verification:
    cosine = None if sqnr is None else 0.9
    output = Output("y", "float32", 10, sqnr, cosine, 0.1, None, None if cosine else 1.0, 0, 0, 0)
    return Verification(1, (output,), score=score)


def test_gates_pass_at_their_threshold_and_fail_below_with_both_figures() -> None:
    Gates(min_sqnr=20).require(measured(20.0))
    with pytest.raises(AccuracyError, match=r"'y' reaches 19\.99 dB of SQNR and at least 20 dB"):
        Gates(min_sqnr=20).require(measured(19.99))
    gates = Gates(max_drop=0.02)
    gates.require(measured(1.0, Score("top-1", 0.5, 0.49, True)))
    gates.require(measured(1.0, Score("top-1", 0.5, 0.6, True)))
    with pytest.raises(AccuracyError, match=r"'top-1' goes from 0\.5 \(float\) to 0\.48 .* 4\.00% .* 2\.00%"):
        gates.require(measured(1.0, Score("top-1", 0.5, 0.48, True)))
    with pytest.raises(AccuracyError, match="'perplexity' goes from 20"):
        gates.require(measured(1.0, Score("perplexity", 20, 21, False)))
    with pytest.raises(AccuracyError, match="to nan"):
        gates.require(measured(1.0, Score("top-1", 0.5, math.nan, True)))


def test_a_gate_on_something_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="no float output"):
        Gates(min_sqnr=20).require(measured(None))
    with pytest.raises(UsageError, match="no metric was measured"):
        Gates(max_drop=0.1).hold(measured(30.0))


def test_gates_hold_where_nothing_is_missed() -> None:
    gates = Gates(min_sqnr=20)
    assert gates.hold(None)
    assert gates.hold(measured(20.0))
    assert not gates.hold(measured(19.99))


def test_a_score_that_is_known_is_not_measured_again(tmp_path: Path) -> None:
    model, calls = chain(tmp_path / "m.onnx", WEIGHTS), []

    def three(run: Any) -> float:
        calls.append(run)
        return 3.0

    score = verify(model, model, Samples(), metric=three, float_score=4.0, drift=False).score
    assert score is not None
    assert (score.float_score, score.quantized_score, len(calls)) == (4.0, 3.0, 1)
