"""Quantized constants of operators without a quantized kernel become their float values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, built, f32, newer, op_named, rng
from tests.kit.rewrite import check, check_untouched, model


def test_an_int32_bias_becomes_its_float_values(tmp_path: Path) -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q"),
            ("DequantizeLinear", "q s z", "d"),
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 0}),
            ("DequantizeLinear", "b32 bs", "b", {"axis": 0}),
            ("Conv", "d w b", "y"),
            inputs={"x": (1, 8, 6, 6)},
            weights={
                "s": f32(0.05), "z": np.int8(0), "w8": W8[:8, :8].reshape(8, 8, 1, 1), "ws": CHANNEL_SCALES[:8],
                "wz": np.zeros(8, np.int8), "b32": np.arange(-400, 400, 100).astype(np.int32),
                "bs": CHANNEL_SCALES[:8] / 20,
            },
            opset=21,
        )
    )  # fmt: skip
    graph, report = check(Legalize(RTX), proto, tolerance=1e-6)
    assert [note.node for note in report.notes] == ["B"]
    assert graphs.is_constant(op_named(graph, "Y").inputs[2])
    assert built(graph, tmp_path, "Y")[:2] == ("int8", "int8")


def test_weights_of_recurrent_layers_become_float() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w"),
            ("GRU", "x w r", "_ y", {"hidden_size": 3}),
            inputs={"x": (5, 2, 4)},
            weights={
                "w8": W8[:9, :4].reshape(1, 9, 4), "ws": f32(0.01), "wz": np.int8(0),
                "r": rng().random((1, 9, 3), np.float32),
            },
            opset=21,
        )
    )  # fmt: skip
    check(Legalize(RTX), proto, ops=["GRU"], tolerance=0)


def test_transposed_convolution_stays_quantized_only_where_there_is_a_kernel() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
            ("ConvTranspose", "x w", "y"),
            inputs={"x": (1, 4, 3, 3)},
            weights={"w8": W8[:4, :4].reshape(4, 4, 1, 1), "ws": CHANNEL_SCALES[:4], "wz": np.zeros(4, np.int8)},
            opset=21,
        )
    )
    check(Legalize(RTX), proto, ops=["ConvTranspose"], tolerance=0)
    check_untouched(Legalize(parse_target("tensorrt")), proto)
