"""The expected error of a range is the error that rounding then makes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrators.error_curve import quantization_error
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
