"""The plan: shares, order, and a text form that reads back equal."""

from __future__ import annotations

import json

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
    plan = Plan(quantizers={one.tensor: one for one in quantizers}, axes=axes)
    for one in decisions:
        plan.add(one)
    text = plan.to_json()
    json.loads(text)
    again = Plan.from_json(text)
    assert again == plan
    assert list(again) == list(plan)
    assert again.to_json() == text


def example() -> Plan:
    plan = Plan()
    plan.add(Decision("a", "Conv", DType.INT8, "linear", "", 75))
    plan.add(Decision("b", "Conv", DType.FP16, "sensitive", "", 25))
    plan.add(Decision("c", "Relu", DType.FP16, "other", ""))
    return plan


def test_the_share_is_that_of_multiply_accumulates() -> None:
    assert example().share() == 0.75
    assert Plan().share() == 0
    assert [one.node for one in example().quantized()] == ["a"]


def test_a_node_has_one_decision_and_keeps_its_place() -> None:
    plan = example()
    plan.add(Decision("a", "Conv", DType.BF16, "kept", "", 75))
    assert [one.node for one in plan] == ["a", "b", "c"]
    assert plan.precision("a") is DType.BF16
    assert plan.precision("nobody") is None
    assert plan.share() == 0
