"""All samples once through the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.model import Model
from qcompiler.verification.finite_on_all import Finiteness, finite_on_all
from tests.kit.rewrite import model, to_graph

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def held(proto: onnx.ModelProto) -> Model:
    return Model(to_graph(proto), {}, None, 10)


def pair() -> tuple[Model, Model]:
    """The square root of a square in float, and with the square in half: it overflows from 256 on."""
    plain = model(("Mul", "x x", "s"), ("Sqrt", "s", "y"), inputs={"x": ("n", 4)})
    half = model(
        ("Cast", "x", "h", {"to": HALF}),
        ("Mul", "h h", "s16"),
        ("Cast", "s16", "s", {"to": FLOAT}),
        ("Sqrt", "s", "y"),
        inputs={"x": ("n", 4)},
    )
    return held(plain), held(half)


def feeds(*scales: float) -> list[dict[str, Any]]:
    return [{"x": np.full((1, 4), scale, np.float32)} for scale in scales]


def test_samples_that_overflow_are_counted_and_the_node_is_named() -> None:
    plain, half = pair()
    steps: list[float] = []
    found = finite_on_all(plain, half, feeds(1, 300, 2, 400), advance=steps.append)
    assert (found.samples, found.failing, found.output) == (4, (1, 3), "y")
    assert found.node in {"S16", "S"}
    assert "2 of 4 samples (first on sample 1, in output 'y')" in str(found)
    assert steps == [1, 1, 1, 1]


def test_a_result_that_is_finite_says_so() -> None:
    plain, half = pair()
    found = finite_on_all(plain, half, feeds(1, 2, 200))
    assert found == Finiteness(3)
    assert "finite on all 3 samples" in str(found)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_float_has_too_is_no_failure(value: float) -> None:
    masked = held(
        model(
            ("Greater", "x zero", "on"),
            ("Where", "on x low", "y"),
            inputs={"x": ("n", 4)},
            weights={"zero": np.float32(0), "low": np.float32(value)},
        )
    )
    assert finite_on_all(masked, masked, feeds(1, -1)).failing == ()


def test_nan_that_the_float_model_makes_is_refused_with_sample_and_node() -> None:
    root = held(model(("Sqrt", "x", "y"), inputs={"x": ("n", 4)}))
    with pytest.raises(ModelError, match=r"output 'y' .* on sample 2; node 'Y' \(Sqrt\)"):
        finite_on_all(root, root, feeds(1, 4, -1))


def test_infinity_in_another_place_is_a_failure() -> None:
    spec: dict[str, Any] = {
        "inputs": {"x": ("n", 4)},
        "weights": {"one": np.float32(1), "zero": np.float32(0), "low": -np.float32(np.inf)},
    }
    expected = held(model(("Greater", "x one", "on"), ("Where", "on x low", "y"), **spec))
    other = held(model(("Greater", "x zero", "on"), ("Where", "on low x", "y"), **spec))
    assert finite_on_all(expected, other, feeds(2, -1)).failing == (0,)
