from __future__ import annotations

from typing import Any

import onnx

from qcompiler.passes.cleanup.fuse_hard_swish import FuseHardSwish
from tests.kit.rewrite import check, check_skipped, check_untouched, model


def _written_out(last: Any = ("Div", "m six", "y"), high: float = 6.0) -> onnx.ModelProto:
    return model(
        ("Add", "x three", "a"),
        ("Clip", "a zero high", "c"),
        ("Mul", "x c", "m"),
        last,
        weights={"three": [3.0], "zero": 0.0, "high": high, "six": [6.0], "sixth": 1 / 6},
    )


def _floats(proto: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


def test_division_by_six_ends_a_hard_swish() -> None:
    check(FuseHardSwish(), _floats(_written_out()), ops=["HardSwish"])


def test_so_does_multiplication_by_a_sixth() -> None:
    check(FuseHardSwish(), _floats(_written_out(("Mul", "m sixth", "y"))), ops=["HardSwish"])


def test_another_bound_is_another_function() -> None:
    check_untouched(FuseHardSwish(), _floats(_written_out(high=5.0)))


def test_steps_that_others_read_stay() -> None:
    proto = _floats(_written_out())
    proto.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, (2, 4)))
    check_skipped(FuseHardSwish(), proto, "other nodes read")
