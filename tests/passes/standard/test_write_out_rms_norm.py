from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.passes.standard.write_out_rms_norm import WriteOutRmsNorm
from tests.kit.rewrite import check, check_skipped, model

RNG = np.random.default_rng(7)


def norm(axis: int, scale: tuple[int, ...], dtype: Any = np.float32, **attrs: Any) -> onnx.ModelProto:
    proto = model(
        ("RMSNormalization", "x s", "y", {"axis": axis, **attrs}),
        inputs={"x": (dtype, (None, 3, 4))},
        weights={"s": RNG.standard_normal(scale).astype(dtype)},
        opset=23,
    )
    proto.ir_version = 11
    return proto


def rows(dtype: Any = np.float32) -> dict[str, Any]:
    return {"x": (RNG.standard_normal((2, 3, 4)) * 300).astype(dtype)}


@pytest.mark.parametrize(("axis", "scale"), [(-1, (4,)), (2, (4,)), (1, (3, 4)), (-2, (3, 4)), (1, (4,))])
@pytest.mark.parametrize("epsilon", [1e-5, 100.0])
def test_every_axis_is_what_onnx_runtime_computes(axis: int, scale: tuple[int, ...], epsilon: float) -> None:
    check(WriteOutRmsNorm(), norm(axis, scale, epsilon=epsilon), rows())


def test_half_is_computed_in_single() -> None:
    graph, _ = check(WriteOutRmsNorm(), norm(-1, (4,), np.float16), rows(np.float16), tolerance=1e-3)
    assert [node.op for node in graph.nodes].count("Cast") == 2


def test_an_input_of_unknown_rank_stays() -> None:
    proto = norm(1, (3, 4))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    check_skipped(WriteOutRmsNorm(), proto, "axes")
