from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.passes.products.unroll_loops import UnrollLoops
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model

RANDOM = np.random.default_rng(5)
W = RANDOM.standard_normal((4, 6)).astype(np.float32) / 2
R = RANDOM.standard_normal((6, 6)).astype(np.float32) / 3
CELL = [("MatMul", "xt w", "a"), ("MatMul", "h r", "b"), ("Add", "a b", "s"), ("Tanh", "s", "new"), ("Neg", "new", "o")]


def _cell(nodes: Any = CELL, inputs: Any = None, outputs: Any = ("new", "o")) -> onnx.GraphProto:
    body = graph_proto(nodes, inputs or {"h": ("n", 6), "xt": ("n", 4)}, list(outputs))
    for value in body.output:
        value.type.tensor_type.elem_type = TensorProto.BOOL if value.name == "go" else TensorProto.FLOAT
    return body


def _scan(x: tuple[Any, ...] = (5, "n", 4), reads: str = "h0 x", body: Any = None, **attrs: Any) -> onnx.ModelProto:
    return model(
        ("Scan", reads, "y ys", {"body": body or _cell(), "num_scan_inputs": 1, **attrs}),
        inputs={"h0": ("n", 6), "x": x},
        outputs=("y", "ys"),
        opset=18,
        weights={"w": W, "r": R},
    )


def _loop(nodes: Any, inputs: dict[str, Any], outputs: Any, **weights: Any) -> onnx.ModelProto:
    body = _cell(nodes, {"i": (np.int64, ()), "c": (bool, ()), **inputs}, outputs)
    proto = model(
        ("Loop", "count go0 h0", "y ys", {"body": body}),
        inputs={"h0": ("n", 6)},
        outputs=("y", "ys"),
        opset=18,
        weights={"r": R, "count": np.array(4), "go0": np.array(True), **weights},
    )
    for value, dims in zip(proto.graph.output, (("n", 6), (4, "n", 6)), strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))
    return proto


ROUND = [("Identity", "c", "go"), ("MatMul", "h r", "b"), ("Tanh", "b", "new"), ("Neg", "new", "o")]


def test_a_scan_of_few_steps_is_written_out() -> None:
    graph, report = check(UnrollLoops(), _scan(), tolerance=2e-6)
    assert sum(node.op == "MatMul" for node in graph.nodes) == 10
    assert report.notes[0].text == "5 rounds written out"


@pytest.mark.parametrize(
    "attrs",
    [
        {"scan_input_directions": [1]},
        {"scan_output_directions": [1]},
        {"scan_input_directions": [1], "scan_output_directions": [1]},
        {"scan_output_axes": [1]},
    ],
)
def test_directions_and_axes_are_kept(attrs: dict[str, Any]) -> None:
    check(UnrollLoops(), _scan(**attrs), tolerance=2e-6)


def test_the_axis_of_a_sequence_need_not_be_the_first() -> None:
    check(UnrollLoops(), _scan(("n", 5, 4), scan_input_axes=[1]), tolerance=2e-6)


def test_a_scan_over_layers_becomes_layers_with_weights_of_their_own() -> None:
    body = _cell([("MatMul", "h wt", "b"), ("Tanh", "b", "new"), ("Neg", "new", "o")], {"h": ("n", 6), "wt": (6, 6)})
    stacked = RANDOM.standard_normal((3, 6, 6)).astype(np.float32)
    proto = model(
        ("Scan", "h0 ws", "y ys", {"body": body, "num_scan_inputs": 1}),
        inputs={"h0": ("n", 6)},
        outputs=("y", "ys"),
        opset=18,
        weights={"ws": stacked},
    )
    graph, _ = check(UnrollLoops(), proto, tolerance=2e-6)
    weights = [node.inputs[1].values for node in graph.nodes if node.op == "MatMul"]
    assert np.array_equal(np.stack(weights), stacked)


def test_a_loop_of_a_known_count_is_written_out() -> None:
    graph, _ = check(UnrollLoops(), _loop(ROUND, {"h": ("n", 6)}, ("go", "new", "o")), tolerance=2e-6)
    assert sum(node.op == "MatMul" for node in graph.nodes) == 4


def test_the_number_of_the_round_is_a_constant() -> None:
    nodes = [("Identity", "c", "go"), ("Gather", "ws i", "wt"), ("MatMul", "h wt", "new"), ("Neg", "new", "o")]
    stacked = RANDOM.standard_normal((4, 6, 6)).astype(np.float32)
    check(UnrollLoops(), _loop(nodes, {"h": ("n", 6)}, ("go", "new", "o"), ws=stacked), tolerance=2e-6)


def test_a_body_may_give_the_number_of_the_round_an_axis() -> None:
    nodes = [*ROUND[:3], ("Cast", "i", "f", {"to": TensorProto.FLOAT}), ("Identity", "f", "o")]
    proto = _loop(nodes, {"i": (np.int64, (1,)), "h": ("n", 6)}, ("go", "new", "o"))
    proto.graph.output[1].CopyFrom(helper.make_tensor_value_info("ys", TensorProto.FLOAT, (4, 1)))
    check(UnrollLoops(), proto, tolerance=2e-6)


def test_a_loop_that_may_end_early_stays() -> None:
    nodes = [("ReduceSum", "h", "t", {"keepdims": 0}), ("Less", "t limit", "go"), *ROUND[1:]]
    proto = _loop(nodes, {"h": ("n", 6)}, ("go", "new", "o"), limit=np.float32(9))
    check_skipped(UnrollLoops(), proto, "end early")


def test_steps_of_an_open_number_stay() -> None:
    check_skipped(UnrollLoops(), _scan(("t", "n", 4)), "not known")


def test_many_steps_stay() -> None:
    check_skipped(UnrollLoops(), _scan((100, "n", 4)), "at most 64")


def test_a_body_without_products_is_not_looked_at() -> None:
    body = _cell([("Add", "h h", "new"), ("Neg", "xt", "o")])
    check_untouched(UnrollLoops(), _scan(body=body))
