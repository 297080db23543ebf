"""What it costs that a model in double is computed in FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.passes.importing import imported
from qcompiler.verification.narrowing import Narrowing, is_narrower, narrowing
from tests.kit.rewrite import model

RNG = np.random.default_rng(5)


def both(folder: Path, offset: float) -> tuple[models.Model, models.Model]:
    proto = model(("Sub", "t t0", "d"), ("MatMul", "d w", "y"), inputs={"t": (np.float64, ("n", 8))},
                  weights={"t0": np.float64(offset), "w": RNG.normal(size=(8, 4))})  # fmt: skip
    onnx.save(proto, folder / "m.onnx")
    original = models.load(folder / "m.onnx")
    return original, imported(original)


def test_ordinary_numbers_lose_nothing_that_matters(tmp_path: Path) -> None:
    original, model = both(tmp_path, 0.5)
    assert is_narrower(original, model)
    found = narrowing(original, model, [{"t": RNG.normal(size=(3, 8))}])
    assert found.sqnr_db is not None
    assert found.sqnr_db > 120
    assert (found.samples, found.output, found.warning) == (1, "y", "")


def test_times_that_float32_does_not_hold_are_refused_with_the_output(tmp_path: Path) -> None:
    original, model = both(tmp_path, 1.7e9)
    with pytest.raises(ModelError, match="output 'y' computed in FP32 agrees with double to .* dB only"):
        narrowing(original, model, [{"t": 1.7e9 + RNG.normal(size=(3, 8))}])


def test_what_lies_between_is_a_warning(tmp_path: Path) -> None:
    original, model = both(tmp_path, 3e5)
    found = narrowing(original, model, [{"t": 3e5 + RNG.normal(size=(64, 8))}])
    assert "double and is computed in FP32, which leaves" in found.warning


def test_what_onnx_runtime_does_not_run_in_double_is_told(tmp_path: Path) -> None:
    proto = model(("Conv", "x w", "y"), inputs={"x": (np.float64, (1, 2, 4, 4))}, weights={"w": np.ones((2, 2, 1, 1))})
    onnx.save(proto, tmp_path / "m.onnx")
    original = models.load(tmp_path / "m.onnx")
    found = narrowing(original, imported(original), [{"x": np.ones((1, 2, 4, 4))}])
    assert found.sqnr_db is None
    assert "does not run it in double (no kernel for node 'Y' (Conv of opset 11))" in found.warning


def test_a_float_model_is_not_narrower_and_no_samples_tell_nothing(tmp_path: Path) -> None:
    onnx.save(model(("Relu", "x", "y")), tmp_path / "m.onnx")
    plain = models.load(tmp_path / "m.onnx")
    assert not is_narrower(plain, imported(plain))
    assert narrowing(*both(tmp_path, 0.5), []) == Narrowing(0)
