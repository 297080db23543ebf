"""What the plan and the manifest say about weights in few bits."""

from __future__ import annotations

import dataclasses
import json

from qcompiler.plan import Decision, Plan, Refusal
from qcompiler.support.as_json import plain
from qcompiler.target import DType, parse_target
from qcompiler.weight_only.record import into, record_of
from qcompiler.weight_only.stored import Stored
from tests.kit.weight_only.stored import stored

TARGET = parse_target("tensorrt-rtx:sm89")


def given(**changes: object) -> Stored:
    """Three layers: A and C stored, B restored."""
    all_ = stored(A=30.0, B=10.0, C=20.0)
    kept = {name: one for name, one in all_.weights.items() if name != "B"}
    found = dataclasses.replace(all_, weights=kept, restored={"B": all_.weights["B"]}, macs={"A": 7})
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_decisions_come_in_graph_order_and_others_stay() -> None:
    before = Plan.of([Decision("Z", "Conv", DType.INT8, "linear", "why", 3)])
    plan = into(before, given(), TARGET, ["C", "Z", "B", "A"])
    assert [(one.node, one.rule, one.precision) for one in plan] == [
        ("C", "weight-only", DType.INT8_WEIGHT),
        ("Z", "linear", DType.INT8),
        ("B", "sensitive", DType.FP16),
        ("A", "weight-only", DType.INT8_WEIGHT),
    ]
    assert plan.decisions["A"].macs == 7
    assert "its outputs reach 10.0 dB" in plan.decisions["B"].why
    assert [one.node for one in before] == ["Z"]


def test_refusals_are_told_unless_something_else_was_decided() -> None:
    refused = (Refusal("R", "Conv", "no-kernel", "no kernel"), Refusal("S", "MatMul", "subgraph", "in a branch"))
    before = Plan.of([Decision("R", "Conv", DType.INT8, "linear", "already", 3)])
    plan = into(before, given(refused=refused), TARGET, ["R"])
    assert plan.decisions["R"].why == "already"
    assert plan.decisions["S"].precision is DType.FP32


def test_a_reason_says_form_method_and_what_is_special() -> None:
    all_ = stored(A=30.0)
    layer = dataclasses.replace(all_.weights["A"].layer, format="int4", size=32, why="because", tied="EMBED")
    one = dataclasses.replace(all_.weights["A"], layer=layer)
    plan = into(Plan(), dataclasses.replace(all_, weights={"A": one}), TARGET, ["A"])
    why = plan.decisions["A"].why
    assert why.startswith("weight stored as INT4 in blocks of 32 (because) by rtn, activation and product in fp16")
    assert why.endswith("its numbers are the table of 'EMBED', too")


def test_nothing_stored_nothing_said() -> None:
    plan = Plan.of([Decision("Z", "Conv", DType.INT8, "linear", "why", 3)])
    assert into(plan, None, TARGET, []) is plan
    assert record_of(None) is None


def test_the_record_adds_up_and_is_plain() -> None:
    found = record_of(given(scaled={"x": 1.23456}, refused=(Refusal("R", "Conv", "no-kernel", ""),)))
    assert found is not None
    assert json.loads(json.dumps(plain(found)))
    assert [one["node"] for one in found["layers"]] == ["A", "C"]
    assert found["restored"] == ["B"]
    assert found["bytes_after"] == sum(one["bytes"] for one in found["layers"])
    assert found["bytes_before"] == 4 * 200  # ONNX Runtime computes in FP32
    assert found["forms"] == {"int8 per output": 2}
    assert (found["refused"], found["scaled"]) == ({"no-kernel": 1}, {"x": 1.235})
    assert found["block_size"] is found["damp"] is found["act_order"] is None


def test_options_of_a_method_are_told_where_it_is_used() -> None:
    base = given()
    options = dataclasses.replace(base.options, precision="int4-weight")
    weights = {name: dataclasses.replace(one, method="awq+gptq", shrink=0.1) for name, one in base.weights.items()}
    found = record_of(dataclasses.replace(base, options=options, method="auto", weights=weights))
    assert found is not None
    assert found["block_size"] == options.table.block_size
    assert (found["damp"], found["act_order"]) == (options.table.damp, options.table.act_order)
    assert found["methods"] == {"awq+gptq": 2}
    assert found["layers"][0]["shrink"] == 0.1


def test_the_record_says_on_which_rows_its_figures_were_measured() -> None:
    base = given()
    weights = {name: dataclasses.replace(one, judged="held out", rows=96) for name, one in base.weights.items()}
    found = record_of(dataclasses.replace(base, weights=weights))
    assert found is not None
    assert found["judged"] == ["held out"]
    assert [(one["judged"], one["rows"]) for one in found["layers"]] == [("held out", 96)] * 2
