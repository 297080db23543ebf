"""What came quantized is said in the target's terms in front of everything that decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.mend_quantized import MendQuantized
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, newer, op_named, product
from tests.kit.rewrite import check, check_untouched, model


def test_what_is_around_128_becomes_signed() -> None:
    graph, _ = check(MendQuantized(), product(zero=np.uint8(128)), tolerance=0)
    assert graphs.dtype_of(op_named(graph, "Q").inputs[2]) == np.int8


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_a_float_constant_behind_a_quantizer_is_stored(dtype: type) -> None:
    zero: Any = np.full(32, 128 if dtype is np.uint8 else 0, dtype)
    proto = newer(
        model(
            ("QuantizeLinear", "w ws wz", "q", {"axis": 1}),
            ("DequantizeLinear", "q ws wz", "d", {"axis": 1}),
            ("MatMul", "x d", "y"),
            inputs={"x": (4, 32)},
            weights={"w": W8 * f32(0.0009), "ws": CHANNEL_SCALES, "wz": zero},
            opset=21,
        )
    )
    graph, _ = check(MendQuantized(), proto, ops=["DequantizeLinear", "MatMul"], tolerance=0)
    expected = np.rint(W8 * f32(0.0009) / CHANNEL_SCALES)
    np.testing.assert_array_equal(graphs.values_of(op_named(graph, "D").inputs[0]), expected)


def test_a_constant_that_nothing_multiplies_by_becomes_float() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "b8 s z", "b"),
            ("Add", "x b", "y"),
            inputs={"x": (4, 32)},
            weights={"b8": W8[0], "s": f32(0.01), "z": np.int8(0)},
            opset=21,
        )
    )
    check(MendQuantized(), proto, ops=["Add"], tolerance=0)


def test_onnx_runtime_and_what_has_no_exact_form_are_left_alone() -> None:
    check_untouched(MendQuantized(parse_target("onnxruntime")), product(zero=np.uint8(128)))
    check_untouched(MendQuantized(), product(zero=np.uint8(100)))
    check_untouched(MendQuantized(), product())
