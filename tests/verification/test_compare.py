"""Comparing two models: the figures against numpy's, the failures that are named, and the gates."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qcompiler.errors import AccuracyError, DataError, ModelError
from qcompiler.judge.figures import ViewFigure
from qcompiler.judge.outputs import Output
from qcompiler.verification.compare import Verification, verify
from qcompiler.verification.gates import Gates
from tests.kit import rewrite
from tests.kit.verification.chain import WEIGHTS, Feeds, Samples, chain, changed, numpy_chain


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


def test_logits_whose_name_is_gone_are_compared_all_the_same(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float32), "zeros": np.zeros(4, np.float32)}
    nodes: list[rewrite.Spec] = [("MatMul", "x w", "h"), ("Add", "h zeros", "logits"), ("Softmax", "logits", "y")]
    without: list[rewrite.Spec] = [("MatMul", "x w", "h"), ("Softmax", "h", "y")]
    onnx.save(rewrite.model(*nodes, weights=weights), tmp_path / "f.onnx")
    onnx.save(rewrite.model(*without, weights=weights | {"w": weights["w"] * 1.1}), tmp_path / "q.onnx")
    feeds = [{"x": np.arange(8, dtype=np.float32).reshape(2, 4)}]
    found = verify(tmp_path / "f.onnx", tmp_path / "q.onnx", feeds, drift=False)
    (source,) = [view for view in found.views if view.judged]
    assert (source.tensor, source.missing) == ("logits", False)
    assert source.sqnr_db == pytest.approx(20, abs=1e-3)  # a tenth off


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


def test_a_model_that_draws_is_compared_on_several_draws(tmp_path: Path) -> None:
    proto = rewrite.model(
        ("RandomNormalLike", "x", "r"), ("Mul", "x r", "m"), ("Add", "m x", "y"), inputs={"x": (2, 4)}, opset=15
    )  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = [{"x": np.full((2, 4), value, np.float32)} for value in (1.0, 1.0, 1.0, 1.0)]
    seen: list[NDArray[Any]] = []

    def other(feed: Mapping[str, NDArray[Any]]) -> Feeds:
        seen.append(feed["x"])
        return {"y": np.ones((2, 4), np.float32)}

    same = verify(tmp_path / "m.onnx", tmp_path / "m.onnx", feeds, drift=False)
    assert same.worst_sqnr_db == math.inf
    different = verify(tmp_path / "m.onnx", other, feeds[:1], drift=False)
    several = verify(tmp_path / "m.onnx", other, feeds[:3], drift=False)
    assert different.worst_sqnr_db != several.worst_sqnr_db  # the float model has drawn others
    assert several.worst_sqnr_db == verify(tmp_path / "m.onnx", other, feeds[:3], drift=False).worst_sqnr_db


def test_an_ignored_output_fails_nothing_and_picked_rows_may_be_of_any_number() -> None:
    output = Output("boxes", "float32", 0, None, None, None, None, None, 0, 0, 8)
    picked = ViewFigure("boxes", "boxes", "boxes", "result", "TopK", False, 8, None, 0, None, 0.97, reshaped=8)
    assert "another shape" in Verification(8, (output,)).failures[0]
    assert Verification(8, (output,), views=(picked,)).failures == ()
    broken = dataclasses.replace(output, not_finite=3, reshaped=0)
    assert Verification(8, (broken,), views=(picked,)).failures
    ignored = dataclasses.replace(picked, role="ignored", agreement=None)
    assert Verification(8, (broken,), views=(ignored,)).failures == ()
