from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.standard.write_out_swish import WriteOutSwish
from tests.kit.rewrite import check, check_untouched, model


@pytest.mark.parametrize("alpha", [None, 1.0, 1.702, -0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_is_what_onnx_runtime_computes(alpha: float | None, dtype: Any) -> None:
    attrs = {} if alpha is None else {"alpha": alpha}
    proto = model(("Swish", "x", "y", attrs), inputs={"x": (dtype, (2, 4))}, opset=24)
    proto.ir_version = 11
    feed = {"x": np.linspace(-6, 6, 8, dtype=dtype).reshape(2, 4)}
    ops = ["Sigmoid", "Mul"] if alpha in (None, 1.0) else ["Mul", "Sigmoid", "Mul"]
    check(WriteOutSwish(), proto, feed, ops=ops, tolerance=1e-6 if dtype is np.float32 else 2e-3)


def test_other_models_are_not_touched() -> None:
    check_untouched(WriteOutSwish(), model(("Relu", "x", "y")))
