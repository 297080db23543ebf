"""Stored tables that are gathered from: dequantized first, with the same numbers, and built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.passes.legalize._gathered_tables import tables
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.legalize.release_quantizers import ReleaseQuantizers
from tests.kit.quantized_models import RTX, newer, refused
from tests.kit.rewrite import check, model, to_graph, whole

TABLE = np.random.default_rng(3).integers(-127, 128, (50, 8)).astype(np.int8)
FEEDS = {"ids": np.array([[3, 0, 49], [7, 7, 1]])}
ROWS = np.linspace(0.01, 0.02, 50).astype(np.float32)
COLUMNS = np.linspace(0.01, 0.02, 8).astype(np.float32)


def gathered(*nodes: Any, ids: Any = (2, 3), outputs: tuple[str, ...] = ("y",), **weights: Any) -> onnx.ModelProto:
    """ids → Gather(t: int8) → g → nodes → y."""
    held = {"t": TABLE, "s": np.float32(0.02), "z": np.int8(0), **weights}
    first = ("Gather", "t ids", "g")
    used = {name for node in (first, *nodes) for name in node[1].split()}
    weights = {name: value for name, value in held.items() if name in used}
    ends = {"ids": (np.int64, ids)}
    return newer(model(first, *nodes, inputs=ends, outputs=outputs, weights=weights, opset=21))


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (("DequantizeLinear", "g s z", "y"), {}),
        (("DequantizeLinear", "g s zs", "y", {"axis": 2}), {"s": COLUMNS, "zs": np.zeros(8, np.int8)}),
        (("DequantizeLinear", "g s zs", "y", {"axis": -1}), {"s": COLUMNS, "zs": np.zeros(8, np.int8)}),
        (("Cast", "g", "y", {"to": TensorProto.FLOAT}), {}),
    ],
    ids=["one", "columns", "last", "cast"],
)
def test_the_numbers_are_the_same_and_the_engine_is_built(node: Any, weights: dict[str, Any], tmp_path: Path) -> None:
    graph, _ = check(Legalize(RTX), gathered(node, **weights), FEEDS, tolerance=0)
    assert [one.op for one in graph.nodes][:2] == ["DequantizeLinear", "Gather"]
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    assert TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").path.is_file()


def test_a_scale_of_each_row_is_gathered_with_its_row() -> None:
    nodes = (
        ("Cast", "g", "f", {"to": TensorProto.FLOAT}),
        ("Gather", "rows ids", "r"),
        ("Unsqueeze", "r last", "u"),
        ("Mul", "f u", "y"),
    )
    proto = gathered(*nodes, rows=ROWS, last=np.array([-1]))
    graph, _ = check(Legalize(RTX), proto, FEEDS, tolerance=0)
    assert [one.op for one in graph.nodes] == ["DequantizeLinear", "Gather", "Cast", "Gather", "Unsqueeze", "Mul"]


def test_a_table_that_is_read_twice_serves_both() -> None:
    nodes = (("DequantizeLinear", "g s z", "a"), ("Cast", "g", "b", {"to": TensorProto.FLOAT}), ("Add", "a b", "y"))
    graph, _ = check(Legalize(RTX), gathered(*nodes), FEEDS, tolerance=0)
    assert sorted(one.op for one in graph.nodes) == ["Add", "Cast", *["DequantizeLinear"] * 2, *["Gather"] * 2]


def test_integers_that_leave_the_graph_stay() -> None:
    nodes = (("DequantizeLinear", "g s z", "y"),)
    assert tables(to_graph(gathered(*nodes))) != []
    assert tables(to_graph(gathered(*nodes, outputs=("y", "g")))) == []


def test_a_scale_for_each_position_of_the_text_is_none_of_the_table() -> None:
    node = ("DequantizeLinear", "g s zs", "y", {"axis": 1})
    refused(gathered(node, s=np.full(3, 0.1, np.float32), zs=np.zeros(3, np.int8)), "'Y'")


def test_rows_of_a_table_that_are_multiplied_as_integers_become_floats() -> None:
    """As `quantize_dynamic` of ONNX Runtime writes an embedding in front of a layer."""
    weight = np.random.default_rng(4).integers(0, 256, (8, 6)).astype(np.uint8)
    nodes = (
        ("MatMulInteger", "g w tz wz", "i"),
        ("Cast", "i", "f", {"to": TensorProto.FLOAT}),
        ("Mul", "f both", "y"),
    )
    weights: dict[str, Any] = {
        "t": (TABLE.astype(np.int32) + 128).astype(np.uint8),
        "w": weight,
        "tz": np.uint8(117),
        "wz": np.uint8(99),
        "both": np.float32(0.001),
    }
    graph, _ = check(ReleaseQuantizers(RTX), gathered(*nodes, **weights), FEEDS, tolerance=1e-5)
    assert "MatMulInteger" not in {one.op for one in graph.nodes}
    assert "MatMul" in {one.op for one in graph.nodes}
