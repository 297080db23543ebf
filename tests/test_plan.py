"""The plan: shares, order, and a text form that reads back equal."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.target import DType

TEXT = st.text(max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
DECISIONS = st.builds(
    Decision,
    TEXT,
    st.sampled_from(["Conv", "MatMul"]),
    st.sampled_from(list(DType)),
    TEXT,
    TEXT,
    st.integers(0, 10**12),
    st.dictionaries(TEXT, NUMBER, max_size=3),
)
QUANTIZERS = st.builds(
    Quantizer,
    TEXT,
    st.sampled_from([DType.INT8, DType.FP8]),
    NUMBER,
    TEXT,
    NUMBER,
    st.none() | st.tuples(NUMBER, NUMBER),
    st.booleans(),
)


@given(
    st.lists(DECISIONS, max_size=6),
    st.lists(QUANTIZERS, max_size=4),
    st.dictionaries(TEXT, st.none() | st.integers(0, 3), max_size=4),
)
def test_the_text_form_reads_back_equal(
    decisions: list[Decision], quantizers: list[Quantizer], axes: dict[str, int | None]
) -> None:
    plan = Plan.of(decisions).with_(quantizers={one.tensor: one for one in quantizers}, axes=axes)
    text = plan.to_json()
    json.loads(text)
    again = Plan.from_json(text)
    assert again == plan
    assert list(again) == list(plan)
    assert again.to_json() == text


def example() -> Plan:
    return Plan.of(
        [
            Decision("a", "Conv", DType.INT8, "linear", "", 75),
            Decision("b", "Conv", DType.FP16, "sensitive", "", 25),
            Decision("c", "Relu", DType.FP16, "other", ""),
        ]
    )


def test_the_share_is_that_of_multiply_accumulates() -> None:
    assert example().share() == 0.75
    assert Plan().share() == 0
    assert [one.node for one in example().quantized()] == ["a"]


def test_what_an_engine_does_not_confirm_is_promised_and_not_done() -> None:
    plan = example().deciding(Decision("d", "Loop", DType.FP16, "custom", "", counted=False))
    assert (plan.share({"a"}), plan.share(set())) == (0.75, 0.0)
    said = plan.macs_by_precision()
    assert (said["quantized_share"], said["promised_share"], said["confirmed"]) == (0.75, 0.75, False)
    assert said["by_precision"] == {"fp16": 25, "int8": 75}
    assert said["uncounted"] == ["d"]
    found = plan.macs_by_precision(set())
    assert (found["quantized_share"], found["promised_share"], found["confirmed"]) == (0.0, 0.75, True)
    assert found["by_precision"] == {"fp16": 25, "unconfirmed": 75}
    assert found["total"] == said["total"] == 100


def test_a_node_has_one_decision_and_keeps_its_place() -> None:
    before = example()
    plan = before.deciding(Decision("a", "Conv", DType.BF16, "kept", "", 75))
    assert before == example()
    assert [one.node for one in plan] == ["a", "b", "c"]
    assert plan.precision("a") is DType.BF16
    assert plan.precision("nobody") is None
    assert plan.share() == 0


def test_a_plan_is_not_changed_by_what_it_was_made_of() -> None:
    axes: dict[str, int | None] = {"a": 0}
    plan = example().with_(axes=axes, reads={"c": (1,)})
    axes["b"] = 1
    assert plan.axes == {"a": 0}
    with pytest.raises(FrozenInstanceError):
        plan.axes = axes  # type: ignore[misc]


def test_a_node_that_is_gone_is_gone_everywhere_but_from_quantizers() -> None:
    quantizer = Quantizer("x", DType.INT8, 1.0, "minmax", 1.0)
    plan = example().with_(axes={"a": 0, "b": None}, reads={"a": (0,), "c": (1,)}, quantizers={"x": quantizer})
    found = plan.without("a")
    assert [one.node for one in found] == ["b", "c"]
    assert (found.axes, found.reads, found.quantizers) == ({"b": None}, {"c": (1,)}, {"x": quantizer})


def test_decisions_are_put_in_the_order_of_the_nodes_and_strangers_last() -> None:
    assert [one.node for one in example().ordered(["c", "b", "nobody"])] == ["c", "b", "a"]
