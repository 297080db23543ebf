"""The search finds what trying everything finds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.calibrators.error_curve import quantization_error
from qcompiler.calibrators.minmax import MinMax
from qcompiler.calibrators.mse import MSE
from qcompiler.errors import UsageError
from qcompiler.numerics.rounding import Format
from qcompiler.statistics.histogram import Histogram

FORMATS: list[Format] = ["int8", "fp8"]


def draw(kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    found = {
        "normal": rng.normal(size=50_000),
        "heavy": rng.standard_t(3, 50_000),
        "uniform": rng.uniform(-1, 1, 50_000),
        "relu": np.maximum(rng.normal(size=50_000), 0),
        "spike": np.concatenate([rng.normal(size=500_000), [3000.0]]),
        "tiny": rng.normal(size=50_000) * 1e-30,
    }[kind]
    return found.astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "uniform", "relu", "spike", "tiny"])
def test_no_range_is_noticeably_better(kind: str, format: Format) -> None:
    h = Histogram.of(draw(kind))
    found = quantization_error(h, MSE(format).range(h), format)
    everything = [quantization_error(h, h.amax * 2.0 ** (k / 32), format) for k in range(-12 * 32, 33)]
    assert found <= 1.02 * min(everything)


def test_int8_clips_a_heavy_tail_and_not_uniform_data() -> None:
    heavy, uniform = Histogram.of(draw("heavy")), Histogram.of(draw("uniform"))
    assert MSE().range(heavy) < 0.95 * MinMax().range(heavy)
    assert MSE().range(uniform) > 0.98 * uniform.amax


def test_int8_never_goes_beyond_what_was_seen() -> None:
    for kind in ("normal", "heavy", "uniform", "relu"):
        h = Histogram.of(draw(kind))
        assert MSE().range(h) <= h.amax


def test_fp8_keeps_the_tail_that_int8_clips() -> None:
    h = Histogram.of(draw("heavy"))
    assert MSE("fp8").range(h) > 1.5 * MSE("int8").range(h)


def test_noise_in_the_data_does_not_move_the_range() -> None:
    x = draw("heavy")
    noisy = x.copy()
    noisy[100] *= 1 + 1 / 256
    for format in FORMATS:
        assert MSE(format).range(Histogram.of(noisy)) == MSE(format).range(Histogram.of(x))


def test_an_unknown_format_is_answered_with_the_known_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'fp8'"):
        MSE("fp88")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_a_histogram_that_grows_is_looked_at_again(format: Format) -> None:
    h, whole = Histogram.of(draw("normal")), Histogram.of(np.concatenate([draw("normal"), draw("heavy") * 9]))
    first = MSE(format).range(h)
    assert MSE(format).range(Histogram.of(draw("normal"))) == first
    h.update(draw("heavy") * 9)
    assert MSE(format).range(h) == MSE(format).range(whole) != first
