"""The largest value seen, whatever it is."""

from __future__ import annotations

import numpy as np

from qcompiler.calibrators.minmax import MinMax
from qcompiler.statistics.histogram import Histogram


def test_minmax_is_the_largest_absolute_value() -> None:
    assert MinMax().range(Histogram.of(np.array([1, -7.25, 3], np.float32))) == 7.25
