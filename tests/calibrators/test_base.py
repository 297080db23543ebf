"""What holds for every calibrator: positive ranges, order of the data does not matter, text reads back equal."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qcompiler.calibrators import ALL, parse
from qcompiler.calibrators.base import Calibrator
from qcompiler.calibrators.entropy import Entropy
from qcompiler.calibrators.minmax import MinMax
from qcompiler.calibrators.mse import MSE
from qcompiler.calibrators.percentile import Percentile
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram

EVERY: list[Calibrator] = [*(kind() for kind in ALL), MSE("fp8")]
ids = [str(one) for one in EVERY]


@pytest.mark.parametrize("calibrator", EVERY, ids=ids)
@pytest.mark.parametrize("x", [np.zeros(10), np.zeros(0), np.full(3, np.nan)], ids=["zeros", "empty", "nan"])
def test_no_range_is_made_up_for_a_tensor_without_a_value(calibrator: Calibrator, x: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="nothing but zeros"):
        calibrator.range(Histogram.of(x.astype(np.float32)))


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(EVERY),
)
def test_the_scale_is_a_normal_number(x: NDArray[np.float32], calibrator: Calibrator) -> None:
    assume(x.any())
    found = calibrator.range(Histogram.of(x))
    assert np.isfinite(found)
    assert np.float32(found / 448) >= np.finfo(np.float32).smallest_normal
    assert found <= max(2 * float(np.abs(x).max()), 1.0)


@pytest.mark.parametrize("calibrator", EVERY, ids=ids)
def test_order_and_batches_of_the_data_do_not_matter(calibrator: Calibrator) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, (16, 3000)).astype(np.float32)
    batches = Histogram()
    for row in rng.permutation(16):
        batches.merge(Histogram.of(x[row]))
    assert calibrator.range(batches) == calibrator.range(Histogram.of(x))


@pytest.mark.parametrize("calibrator", EVERY, ids=ids)
def test_the_range_scales_with_the_data(calibrator: Calibrator) -> None:
    x = np.random.default_rng(1).standard_t(4, 30_000).astype(np.float32)
    assert calibrator.range(Histogram.of(x * 1024)) == pytest.approx(1024 * calibrator.range(Histogram.of(x)), rel=1e-6)


@pytest.mark.parametrize("calibrator", EVERY, ids=ids)
def test_the_default_text_reads_back_equal(calibrator: Calibrator) -> None:
    assert parse(str(calibrator)) == calibrator


@given(st.integers(200, 10_000), st.floats(1e-3, 100))
def test_any_options_read_back_equal(bins: int, p: float) -> None:
    for one in (Entropy(bins=bins), Percentile(p)):
        assert parse(str(one)) == one


def test_text_forms() -> None:
    assert str(Entropy()) == "entropy{bins=2048,levels=128}"
    assert str(MinMax()) == "minmax"
    assert parse(" percentile{ p = 99.9 } ") == Percentile(99.9)
    assert parse("MSE{format=fp8}") == MSE("fp8")
    assert parse("entropy{}") == Entropy()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("entorpy", "did you mean 'entropy'"),
        ("percentile{q=3}", "no option 'q'"),
        ("entropy{binz=3}", "did you mean 'bins'"),
        ("entropy{bins=many}", "type int"),
        ("entropy{bins}", "no value"),
        ("mse{format}", "no value"),
        ("entropy{bins=300,bins=400}", "twice"),
        ("entropy{bins=3", "not a calibrator"),
        ("", "not a calibrator"),
    ],
)
def test_what_cannot_be_read_is_answered_with_what_can(text: str, answer: str) -> None:
    with pytest.raises(UsageError, match=answer):
        parse(text)


def test_each_calibrator_is_frozen_and_says_what_it_does() -> None:
    for kind in ALL:
        assert kind.help().startswith("The ")
        with pytest.raises(dataclasses.FrozenInstanceError):
            cast("MinMax", kind()).anything = 1  # type: ignore[attr-defined]
