"""What TensorRT cannot take: exact repairs and refusals that name node, tensor and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qcompiler.passes.legalize.legalize import REPAIRS, Legalize
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, built, f32, newer, product
from tests.kit.rewrite import check, check_untouched, model, to_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def test_a_legal_graph_is_left_alone() -> None:
    check_untouched(Legalize(RTX), product())
    check_untouched(Legalize(RTX), model(("Relu", "x", "y")))


def test_onnx_runtime_takes_asymmetric_and_unsigned_models() -> None:
    check_untouched(Legalize(parse_target("onnxruntime")), product(zero=np.uint8(7)))


def test_weights_alone_may_be_blocked() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 0, "block_size": 16}),
            ("MatMul", "x w", "y"),
            inputs={"x": (4, 32)},
            weights={"w8": W8, "ws": np.full((2, 32), 0.01, np.float32), "wz": np.zeros((2, 32), np.int8)},
            opset=21,
        )
    )
    check_untouched(Legalize(RTX), proto)


@pytest.mark.parametrize("bias", [True, False])
def test_quantized_convolution_is_written_out(bias: bool, tmp_path: Path) -> None:
    weights = {
        "xs": f32(0.04), "z": np.int8(0), "w8": W8[:8, :8].reshape(8, 8, 1, 1), "ws": CHANNEL_SCALES[:8],
        "wz": np.zeros(8, np.int8), "ys": f32(0.05), "b": np.arange(-400, 400, 100).astype(np.int32),
    }  # fmt: skip
    proto = newer(
        model(
            ("QuantizeLinear", "x xs z", "q"),
            ("QLinearConv", "q xs z w8 ws wz ys z" + (" b" if bias else ""), "c"),
            ("DequantizeLinear", "c ys z", "y"),
            inputs={"x": (1, 8, 6, 6)},
            weights={name: weights[name] for name in weights if bias or name != "b"},
            opset=21,
        )
    )
    graph, _ = check(Legalize(RTX), proto, tolerance=2e-2)  # one step where a tie rounds the other way
    assert [node.op for node in graph.nodes].count("Conv") == 1
    assert built(graph, tmp_path, "C")[:2] == ("int8", "int8")


def test_quantized_product_is_written_out() -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x xs z", "q"),
            ("QLinearMatMul", "q xs z w8 ws wz ys z", "m"),
            ("DequantizeLinear", "m ys z", "y"),
            inputs={"x": (4, 32)},
            weights={
                "xs": f32(0.04), "z": np.int8(0), "w8": W8, "ws": CHANNEL_SCALES, "wz": np.zeros(32, np.int8),
                "ys": f32(0.05),
            },
            opset=21,
        )
    )  # fmt: skip
    graph, _ = check(Legalize(RTX), proto, tolerance=2e-2)
    assert [node.op for node in graph.nodes].count("MatMul") == 1


def test_repairs_say_nothing_about_a_legal_graph_each_for_itself() -> None:
    graph = to_graph(product())
    assert [note for repair in REPAIRS for note in repair(graph, RTX)] == []
