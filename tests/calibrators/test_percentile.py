"""The two estimators that look at single values."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrators.minmax import MinMax
from qcompiler.calibrators.percentile import Percentile
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram


def test_percentile_leaves_its_share_outside() -> None:
    x = np.random.default_rng(0).standard_t(3, 200_000).astype(np.float32)
    for p in (90.0, 99.0, 99.9):
        outside = float(np.mean(np.abs(x) > Percentile(p).range(Histogram.of(x))))
        assert outside == pytest.approx(1 - p / 100, rel=0.1)


def test_the_whole_percentile_is_minmax() -> None:
    h = Histogram.of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert Percentile(100).range(h) == MinMax().range(h)


def test_a_tensor_of_nearly_only_zeros_keeps_its_largest_value() -> None:
    x = np.zeros(100_000, np.float32)
    x[0] = 5
    assert Percentile(99.9).range(Histogram.of(x)) == 5.0


@pytest.mark.parametrize("p", [0, -1, 100.5, float("nan")])
def test_percentages_out_of_range_are_refused(p: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        Percentile(p)
