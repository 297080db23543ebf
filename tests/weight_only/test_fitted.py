"""Fitted INT8 weights: less error where few channels carry the power, laid out as the initializer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.numerics.rounding import dequantize, quantize_weight
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.target import parse_target
from qcompiler.weight_only import fitted
from tests.kit.rewrite import Spec, model

DEPTH, WIDTH, ROWS = 48, 20, 256
LOUD = 40.0  # what two channels are larger than the others
LAYOUTS: dict[str, list[Spec]] = {
    "matmul": [("MatMul", "x w", "y")],
    "gemm": [("Gemm", "x w", "y")],
    "gemm-transposed": [("Gemm", "x t", "y", {"transB": 1})],
    "behind-transpose": [("Transpose", "t", "v", {"perm": [1, 0]}), ("MatMul", "x v", "y")],
}


def weight() -> Any:
    return np.random.default_rng(3).standard_normal((DEPTH, WIDTH)).astype(np.float32)


def feeds(count: int = 4, seed: int = 5) -> list[dict[str, Any]]:
    """Rows whose first channels are loud and move together with some of the others."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(6).standard_normal((8, DEPTH))
    made = [rng.standard_normal((ROWS, 8)) @ mixed + 0.3 * rng.standard_normal((ROWS, DEPTH)) for _ in range(count)]
    for one in made:
        one[:, :2] = LOUD + one[:, :2]
    return [{"x": one.astype(np.float32)} for one in made]


def loaded(folder: Path, *nodes: Spec, **weights: Any) -> tuple[models.Model, Candidates]:
    proto = model(*nodes, inputs={"x": (ROWS, DEPTH)}, weights=weights, opset=21)
    onnx.save(proto, folder / "m.onnx")
    read = models.load(folder / "m.onnx")
    return read, Candidates(*candidates.find_candidates(read.graph, parse_target("tensorrt-rtx")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_errs_less_on_other_samples_however_the_weight_is_stored(tmp_path: Path, layout: str) -> None:
    w, turned = weight(), layout in ("gemm-transposed", "behind-transpose")
    read, layers = loaded(tmp_path, *LAYOUTS[layout], **({"t": w.T.copy()} if turned else {"w": w}))
    (one,) = fitted.fitted(read, layers, feeds()).found
    assert one.fitted is not None
    assert one.axis is not None
    assert one.fitted.values.shape == (w.T if turned else w).shape
    assert one.fitted.values.dtype == np.int8
    assert one.fitted.scales.shape == (WIDTH,)
    own = dequantize(one.fitted.values, one.fitted.scales, one.axis)
    nearest = dequantize(*quantize_weight(w, 1), 1)
    x = feeds(seed=50)[0]["x"]
    errors = [float(np.square(x @ ((own.T if turned else own) - w)).sum()), float(np.square(x @ (nearest - w)).sum())]
    assert errors[0] < 0.3 * errors[1]


def test_layers_that_share_an_activation_share_its_moments(tmp_path: Path) -> None:
    read, layers = loaded(
        tmp_path, ("MatMul", "x w", "a"), ("MatMul", "x u", "b"), ("Add", "a b", "y"), w=weight(), u=2 * weight()
    )
    counted: list[int] = []
    found = fitted.fitted(read, layers, feeds(), counted.append).found
    assert sum(counted) == 4 == 4 * fitted.passes(read, layers.found)
    (first, second) = (one.fitted for one in found)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_allclose(2 * first.scales, second.scales, rtol=1e-5)
    assert layers.found[0].fitted is None  # what was given stays as it is


def test_what_is_no_matrix_stays_as_it_was(tmp_path: Path) -> None:
    proto = model(
        ("Conv", "x w", "c"),
        ("Flatten", "c", "f"),
        ("MatMul", "f u", "y"),
        inputs={"x": (2, 3, 8, 8)},
        weights={
            "w": np.random.default_rng(1).standard_normal((4, 3, 1, 1)).astype(np.float32),
            "u": np.random.default_rng(2).standard_normal((256, 32)).astype(np.float32),
        },
        opset=21,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    read = models.load(tmp_path / "m.onnx")
    layers = Candidates(*candidates.find_candidates(read.graph, parse_target("tensorrt-rtx")))
    assert set(fitted.fittable(read.graph, layers.found)) == {"Y"}
    data = [{"x": np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)} for seed in range(3)]
    found = {one.node: one.fitted for one in fitted.fitted(read, layers, data).found}
    assert found["C"] is None
    assert found["Y"] is not None


def test_work_grows_with_the_square_of_the_depth(tmp_path: Path) -> None:
    read, layers = loaded(tmp_path, ("MatMul", "x w", "y"), w=weight())
    assert fitted.work_of(read.graph, layers.found) == pytest.approx(3 * DEPTH**2 * WIDTH + DEPTH**3 / 3)


def test_a_weight_that_several_layers_share_is_fitted_once_to_what_all_read_and_stays_one(tmp_path: Path) -> None:
    w = weight()
    quiet = {"low": np.full((1, DEPTH), 0.5, np.float32), "u": w + 1}
    twice = (("Mul", "x low", "z"), ("MatMul", "x w", "a"), ("MatMul", "z w", "b"), ("MatMul", "z u", "c"))
    rest = (("Add", "a b", "d"), ("Add", "d c", "y"))
    read, layers = loaded(tmp_path, *twice, *rest, w=w, **quiet)
    first, second, own = (one.fitted for one in fitted.fitted(read, layers, feeds()).found)
    assert first is not None
    assert first is second
    assert own is not None
    kinds = 2  # of weights, and of rows that they meet: those of x and z, and those of z
    assert fitted.work_of(read.graph, layers.found) == kinds * (3 * DEPTH**2 * WIDTH + DEPTH**3 / 3)
