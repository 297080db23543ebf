"""Quantization equals ONNX Runtime's to the bit, expected errors equal the measured ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompiler.errors import ModelError
from qcompiler.numerics.rounding import (
    Format,
    dequantize,
    grid,
    quantize_fp8_e4m3,
    quantize_int8,
    quantize_weight,
    weight_scales,
)


def onnx_runtime_round_trip(x: NDArray[np.float32], scale: NDArray[np.float32], axis: int, kind: int) -> Any:
    """DequantizeLinear(QuantizeLinear(x)) as ONNX Runtime computes it on CPU."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=axis),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.reshape(-1)),
            helper.make_tensor("zero", kind, scale.shape, np.zeros(scale.size, np.uint8).tobytes(), raw=True),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture(scope="module")
def values() -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_t(3, (6, 500)).astype(np.float32)
    drawn[:, :20] = np.arange(-10, 10) + 0.5  # ties
    drawn[:, 20:22] = 1e6, -1e6  # far outside
    return drawn


@pytest.mark.parametrize("per_axis", [False, True])
def test_int8_equals_onnx_runtime(values: NDArray[np.float32], per_axis: bool) -> None:
    scale = np.array([1, 0.5, 0.1, 0.03, 1e-3, 7], np.float32) if per_axis else np.array(0.125, np.float32)
    axis = 0 if per_axis else None
    ours = dequantize(quantize_int8(values, scale, axis), scale, axis)
    np.testing.assert_array_equal(ours, onnx_runtime_round_trip(values, scale, 0, TensorProto.INT8))


@pytest.mark.parametrize("per_axis", [False, True])
def test_e4m3_equals_onnx_runtime(values: NDArray[np.float32], per_axis: bool) -> None:
    scale = np.array([1, 0.5, 0.1, 0.03, 1e-3, 7], np.float32) if per_axis else np.array(0.125, np.float32)
    axis = 0 if per_axis else None
    ours = dequantize(quantize_fp8_e4m3(values, scale, axis), scale, axis)
    np.testing.assert_array_equal(ours, onnx_runtime_round_trip(values, scale, 0, TensorProto.FLOAT8E4M3FN))


def test_int8_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32)
    assert quantize_int8(x, 1.0).tolist() == [0, 2, 2, 0, -2, 127, -128]


def test_e4m3_saturates_instead_of_becoming_nan() -> None:
    assert quantize_fp8_e4m3(np.array([1e9, -1e9, 448, 500]), 1.0).astype(float).tolist() == [448, -448, 448, 448]


WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.floats(-1e4, 1e4, width=32)
)


@given(WEIGHTS, st.data())
def test_weights_round_to_within_half_a_step_of_their_channel(w: NDArray[np.float32], data: st.DataObject) -> None:
    axis = data.draw(st.none() | st.integers(0, w.ndim - 1))
    q, scales = quantize_weight(w, axis)
    assert q.dtype == np.int8
    assert q.shape == w.shape
    assert scales.shape == (() if axis is None else (w.shape[axis],))
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    assert np.abs(q.astype(int)).max() <= 127
    step = scales if axis is None else scales.reshape([-1 if d == axis else 1 for d in range(w.ndim)])
    assert (np.abs(dequantize(q, scales, axis) - w) <= step * 0.5001).all()


@given(WEIGHTS, st.data())
def test_fp8_weights_round_to_the_nearest_value_of_the_grid(w: NDArray[np.float32], data: st.DataObject) -> None:
    axis = data.draw(st.none() | st.integers(0, w.ndim - 1))
    q, scales = quantize_weight(w, axis, "fp8")
    assert q.dtype == ml_dtypes.float8_e4m3fn
    assert q.shape == w.shape
    assert scales.shape == (() if axis is None else (w.shape[axis],))
    step = scales if axis is None else scales.reshape([-1 if d == axis else 1 for d in range(w.ndim)])
    # 3 bits of mantissa: half a step is a 16th of the value at most, or half of the smallest value 2**-9
    assert (np.abs(dequantize(q, scales, axis) - w) <= np.maximum(np.abs(w) / 16, step * 2**-10) * 1.0001).all()


def test_the_largest_weight_of_each_channel_is_stored_as_448() -> None:
    w = np.random.default_rng(1).normal(size=(8, 30)).astype(np.float32)
    q, scales = quantize_weight(w, 0, "fp8")
    assert np.abs(q.astype(np.float32)).max(axis=1).tolist() == [448] * 8
    np.testing.assert_allclose(scales, np.abs(w).max(axis=1) / 448, rtol=1e-6)


