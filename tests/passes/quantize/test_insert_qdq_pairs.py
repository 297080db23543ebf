"""insert-qdq-pairs: shortcuts read through the pair that is there, or one of their own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Changed, Skipped
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.insert_qdq_pairs import InsertQDQPairs
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import check_untouched, model, random_feeds, to_graph, whole

AMAX = 2.0
SAME = {"pads": [1, 1, 1, 1]}
W = np.random.default_rng(4).standard_normal((8, 8, 3, 3)).astype(np.float32)
BLOCK = model(
    ("Conv", "x w", "c", SAME), ("Add", "c x", "y"), inputs={"x": (1, 8, 6, 6)}, weights={"w": W}, opset=21
)  # fmt: skip


def plan(*, conv: bool = True, ranges: bool = True) -> Plan:
    return Plan(
        {"C": Decision("C", "Conv", DType.INT8, "linear", "")} if conv else {},
        {"x": Quantizer("x", DType.INT8, AMAX, "test", AMAX)} if ranges else {},
        {"C": 0} if conv else {},
        {"Y": (1,)},
    )


def fake(x: Any) -> Any:
    scale = np.float32(AMAX / 127)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale


def add_of(graph: gs.Graph) -> gs.Node:
    return next(node for node in graph.nodes if node.op == "Add")


def test_the_shortcut_shares_the_pair_of_the_layer_that_reads_the_same_tensor() -> None:
    graph = to_graph(BLOCK)
    made = plan()
    InsertQDQ(made)(graph)
    (note,) = InsertQDQPairs(made)(graph).notes
    assert isinstance(note, Changed)
    assert "with the pair that is there" in note.text
    assert [node.op for node in graph.nodes].count("QuantizeLinear") == 1
    conv = next(node for node in graph.nodes if node.op == "Conv")
    assert add_of(graph).inputs[1] is conv.inputs[0]
    assert graphs.producer(add_of(graph).inputs[0]) is conv
    onnx.checker.check_model(whole(graph), full_check=True)


def test_a_pair_of_its_own_computes_what_the_grid_says() -> None:
    graph = to_graph(BLOCK)
    feeds = random_feeds(graph)
    float_sum = Session(graph, optimize=False).run(feeds)["y"]
    report = InsertQDQPairs(plan(conv=False))(graph)
    assert report.changed == 1
    expected = float_sum - feeds["x"] + fake(feeds["x"])
    np.testing.assert_allclose(Session(graph, optimize=False).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(whole(graph), full_check=True)


def test_an_fp8_pair_has_the_scale_and_the_grid_of_e4m3() -> None:
    graph = to_graph(BLOCK)
    feeds = random_feeds(graph)
    float_sum = Session(graph, optimize=False).run(feeds)["y"]
    made = plan(conv=False).with_(quantizers={"x": Quantizer("x", DType.FP8, AMAX, "test", AMAX)})
    (note,) = InsertQDQPairs(made)(graph).notes
    assert "in FP8, scale 0.004464" in note.text
    scale = np.float32(AMAX / 448)
    rounded = np.clip(feeds["x"] / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    expected = float_sum - feeds["x"] + rounded
    np.testing.assert_allclose(Session(graph, optimize=False).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(whole(graph), full_check=True)


def test_a_second_run_changes_nothing() -> None:
    graph = to_graph(BLOCK)
    made = plan()
    InsertQDQ(made)(graph)
    InsertQDQPairs(made)(graph)
    before = whole(graph)
    assert InsertQDQPairs(made)(graph).notes == ()
    assert whole(graph) == before


def test_an_input_without_a_range_is_left_with_a_reason() -> None:
    graph = to_graph(BLOCK)
    (note,) = InsertQDQPairs(plan(conv=False, ranges=False))(graph).notes
    assert isinstance(note, Skipped)
    assert "no range for its input 1, 'x'" in note.text
    assert add_of(graph).inputs[1].name == "x"


def test_plans_that_want_no_pairs_leave_the_graph_alone() -> None:
    check_untouched(InsertQDQPairs(Plan()), BLOCK)
