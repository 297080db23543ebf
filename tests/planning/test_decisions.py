"""Texts and figures of decisions: why a node has the precision it has."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.plan import Candidate, Decision, Plan, Refusal
from qcompiler.planning.decisions import accounted, close, plan_of
from qcompiler.planning.placement.candidates import Candidates, find_candidates
from qcompiler.planning.search.safety_net import HIGH, SafetyNet, Step
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

RTX = parse_target("tensorrt-rtx")
W = np.ones((16, 16), np.float32)
GRAPH = to_graph(
    model(
        ("MatMul", "x w", "p"), ("MatMul", "p w", "q"), ("MatMul", "q w", "y"), inputs={"x": (4, 16)}, weights={"w": W}
    )
)
FOUND = tuple(Candidate(node, "MatMul", reads, "w", 1) for node, reads in (("P", "x"), ("Q", "p")))
LAYERS = Candidates(FOUND, (Refusal("Y", "MatMul", "tiny", "too small"),))
HISTOGRAMS = {name: Histogram.of(np.linspace(-3, 3, 64, dtype=np.float32)) for name in ("x", "p")}


def net(**changes: Any) -> SafetyNet:
    both: dict[str, Any] = {
        "amax": {"x": 2.5, "p": 3.0},
        "formats": {"x": DType.INT8, "p": DType.INT8},
        "noise": {"x": 1e-3, "p": 1e-2},
        "curve": (Step(1.0, 10.0), Step(0.5, 25.0)),
    }
    return SafetyNet(**both | changes)


def plan(found: SafetyNet, layers: Candidates = LAYERS) -> Plan:
    return plan_of(GRAPH, layers, found, {"P": 7, "Q": 8, "Y": 9}, RTX, HISTOGRAMS, "an RTX 4090")


def test_every_node_has_a_decision_in_graph_order_whatever_the_order_of_the_rules() -> None:
    done = plan(net())
    assert [(one.node, one.precision, one.rule, one.macs) for one in done] == [
        ("P", DType.INT8, "linear", 7),
        ("Q", DType.INT8, "linear", 8),
        ("Y", DType.FP16, "tiny", 9),
    ]
    assert (
        done.decisions["P"].why
        == "constant weight, activation 'x' clipped at 2.5, alone it leaves 30.0 dB at the outputs"
    )
    assert done.decisions["P"].figures == {"amax": 2.5, "observed_amax": 3.0, "alone_sqnr_db": 30.0}


def test_what_was_not_measured_alone_says_nothing_of_it() -> None:
    assert plan(net(noise={})).decisions["Q"].why == "constant weight, activation 'p' clipped at 3"


def test_a_restored_group_says_what_it_did_and_what_the_model_reaches() -> None:
    one = plan(net(restored=("p",))).decisions["Q"]
    assert (one.precision, one.rule) == (DType.FP16, "sensitive")
    assert one.why == (
        "alone it leaves 20.0 dB at the outputs; with 1 such group in fp16 the model reaches 25.0 dB with "
        "50% of MACs in INT8"
    )


def test_a_figure_that_was_solved_for_is_never_called_measured_alone() -> None:
    done = plan(net(restored=("p",), joint=("p", "x")))
    told = "dB at the outputs, as joint runs tell"
    assert done.decisions["Q"].why.startswith(f"its own noise leaves 20.0 {told}")
    assert done.decisions["P"].why.endswith(f"its own noise leaves 30.0 {told}")
    for one in (done.decisions["P"], done.decisions["Q"]):
        assert "joint_sqnr_db" in one.figures
        assert "alone_sqnr_db" not in one.figures
        assert "alone" not in one.why


@pytest.mark.parametrize(("high", "rule"), [(1e-6, "cost"), (9e-6, "sensitive")])
def test_high_precision_that_is_fastest_is_a_choice_of_cost(high: float, rule: str) -> None:
    costs = {"p": {"int8": 2e-6, HIGH: high}}
    one = plan(net(restored=("p",), costs=costs)).decisions["Q"]
    assert one.rule == rule
    assert f"{high * 1e6:.1f} us in fp16" in one.why
    assert one.why.endswith("on an RTX 4090")
    assert one.figures["int8_us"] == 2.0


def test_formats_are_compared_where_there_was_a_choice() -> None:
    alone = {"x": {DType.INT8: 1e-2, DType.FP8: 1e-3}, "p": {DType.INT8: 1e-2}}
    done = plan(net(alone=alone))
    assert done.decisions["P"].why.endswith("; int8: alone 20.0 dB, fp8: alone 30.0 dB")
    assert ";" not in done.decisions["Q"].why


def test_what_stands_in_a_branch_computes_in_fp32() -> None:
    layers = Candidates((), (Refusal("P", "MatMul", "subgraph", "in a branch"),))
    assert plan(net(), layers).decisions["P"].precision is DType.FP32


def closing(precision: DType, **candidate: Any) -> Decision:
    found = Candidate("P", "MatMul", "x", "w", 1, **candidate)
    done = close(Plan.of([Decision("P", "MatMul", precision, "linear", "why")]), [found], {"t": "it has 32 scales"})
    assert set(done.axes) == ({"P"} if found.scales is not None and not precision.quantized else set())
    return done.decisions["P"]


def test_what_became_of_what_came_quantized_is_told() -> None:
    scales = np.ones(16, np.float32)
    kept = "why; its weight keeps the integers and scales it came with"
    assert closing(DType.INT8, scales=scales).why == kept
    assert closing(DType.FP16, scales=scales).why == kept
    pair = "; its activation has the scale of the pair that it came with"
    assert closing(DType.INT8, amax=2.0).why == "why" + pair
    assert closing(DType.FP16, amax=2.0).why == "why"
    assert closing(DType.INT8, scales=scales, amax=2.0).why == kept + pair


def test_a_pair_that_was_dropped_says_why() -> None:
    before = Plan.of([Decision("P", "MatMul", DType.INT8, "linear", "why")])
    done = close(before, [Candidate("P", "MatMul", "x", "w", 1, amax=2.0)], {"x": "it has 32 scales"})
    assert done.decisions["P"].why == "why; the pair its activation came with was dropped because it has 32 scales"
    assert before.decisions["P"].why == "why"


def test_nodes_that_nobody_decided_on_are_left_out() -> None:
    assert close(Plan(), [Candidate("P", "MatMul", "x", "w", 1, amax=2.0)], {}) == Plan()


def test_every_node_that_multiplies_counts_also_those_of_which_no_rule_speaks() -> None:
    body = graph_proto([("MatMul", "x w", "i")], {}, ["i"])
    other = graph_proto([("Relu", "x", "j")], {}, ["j"])
    nodes: tuple[Spec, ...] = (
        ("MatMul", "x w", "p"),
        ("Einsum", "p w", "e", {"equation": "ab,bc->ac"}),
        ("Relu", "e", "r"),
        ("If", "c", "f", {"then_branch": body, "else_branch": other}),
        ("Add", "r f", "y"),
    )
    graph = to_graph(model(*nodes, inputs={"x": (4, 16), "c": (np.bool_, ())}, weights={"w": W}))
    start = Plan.of(
        [Decision("P", "MatMul", DType.INT8, "linear", "why", 7), Decision("R", "Relu", DType.FP16, "", "")]
    )
    found = accounted(start, graph, {"P": 1024, "I": 512}, DType.FP16)
    assert [(one.node, one.precision, one.macs, one.counted) for one in found] == [
        ("P", "int8", 7, True),  # a figure that it has stays: products that were joined have two in one
        ("E", "fp16", 0, False),  # not in the figures, so nobody knows
        ("R", "fp16", 0, True),
        ("I", "fp32", 512, True),
    ]
    assert found.share() == 7 / 519
    assert found.macs_by_precision()["uncounted"] == ["E"]
    assert [one.node for one in start] == ["P", "R"]


def test_a_weight_that_came_in_blocks_of_few_bits_counts_as_stored() -> None:
    parts = {"w": np.ones((16, 16), ml_dtypes.int4), "s": np.ones((2, 16), np.float32)}
    graph = to_graph(
        model(
            ("DequantizeLinear", "w s", "v", {"axis": 0, "block_size": 8}), ("MatMul", "x v", "y"),
            inputs={"x": (4, 16)}, weights=parts, opset=21,
        )
    )  # fmt: skip
    layers = find_candidates(graph, RTX)
    found = plan_of(graph, layers, net(amax={}, formats={}, noise={}), {"Y": 9}, RTX, {}, "an RTX 4090")
    assert (found.decisions["Y"].precision, found.decisions["Y"].rule) == (DType.INT4_WEIGHT, "weight-only")
