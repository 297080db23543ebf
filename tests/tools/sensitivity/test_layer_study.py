"""`sensitivity`: figures are those of rounding by hand, causes and remedies are named, nothing else is touched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.calibrators.mse import MSE
from qcompiler.compiler import compile
from qcompiler.numerics.rounding import dequantize, quantize_int8, quantize_weight
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.runtime.session import Session
from qcompiler.statistics.histogram import Histogram
from qcompiler.tools.sensitivity.sensitivity import sensitivity
from tests.kit.rewrite import model
from tests.kit.tools.studied import W1, W2, by_layer, data, normal, perceptron, saved


def test_figures_are_those_of_rounding_by_hand(tmp_path: Path) -> None:
    feeds = data(1)
    x = feeds[0]["x"]
    amax = MSE().range(Histogram.of(x))
    coarse = dequantize(quantize_int8(x, amax / 127), amax / 127)
    rounded = dequantize(*quantize_weight(W1, 1), 1)
    hidden, output = x @ W1, np.maximum(x @ W1, 0) @ W2
    found = sensitivity(saved(tmp_path, perceptron()), data=feeds, formats="int8")
    effect = by_layer(found)["H"].effects["int8"]
    assert effect.weights_db == pytest.approx(sqnr_of(hidden, x @ rounded - hidden), abs=0.01)
    assert effect.activations_db == pytest.approx(sqnr_of(hidden, coarse @ W1 - hidden), abs=0.01)
    assert effect.layer_db == pytest.approx(sqnr_of(hidden, coarse @ rounded - hidden), abs=0.01)
    alone = np.maximum(coarse @ rounded, 0) @ W2
    assert effect.outputs_db == pytest.approx(sqnr_of(output, alone - output), abs=0.01)


def test_the_sum_predicts_the_whole_and_the_rest(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(), formats="int8,fp8")
    for name in found.formats:
        alone = [10 ** (-group.effects[name].outputs_db / 10) for group in found.groups]
        assert found.predicted_db[name] == pytest.approx(-10 * np.log10(sum(alone)), abs=1e-6)
        assert found.groups[0].effects[name].rest_db == pytest.approx(-10 * np.log10(sum(alone[1:])), abs=1e-6)
        assert found.groups[-1].effects[name].rest_db > 100
    first = [group.effects["int8"].outputs_db for group in found.groups]
    assert first == sorted(first)
    assert sum(group.share for group in found.groups) == pytest.approx(1)


def test_weight_formats_have_no_activation_error(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(1), formats=["nf4", "e5m2"])
    for group in found.groups:
        effect = group.effects["nf4"]
        assert (effect.activations_db, effect.limit) == (None, "weights")
        assert effect.layer_db == effect.weights_db
        assert group.effects["e5m2"].activations_db is not None
    assert all("nf4" not in group.helps and "e5m2" not in group.helps for group in found.groups)  # no engine has them


@pytest.mark.parametrize("size", [128, 32])
def test_int4_errs_as_much_as_the_weights_that_int4_weight_stores(size: int, tmp_path: Path) -> None:
    weights = {"w1": normal(256, 48), "w2": normal(48, 24)}
    proto = model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("n", 20, 256)},
        weights=weights,
    )
    path, feeds = saved(tmp_path, proto), data(2, 20, 256)
    recipe = Recipe(
        target="onnxruntime", precision="int4-weight", weight_only=WeightOnlyTable(method="rtn", block_size=size)
    )
    effect = by_layer(sensitivity(path, data=feeds, formats="int4", recipe=recipe))["H"].effects["int4"]
    result = compile.quantize(path, data=feeds, recipe=recipe, output=tmp_path / "out.onnx")
    (row,) = (one for one in result.manifest["weight_only"]["layers"] if one["node"] == "H")
    assert row["block"] == size
    assert effect.weights_db == pytest.approx(row["output_db"], abs=0.01)


def test_convolutions_and_gemms_with_bias_and_turned_weights_are_studied(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)  # weights of its own: what a layer loses depends on them, not on other tests

    def weight(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape).astype(np.float32)

    proto = model(
        ("Conv", "x w1 b1", "c", {"pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", "c", "p"),
        ("Flatten", "p", "f"),
        ("Transpose", "w2", "t", {"perm": [1, 0]}),
        ("MatMul", "f t", "m"),
        ("Gemm", "m w3 b3", "g", {"transB": 1}),
        ("Softmax", "g", "y", {"axis": -1}),
        inputs={"x": ("n", 16, 8, 8)},
        weights={
            "w1": weight(32, 16, 3, 3), "b1": weight(32), "w2": weight(24, 32),
            "w3": weight(20, 24) / 50, "b3": weight(20) / 50,  # logits of which none is so small that it is nothing
        },
    )  # fmt: skip
    joined = Recipe(batch=32)  # of one row the two layers at the end are matrix-vector products, which stay float
    found = sensitivity(
        saved(tmp_path, proto), data=data(64, 16, 8, 8), recipe=joined, formats="int8,fp8,e5m2,int4,nf4,fp4"
    )
    assert set(by_layer(found)) == {"C", "M", "G"}
    for group in found.groups:
        figures = {name: effect.layer_db for name, effect in group.effects.items()}
        assert 30 < figures["int8"] < 60
        assert figures["fp8"] > figures["e5m2"] + 3
        assert 10 < figures["fp4"] < 40
    last = by_layer(found)["G"].effects["int8"]
    assert last.outputs_db == pytest.approx(last.layer_db, abs=3)  # logits, not probabilities


def test_the_model_file_is_not_touched_and_its_outputs_do_not_move(tmp_path: Path) -> None:
    path = saved(tmp_path, perceptron())
    before, feed = hashlib.sha256(path.read_bytes()).hexdigest(), data(1)[0]
    reference = Session(path).run(feed)["y"]
    first, second = (sensitivity(path, data=data(3)).to_json() for _ in range(2))
    assert first == second
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    np.testing.assert_array_equal(Session(path).run(feed)["y"], reference)
