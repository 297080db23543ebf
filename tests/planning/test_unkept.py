"""What is planned where an engine did not keep a plan: one weight scale, or high precision."""

from __future__ import annotations

from qcompiler.planning.unkept import RULE, changed
from qcompiler.target import DType
from tests.kit.planning.products import chosen, graph


def test_a_scale_per_channel_becomes_one_and_one_becomes_high_precision() -> None:
    before = chosen()
    after = changed(before, graph(), ("A", "B", "C"), DType.FP16)
    plan = after.plan
    assert {one.node: one.precision for one in plan} == {"A": "int8", "B": "fp16", "C": "fp16", "Y": "int8"}
    assert plan.axes == {"A": None, "Y": 1}
    assert plan.decisions["A"].why.startswith("one weight scale: ")
    assert plan.decisions["A"].rule == "linear"
    assert {plan.decisions[name].rule for name in ("B", "C")} == {RULE}
    assert all(one.why.endswith("why") for one in plan)
    assert list(plan.quantizers) == ["x", "c"]  # A still reads x; nobody reads b as integers any more
    assert list(after.scales) == list(after.corrections) == ["Y"]  # those of others fit other integers
    assert before.plan == chosen().plan


def test_fp8_goes_to_high_precision_at_once() -> None:
    assert changed(chosen(DType.FP8), graph(), ("A",), DType.BF16).plan.precision("A") is DType.BF16
