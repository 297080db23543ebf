"""Weight range search: never worse, better where single weights stick out, and right for every weight layout."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir import model as models
from qcompiler.numerics.rounding import dequantize, quantize_weight, weight_scales
from qcompiler.plan import Candidate
from qcompiler.planning.placement import candidates
from qcompiler.planning.search import weight_ranges
from qcompiler.statistics import rows as recorded
from qcompiler.target import parse_target

TARGET = parse_target("tensorrt-rtx")


def _with_outlier(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    weight[(0,) * len(shape)] = 9.0
    return weight


def _error(weight: np.ndarray, axis: int, scales: np.ndarray, importance: np.ndarray) -> float:
    values, _ = quantize_weight(weight, axis, scales=scales)
    return float((importance * (dequantize(values, scales, axis) - weight) ** 2).sum())


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([0, 1]))
def test_the_weighted_error_never_grows(seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, size=(24, 40)).astype(np.float32)
    importance = rng.uniform(0.01, 1, size=(24, 1) if axis == 1 else (1, 40)).astype(np.float32)
    scales = weight_ranges.best_scales(weight, axis, importance)
    assert (scales <= weight_scales(weight, axis)).all()
    assert _error(weight, axis, scales, importance) <= _error(weight, axis, weight_scales(weight, axis), importance)


def test_a_weight_that_meets_no_signal_is_clipped() -> None:
    weight = _with_outlier((256, 4))
    importance = np.ones((256, 1), np.float32)
    importance[0] = 0.0
    scales = weight_ranges.best_scales(weight, 1, importance)
    assert scales[0] < 0.6 * weight_scales(weight, 1)[0]


def test_a_channel_that_gains_nothing_keeps_its_whole_range() -> None:
    weight = np.linspace(-1, 1, 255, dtype=np.float32)[:, None].repeat(2, 1)  # on the grid of the whole range already
    np.testing.assert_array_equal(
        weight_ranges.best_scales(weight, 1, np.ones((255, 1), np.float32)), weight_scales(weight, 1)
    )


def _model(op: str) -> models.Model:
    """x → op → y with a weight of which one element sticks out where the input is all but silent."""
    conv = op.endswith("Conv")
    shape: list[int | str] = ["n", 32, 6, 6] if conv else ["n", 10, 64]
    x = gs.Variable("x", np.float32, shape)
    y = gs.Variable("y", np.float32, None)
    attrs: dict[str, object] = {}
    if op == "Conv":
        weight = _with_outlier((16, 32, 3, 3))
    elif op == "GroupedConv":
        weight, attrs = _with_outlier((32, 8, 3, 3)), {"group": 4}
    else:
        weight = _with_outlier((64, 32))
    node = gs.Node("Conv" if conv else op, "layer", attrs, [x, gs.Constant("w", weight)], [y])
    return models.Model(gs.Graph([node], [x], [y], opset=17), {}, None, 8)


@pytest.mark.parametrize("op", ["MatMul", "Conv", "GroupedConv"])
def test_layers_err_less_with_the_scales_that_are_found(op: str) -> None:
    model = _model(op)
    found, _ = candidates.find_candidates(model.graph, TARGET)
    groups = candidates.by_activation(found)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 32, 6, 6) if op != "MatMul" else (4, 10, 64)).astype(np.float32)
    if op == "MatMul":
        x[..., 0] *= 1e-3
    else:
        x[:, 0] *= 1e-3
    feeds = [{"x": x}]
    rows = recorded.record_rows(model, {"x": -1}, feeds) if op == "MatMul" else {}
    scales = weight_ranges.find_scales(model, groups, rows, feeds)["layer"]
    weight = model.graph.nodes[0].inputs[1].values
    axis = found[0].axis
    assert axis is not None
    whole = weight_scales(weight, axis)
    assert scales[0] < whole[0]
    moments = weight_ranges.second_moments(model, groups, feeds)["x"]
    if op == "MatMul":
        importance = moments[:, None]
    else:
        importance = moments.reshape(4 if op == "GroupedConv" else 1, 1, -1)
        importance = importance.repeat(weight.shape[0] // importance.shape[0], 1).reshape(weight.shape[0], -1, 1, 1)
    assert _error(weight, axis, scales, importance) < 0.9 * _error(weight, axis, whole, importance)


def test_one_scale_per_tensor_is_left_alone() -> None:
    model = _model("MatMul")
    found, _ = candidates.find_candidates(model.graph, TARGET)
    joint = Candidate("layer", "MatMul", "x", "w", None)
    assert found[0].axis == 1
    feeds = [{"x": np.ones((1, 10, 64), np.float32)}]
    assert weight_ranges.find_scales(model, {"x": [joint]}, {}, feeds) == {}
