"""Products of merged heads and stored weights as products of two matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import is_dq
from qcompiler.passes.base import Skipped
from qcompiler.passes.quantize.flatten_rows import FlattenRows
from tests.kit.rewrite import Spec, check, check_untouched, model, to_graph

if TYPE_CHECKING:
    import onnx


HEADS, SIZE, WIDTH = 4, 8, 24
DEPTH = HEADS * SIZE
STORED: dict[str, Any] = {
    "w8": np.random.default_rng(0).integers(-127, 128, (DEPTH, WIDTH)).astype(np.int8),
    "ws": np.full(WIDTH, 0.01, np.float32),
    "wz": np.zeros(WIDTH, np.int8),
}
MERGE: list[Spec] = [("Transpose", "x", "t", {"perm": [0, 2, 1, 3]}), ("Reshape", "t merge", "m")]
WEIGHT: Spec = ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1})


def attention(*nodes: Spec, inputs: dict[str, Any] | None = None, **weights: Any) -> onnx.ModelProto:
    """Heads [batch, heads, length, size] that `nodes` make `y` of, with a stored weight at hand."""
    held = {"merge": np.array([0, 0, DEPTH]), **STORED, **weights}
    read = {name for node in nodes for name in node[1].split()}
    return model(
        *nodes,
        inputs=inputs or {"x": ("batch", HEADS, "length", SIZE)},
        weights={name: value for name, value in held.items() if name in read},
        opset=21,
    )


def test_the_rows_of_merged_heads_become_one_matrix() -> None:
    proto = attention(*MERGE, WEIGHT, ("MatMul", "m w", "y"))
    ops = ["Transpose", "Reshape", "DequantizeLinear", "Reshape", "MatMul", "Shape", "Concat", "Reshape"]
    graph, report = check(FlattenRows(), proto, tolerance=1e-6)
    assert sorted(node.op for node in graph.nodes) == sorted(ops)
    (product,) = (node for node in graph.nodes if node.op == "MatMul")
    assert is_dq(graphs.producer(product.inputs[1]))
    assert [note.text for note in report.notes] == [f"its rows are one matrix of {DEPTH} columns"]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([*MERGE, ("MatMul", "m f", "y")], id="float weight"),
        pytest.param([("Reshape", "x merge", "m"), WEIGHT, ("MatMul", "m w", "y")], id="no heads to merge"),
        pytest.param([*MERGE, ("Relu", "m", "r"), WEIGHT, ("MatMul", "r w", "y")], id="something between"),
        pytest.param(
            [("Transpose", "x", "t"), ("Reshape", "t rows", "m"), WEIGHT, ("MatMul", "m w", "y")], id="two dimensions"
        ),
        pytest.param(
            [
                *MERGE,
                ("QuantizeLinear", "m s z", "q"),
                ("DequantizeLinear", "q s z", "d"),
                WEIGHT,
                ("MatMul", "d w", "y"),
            ],
            id="quantized activation",
        ),
    ],
)
def test_other_products_stay(nodes: list[Spec]) -> None:
    proto = attention(
        *nodes,
        f=np.ones((DEPTH, WIDTH), np.float32),
        rows=np.array([-1, DEPTH]),
        s=np.array(0.1, np.float32),
        z=np.array(0, np.int8),
    )
    check_untouched(FlattenRows(), proto)


def test_an_unknown_rank_is_said() -> None:
    nodes = [("Transpose", "x", "t"), ("Reshape", "t shape", "m"), WEIGHT, ("MatMul", "m w", "y")]
    inputs = {"x": ("batch", HEADS, "length", SIZE), "shape": (np.int64, ("rank",))}
    graph = to_graph(attention(*nodes, inputs=inputs))
    (note,) = FlattenRows()(graph).notes
    assert isinstance(note, Skipped)
    assert note.text == "the rank of its activation is not known"
