"""The expected error of a range is the error that rounding then makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from qcompiler.calibrators.error_curve import ErrorCurve, quantization_error
from qcompiler.numerics.rounding import (
    Format,
    dequantize,
    quantize_fp8_e4m3,
    quantize_int8,
)
from qcompiler.statistics.histogram import Histogram

FORMATS: list[Format] = ["int8", "fp8"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("clip", [0.05, 0.5, 1.0, 1.7])
def test_the_expected_error_is_the_measured_one(format: Format, clip: float) -> None:
    x = np.random.default_rng(4).laplace(size=200_000).astype(np.float32)
    h = Histogram.of(x)
    amax = h.amax * clip
    if format == "int8":
        back = dequantize(np.maximum(quantize_int8(x, amax / 127), -127), amax / 127)
    else:
        back = dequantize(quantize_fp8_e4m3(x, amax / 448), amax / 448)
    measured = float(np.mean((back.astype(np.float64) - x) ** 2))
    assert quantization_error(h, amax, format) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("format", FORMATS)
def test_points_that_the_format_represents_have_no_error(format: Format) -> None:
    h = Histogram.of(np.array([0, 1, -1, 1], np.float32))
    assert quantization_error(h, 1.0, format) == 0.0
    assert quantization_error(h, 0.5, format) == pytest.approx(0.25 * 3 / 4)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)),
    st.floats(1e-3, 200),
    st.floats(0.01, 1),
)
def test_clipping_alone_costs_no_more_than_the_error_at_any_smaller_range(
    format: Format, x: NDArray[np.float32], amax: float, share: float
) -> None:
    curve = ErrorCurve(Histogram.of(x), format)
    assert curve.clipping(amax) <= curve(amax * share) * (1 + 1e-9) + 1e-12
    assert curve.clipping(amax) <= curve.clipping(amax * share)


@pytest.mark.parametrize("format", FORMATS)
def test_the_curve_scales_with_the_square_of_the_data(format: Format) -> None:
    x = np.random.default_rng(6).standard_normal(2000).astype(np.float32)
    for amax in (0.3, 2.0, 5.0):
        once = quantization_error(Histogram.of(x), amax, format)
        assert quantization_error(Histogram.of(x * 4), amax * 4, format) == pytest.approx(16 * once, rel=1e-9)


@pytest.mark.parametrize("format", FORMATS)
def test_without_anything_finite_there_is_no_error(format: Format) -> None:
    for empty in (Histogram(), Histogram.of(np.array([np.nan, np.inf], np.float32))):
        curve = ErrorCurve(empty, format)
        assert curve(1.0) == curve.clipping(1.0) == 0.0


def test_far_beyond_the_data_nothing_but_rounding_is_left() -> None:
    x = np.random.default_rng(7).uniform(-1, 1, 100_000).astype(np.float32)
    assert quantization_error(Histogram.of(x), 1.0, "int8") == pytest.approx((1 / 127) ** 2 / 12, rel=0.02)
    assert ErrorCurve(Histogram.of(x), "int8").clipping(1.1) == 0.0


@pytest.mark.parametrize("low", [0.0, 1.0, 416.0])
def test_between_two_values_of_e4m3_the_nearer_one_is_taken(low: float) -> None:
    step = {0.0: 2.0**-9, 1.0: 2.0**-3, 416.0: 32.0}[low]
    x = np.random.default_rng(8).uniform(low, low + step, 100_000).astype(np.float32)
    assert quantization_error(Histogram.of(x), 448.0, "fp8") == pytest.approx(step**2 / 12, rel=0.02)