@pytest.mark.parametrize(("format", "top"), [("int8", 127), ("fp8", 448)])
@pytest.mark.parametrize("axis", [None, 1])
def test_given_scales_clip_what_does_not_fit(format: Format, top: int, axis: int | None) -> None:
    w = np.array([[1, -2], [3, -4]], np.float32)
    given_scales = np.full([2] if axis == 1 else [], 2 / top, np.float32)
    q, scales = quantize_weight(w, axis, format, given_scales)
    np.testing.assert_array_equal(scales, given_scales)
    bottom = -2 * 128 / 127 if format == "int8" else -2
    np.testing.assert_allclose(dequantize(q, scales, axis), np.clip(w, bottom, 2), rtol=0.02)


def test_the_largest_weight_of_each_channel_uses_the_whole_range() -> None:
    w = np.random.default_rng(1).normal(size=(8, 30)).astype(np.float32)
    assert np.abs(quantize_weight(w, 0)[0].astype(int)).max(axis=1).tolist() == [127] * 8
    assert np.abs(quantize_weight(w, 1)[0].astype(int)).max(axis=0).tolist() == [127] * 30


def test_a_channel_of_zeros_takes_the_largest_scale_of_the_tensor() -> None:
    w = np.array([[0, 0], [1, -127], [3, 0]], np.float32)
    assert weight_scales(w, 0).tolist() == [1.0, 1.0, np.float32(3 / 127)]


def test_a_vanishing_channel_keeps_a_scale_that_can_be_divided_by() -> None:
    scales = weight_scales(np.array([[1e-37], [127]], np.float32), 0)
    assert scales.tolist() == [2.0**-24, 1.0]


def test_a_channel_below_the_normal_numbers_is_a_dead_one() -> None:
    assert weight_scales(np.array([[1e-39], [127]], np.float32), 0).tolist() == [1.0, 1.0]
    assert weight_scales(np.full((2, 3), 1e-39, np.float32), 0).tolist() == [np.float32(1 / 127)] * 2


@given(st.floats(-(2.0**99), 0, width=32), st.floats(0, 2.0**99, width=32))
def test_the_scale_of_an_unsigned_grid_is_a_normal_number(low: float, high: float) -> None:
    scale, zero = grid(low, high)
    assert scale >= np.finfo(np.float32).smallest_normal
    assert 0 <= zero <= 255
    assert float(scale) * 255 <= high - low or scale == np.finfo(np.float32).smallest_normal


def test_a_weight_of_nothing_but_zeros_has_a_positive_scale() -> None:
    assert weight_scales(np.zeros((2, 3), np.float32), None) == np.float32(1 / 127)
    assert weight_scales(np.zeros((2, 3), np.float32), None, "fp8") == np.float32(1 / 448)
    assert quantize_weight(np.zeros((2, 0), np.float32), 0)[0].shape == (2, 0)


def test_half_precision_weights_are_quantized_as_their_float32_values() -> None:
    w = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float16)
    for ours, wide in zip(quantize_weight(w, 1), quantize_weight(w.astype(np.float32), 1), strict=True):
        np.testing.assert_array_equal(ours, wide)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_channel(bad: float) -> None:
    w = np.ones((4, 3), np.float32)
    w[2, 1] = bad
    with pytest.raises(ModelError, match=r"\[4, 3\].*channel 2"):
        quantize_weight(w, 0)
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_weight(w, None)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_memory_mapped_weight_is_quantized_in_little_memory(tmp_path: Path, axis: int | None) -> None:
    path = tmp_path / "weight.bin"
    np.random.default_rng(3).normal(size=(4096, 3000)).astype(np.float32).tofile(path)
    w = np.memmap(path, np.float32, "r", shape=(4096, 3000))
    tracemalloc.start()
    try:
        q, scales = quantize_weight(w, axis)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < q.nbytes + (20 << 20)
    part = (slice(0, 50), slice(None)) if axis != 1 else (slice(None), slice(0, 50))
    own = scales if axis is None else scales[:50]
    np.testing.assert_array_equal(q[part], quantize_int8(np.asarray(w[part]), own, axis))


def test_fp8_values_are_what_ml_dtypes_says() -> None:
    assert quantize_fp8_e4m3(np.ones((2, 2)), 1.0).dtype == ml_dtypes.float8_e4m3fn
