from __future__ import annotations

import numpy as np

from qcompiler.passes.cleanup.split_skip_norm import SplitSkipNorm
from tests.kit.rewrite import check, check_untouched, model

GAIN = np.linspace(0.5, 1.5, 4, dtype=np.float32)


def test_the_residual_sum_stays_apart() -> None:
    proto = model(("Add", "x x", "a"), ("LayerNormalization", "a g", "y"), weights={"g": GAIN})
    check(SplitSkipNorm(), proto, ops=["Sum", "LayerNormalization"])


def test_a_bias_is_no_residual() -> None:
    proto = model(("Add", "x g", "a"), ("LayerNormalization", "a g", "y"), weights={"g": GAIN})
    check_untouched(SplitSkipNorm(), proto)
