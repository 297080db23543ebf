"""INT4 weights joined with their product: ONNX Runtime computes the same as from the blocked DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.numerics import blocks
from qcompiler.passes.base import Skipped
from qcompiler.passes.quantize.matmul_nbits import MatmulNbits, packed_values
from qcompiler.passes.quantize.weight_only import WeightOnly
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, to_graph

DEPTH, WIDTH = 128, 20
W = np.random.default_rng(0).standard_normal((DEPTH, WIDTH)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((7, DEPTH)).astype(np.float32)


def stored(size: int) -> gs.Graph:
    proto = model(("MatMul", "x w", "y"), inputs={"x": (7, DEPTH)}, weights={"w": W}, opset=21)
    graph = to_graph(proto)
    WeightOnly({"Y": blocks.round_to_nearest(W, size, "int4")})(graph)
    return graph


@pytest.mark.parametrize("size", [32, 64, 128])
def test_it_gives_what_the_pair_gives(size: int) -> None:
    graph = stored(size)
    before = Session(graph, optimize=False).run({"x": X})["y"]
    assert MatmulNbits()(graph).changed
    assert [made.op for made in graph.nodes] == ["MatMulNBits"]
    after = Session(graph).run({"x": X})["y"]
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    assert not MatmulNbits()(graph).changed


def test_blocks_that_onnx_runtime_does_not_know_are_skipped() -> None:
    graph = stored(8)
    report = MatmulNbits()(graph)
    assert not report.changed
    assert any("takes blocks of" in note.text for note in report.notes if isinstance(note, Skipped))


def test_two_values_share_a_byte_the_first_in_the_low_half() -> None:
    values = np.array([[-8], [7]], np.int8)
    assert packed_values(values, 2).tolist() == [[[0xF0]]]
