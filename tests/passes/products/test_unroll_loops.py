from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.passes.base import Changed, Skipped
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


def _scans(count: int, x: tuple[Any, ...], body: onnx.GraphProto, **weights: Any) -> onnx.ModelProto:
    """So many scans, each over what the one before collected."""
    chain = [f"x{index}" for index in range(count + 1)]
    scans = [
        ("Scan", f"h0 {a}", f"h{index + 1} {b}", {"body": body, "num_scan_inputs": 1})
        for index, (a, b) in enumerate(itertools.pairwise(chain))
    ]
    width = x[-1]
    return model(*scans, inputs={"h0": (1, width), "x0": x}, outputs=[chain[-1]], opset=18, weights=weights)


def test_all_loops_of_a_model_share_its_nodes() -> None:
    steps = [("MatMul", "h r", "t0"), *(("Neg", f"t{i}", f"t{i + 1}") for i in range(47)), ("Add", "t47 xt", "new")]
    body = _cell([*steps, ("Tanh", "new", "o")], {"h": (1, 6), "xt": (1, 6)})  # 50 nodes
    proto = _scans(4, (30, 1, 6), body, r=R / 4)
    graph, report = check(UnrollLoops(), proto, tolerance=1e-5, settles=False)
    assert sum(node.op == "Scan" for node in graph.nodes) == 2
    why = "it would become 1500 nodes, and 1096 of the 4096 that one model gets are left; its products stay float"
    assert [note.text for note in report.notes] == ["30 rounds written out"] * 2 + [why] * 2
    assert [node.inputs[1].name for node in graph.nodes if node.op == "Scan"] == ["x2", "x3"]  # the last ones


def test_all_loops_of_a_model_share_its_bytes() -> None:
    wide = RANDOM.standard_normal((512, 512)).astype(np.float32) / 512  # 1 MiB, in each of 20 rounds
    nodes = [("MatMul", "h r", "b"), ("Add", "b xt", "new"), ("Tanh", "new", "o")]
    body = _cell(nodes, {"h": (1, 512), "xt": (1, 512)})
    graph, report = check(UnrollLoops(), _scans(2, (20, 1, 512), body, r=wide), tolerance=1e-5, settles=False)
    assert sum(node.op == "Scan" for node in graph.nodes) == 1
    assert "20971520 bytes of weights, and 12582912 of the 33554432" in report.notes[1].text


def test_a_loop_that_is_too_large_leaves_what_there_is_to_others() -> None:
    long = [("MatMul", "h r", "t0"), *(("Neg", f"t{i}", f"t{i + 1}") for i in range(99)), ("Add", "t99 xt", "new")]
    large, small = (
        _cell([*nodes, ("Tanh", "new", "o")], {"h": (1, 6), "xt": (1, 6)})
        for nodes in (long, [("MatMul", "h r", "b"), ("Add", "b xt", "new")])
    )
    proto = model(
        ("Scan", "h0 x", "h1 ys", {"body": large, "num_scan_inputs": 1}),
        ("Scan", "h0 ys", "h2 y", {"body": small, "num_scan_inputs": 1}),
        inputs={"h0": (1, 6), "x": (50, 1, 6)},
        opset=18,
        weights={"r": R / 4},
    )
    _, report = check(UnrollLoops(), proto, tolerance=1e-5)
    assert [type(note) for note in report.notes] == [Skipped, Changed]


def test_a_loop_inside_another_is_written_out_before_it() -> None:
    inner = _cell(
        [("MatMul", "g r", "s"), ("Add", "s gt", "g1"), ("Tanh", "g1", "p")], {"g": (1, 6), "gt": (1, 6)}, ("g1", "p")
    )
    nodes = [("Scan", "h seq", "new o", {"body": inner, "num_scan_inputs": 1}), ("MatMul", "xt r", "z")]
    body = _cell(nodes, {"h": (1, 6), "xt": (1, 6)}, ("new", "z"))
    proto = model(
        ("Scan", "h0 x", "y ys", {"body": body, "num_scan_inputs": 1}),
        inputs={"h0": (1, 6), "x": (3, 1, 6), "seq": (2, 1, 6)},
        outputs=("y", "ys"),
        opset=18,
        weights={"r": R / 4},
    )
    graph, report = check(UnrollLoops(), proto, tolerance=1e-5)
    assert [note.text for note in report.notes] == ["2 rounds written out", "3 rounds written out"]
    assert not any(node.op == "Scan" for node in graph.nodes)


def test_a_body_without_products_is_not_looked_at() -> None:
    body = _cell([("Add", "h h", "new"), ("Neg", "xt", "o")])
    check_untouched(UnrollLoops(), _scan(body=body))
