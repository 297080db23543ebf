"""Embeddings in INT8: a scale per row, and once where the table is the weight of the last layer, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir.graph import constant_value
from qcompiler.numerics.blocks import round_to_nearest
from qcompiler.passes.quantize.store_tables import StoreTables, rounded
from qcompiler.passes.quantize.weight_only import WeightOnly
from tests.kit.rewrite import check, check_skipped, model, to_graph, whole

TABLE = np.random.default_rng(5).standard_normal((64, 32)).astype(np.float32)
TABLE[9] = 0
FEEDS = {"ids": np.array([[3, 0, 63], [9, 7, 1]])}


def tied() -> onnx.ModelProto:
    """ids → Gather(t) → x → MatMul(w) = logits, w the table transposed."""
    nodes = (("Gather", "t ids", "x"), ("Relu", "x", "r"), ("MatMul", "r w", "y"))
    proto = model(
        *nodes, inputs={"ids": (np.int64, (2, 3))}, weights={"t": TABLE, "w": np.ascontiguousarray(TABLE.T)}, opset=21
    )
    proto.ir_version = 10
    return proto


def test_a_table_alone_gets_a_scale_for_each_row() -> None:
    ops = ["DequantizeLinear", "Gather", "Relu", "MatMul"]
    graph, report = check(StoreTables({"X": ""}), tied(), FEEDS, ops=ops, tolerance=1e-2)
    assert "stored as INT8" in report.notes[0].text
    scales = constant_value(graph.nodes[0].inputs[1])
    assert scales is not None
    assert scales.shape == (64,)


def test_rounding_is_to_nearest_and_a_row_of_zeros_stays() -> None:
    values, scales = rounded(TABLE)
    assert scales[9] == 1
    assert not values[9].any()
    assert np.abs(values * scales[:, None] - TABLE).max() <= scales.max() / 2 + 1e-7
    assert np.abs(values).max() == 127


def test_a_table_that_is_a_stored_weight_too_is_there_once(tmp_path: Path) -> None:
    graph = to_graph(tied())
    WeightOnly({"Y": round_to_nearest(np.ascontiguousarray(TABLE.T), None, "int8")})(graph)
    (note,) = StoreTables({"X": "Y"})(graph).notes
    assert "which 'Y' multiplies with" in note.text
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "Gather", "Relu", "Transpose", "MatMul"]
    proto = whole(graph)
    assert [tuple(one.dims) for one in proto.graph.initializer if one.data_type == onnx.TensorProto.INT8] == [
        (64, 32),
        (64,),
    ]
    onnx.save(proto, tmp_path / "m.onnx")
    assert TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").path.is_file()


@pytest.mark.parametrize("axis", [1])
def test_what_gathers_no_rows_stays(axis: int) -> None:
    proto = model(
        ("Gather", "t ids", "x", {"axis": axis}),
        ("Relu", "x", "y"),
        inputs={"ids": (np.int64, (2,))},
        weights={"t": TABLE},
    )
    check_skipped(StoreTables({"X": ""}), proto, "no rows of a float matrix")
