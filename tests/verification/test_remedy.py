"""Advice that can help: by what the plan has, and by what is to blame."""

from __future__ import annotations

from qcompiler.plan import Decision, Plan
from qcompiler.target import DType
from qcompiler.verification.compare import Verification
from qcompiler.verification.remedy import remedies
from qcompiler.verification.suspects import Suspect


def plan(**precisions: DType) -> Plan:
    return Plan.of([Decision(node, "Conv", one, "linear", "why", 10) for node, one in precisions.items()])


def blaming(*nodes: str) -> Verification:
    suspects = tuple(Suspect(node, "Conv", f"{node}_out", node, 3.0, "y", 4.0, 20.0, 0.9) for node in nodes)
    return Verification(1, (), suspects=suspects)


def test_a_quantized_layer_that_is_to_blame_is_to_be_kept_by_its_exact_name() -> None:
    text = remedies(plan(a=DType.INT8, b=DType.FP16), blaming("a"))
    assert text.startswith("What can help: --keep '^a$', where the error begins; --high-precision fp32; more samples")
    assert text.endswith("or accept less.")
    dotted = Plan.of([Decision("a.b", "Conv", DType.INT8, "linear", "why", 10)])
    assert r"--keep '^a\.b$'" in remedies(dotted, blaming("a.b"))


def test_what_computes_in_half_already_is_not_to_be_kept_but_widened() -> None:
    text = remedies(plan(a=DType.FP16), blaming("a"))
    assert text == "What can help: --high-precision fp32, because the error begins in FP16; or accept less."


def test_where_only_weights_are_stored_nothing_is_said_of_ranges_or_of_the_safety_net() -> None:
    text = remedies(plan(a=DType.INT4_WEIGHT, b=DType.FP16), blaming("a"))
    assert "samples" not in text
    assert "safety" not in text
    assert "--keep '^a$'" in text


def test_without_a_suspect_the_way_to_one_is_told() -> None:
    assert "`qcompiler sensitivity`" in remedies(plan(a=DType.INT8), blaming())
    assert "`qcompiler sensitivity`" in remedies(plan(a=DType.INT8), None)


def test_where_all_is_float_there_is_nothing_but_to_accept_less() -> None:
    assert remedies(plan(a=DType.FP32), None) == "Nothing is left to change but the limit: accept less."
