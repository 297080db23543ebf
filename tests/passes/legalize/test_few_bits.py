"""Weights in few bits of ONNX Runtime's own operators, against its kernels."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.legalize.convert_qoperator import ConvertQoperator
from tests.kit.rewrite import check_skipped, check_written, model

RNG = np.random.default_rng(0)


def packed(*shape: int) -> Any:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def scales(*shape: int) -> Any:
    return (RNG.random(shape) / 50 + 0.01).astype(np.float32)


def nbits(bits: int, depth: int, *, zero: str = "", bias: bool = False, groups: bool = False) -> Any:
    """MatMulNBits of [depth, 6] in blocks of 16."""
    count = -(-depth // 16)
    held = {"w": packed(6, count, 2 * bits), "ws": scales(6, count)}
    held |= {"z": packed(6, -(-count * bits // 8))} if zero == "packed" else {}
    held |= {"z": (RNG.random((6, count)) * 8).astype(np.float32)} if zero == "float" else {}
    held |= {"b": scales(6)} if bias else {}
    held |= {"g": np.sort(RNG.integers(0, count, depth)).astype(np.int32)} if groups else {}
    reads = " ".join(["x w ws", *(name if name in held else "_" for name in "zgb")])
    attrs = {"K": depth, "N": 6, "bits": bits, "block_size": 16, "accuracy_level": 1}
    node = ("MatMulNBits", reads.rstrip(" _"), "y", attrs, MICROSOFT)
    return model(node, inputs={"x": ("batch", "rows", depth)}, weights=held, opset=21)


@pytest.mark.parametrize(
    ("bits", "zero"),
    [(2, ""), (2, "packed"), (4, ""), (4, "packed"), (4, "float"), (8, ""), (8, "packed")],  # as far as it has kernels
)
@pytest.mark.parametrize("depth", [64, 40])
def test_a_product_is_what_onnxruntime_computes(bits: int, zero: str, depth: int) -> None:
    check_written(ConvertQoperator(), nbits(bits, depth, zero=zero, bias=True), tolerance=1e-4)


def test_rows_of_other_groups() -> None:
    check_written(ConvertQoperator(), nbits(4, 64, groups=True), tolerance=1e-4)


def test_symmetric_blocks_stay_in_four_bits() -> None:
    graph = check_written(ConvertQoperator(), nbits(4, 64, bias=True), tolerance=1e-4)
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul", "Add"]
    assert graphs.dtype_of(graph.nodes[0].inputs[0]) == np.dtype(ml_dtypes.int4)


def test_a_weight_that_is_computed_stays() -> None:
    proto = model(
        ("Identity", "w0", "w"), ("MatMulNBits", "x w ws", "y", {"K": 32, "N": 6, "block_size": 16}, MICROSOFT),
        inputs={"x": (4, 32), "w0": (np.uint8, (6, 2, 8))}, weights={"ws": scales(6, 2)}, opset=21,
    )  # fmt: skip
    check_skipped(ConvertQoperator(), proto, "its weight is not constant")


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_gathered_from_a_table(bits: int, zero: bool) -> None:
    held = {"t": packed(9, 64 * bits // 8), "ts": scales(9, 4)}
    held |= {"z": packed(9, 4 * bits // 8)} if zero else {}
    attrs = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    proto = model(
        ("GatherBlockQuantized", "t i ts z" if zero else "t i ts", "y", attrs, MICROSOFT),
        inputs={"i": (np.int64, ("batch", "rows"))}, weights=held, opset=21,
    )  # fmt: skip
    graph = check_written(ConvertQoperator(), proto)
    assert [node.op for node in graph.nodes] == ["Gather"]
