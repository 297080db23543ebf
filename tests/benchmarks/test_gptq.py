"""The comparison of GPTQ with ONNX Runtime's: what it takes from a model, and what it says about each way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import gptq as benchmark
from benchmarks.measure import BenchmarkError
from qcompiler.ir import model as models
from tests.kit import glu
from tests.kit.rewrite import model


@pytest.fixture
def stack(tmp_path: Path) -> models.Model:
    onnx.save(glu.stack(layers=3), tmp_path / "model.onnx")
    return models.load(tmp_path / "model.onnx")


def test_layers_of_a_size_are_spread_over_the_model(stack: models.Model) -> None:
    every = benchmark.layers(stack, 99)
    two = benchmark.layers(stack, 2)
    assert every.keys() == two.keys()
    for size, found in every.items():
        assert all(layer.weight.shape == size for layer in found)
        ends = {found[0].name, found[-1].name}
        assert {layer.name for layer in two[size]} == ends


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    onnx.save(model(("Relu", "x", "y"), inputs={"x": (2, 3)}, outputs=["y"]), tmp_path / "relu.onnx")
    with pytest.raises(BenchmarkError, match="no product"):
        benchmark.layers(models.load(tmp_path / "relu.onnx"), 3)


def test_both_implementations_round_the_same_layer_and_leave_what_they_were_given() -> None:
    pytest.importorskip("onnx_ir", reason="ONNX Runtime's GPTQ needs onnx-ir, which comes with the extra dev")
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 64)) @ random.standard_normal((64, 64))
    weight = random.standard_normal((64, 32)).astype(np.float32)
    seen = {"x": x[:200].T @ x[:200]}
    before = weight.copy(), seen["x"].copy()
    ways = benchmark.implementations(32)
    unseen = {"x": x[200:].T @ x[200:]}
    found = benchmark.figures([benchmark.Layer("n", "x", weight)], ways, seen, unseen)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(seen["x"], before[1])
    assert found.keys() == ways.keys()
    for (one,) in found.values():
        assert 0 < one.seen < 0.05
        assert 0 < one.unseen < 0.05
        assert one.unseen != one.seen


def test_the_table_states_times_by_onnx_runtimes() -> None:
    ours, theirs = benchmark.Figure(0.5, 0.001, 0.01), benchmark.Figure(2.0, 0.01, 0.1)
    lines = list(benchmark.table([((64, 32), {benchmark.OURS: [ours], next(iter(benchmark.THEIRS)): [theirs]})]))
    assert "| 64 x 32 | 1 | qcompiler | 0.500 | 0.25 | -30.00 dB | -20.00 dB |" in lines


def test_onnx_runtimes_gptq_still_gives_the_same_whatever_the_hessian() -> None:
    """When this fails, it was mended: measure again, and rewrite docs/methods/weight_only.md."""
    pytest.importorskip("onnx_ir", reason="ONNX Runtime's GPTQ needs onnx-ir, which comes with the extra dev")
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 64)) @ random.standard_normal((64, 64))
    weight = random.standard_normal((64, 32)).astype(np.float32)
    theirs = benchmark.implementations(32)["ONNX Runtime"]
    np.testing.assert_array_equal(theirs(weight, x.T @ x), theirs(weight, np.eye(64)))


def test_the_error_is_that_of_the_outputs_relative_to_their_power() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((50, 6)).astype(np.float32), rng.standard_normal((6, 4)).astype(np.float32)
    gap = 0.1 * rng.standard_normal((6, 4)).astype(np.float32)
    wanted = np.sum((x @ gap) ** 2) / np.sum((x @ w) ** 2)
    assert benchmark.error(w, x.T @ x, gap) == pytest.approx(float(wanted), rel=1e-4)
    assert benchmark.error(np.zeros_like(w), np.eye(6), gap) == 0.0
