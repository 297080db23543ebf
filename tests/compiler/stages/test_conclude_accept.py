"""The stage that accepts the result or refuses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.compiler.stages.conclude import accept
from qcompiler.compiler.stages.verify import verify
from qcompiler.errors import AccuracyError
from qcompiler.plan import Decision, Plan
from qcompiler.target import DType
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Judgement
from tests.kit.cases import prepared
from tests.kit.subjects import before

INT8 = Promise("int8", asks=True, something=True)


def test_a_gate_that_is_missed_is_an_error_and_one_that_holds_is_silent(tmp_path: Path) -> None:
    standing = before("verify", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    found = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify).verification
    plan, promise = standing.lowered.plan, standing.asked.promise
    standing.run(accept, standing.subject, plan, found, Gates(min_sqnr=0.0), promise, Judgement())
    assert not standing.run.warnings
    with pytest.raises(AccuracyError, match="at least 150 dB"):
        standing.run(accept, standing.subject, plan, found, Gates(min_sqnr=150.0), promise, Judgement())


def test_a_gate_on_the_share_is_held_against_the_plan(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"), keep=("C2",))
    assert standing.lowered is not None
    plan = standing.lowered.plan
    standing.run(accept, standing.subject, plan, None, Gates(), replace(INT8, min_share=plan.share()), Judgement())
    with pytest.raises(AccuracyError, match=r"at least 90\.0% were asked for.*rule 'kept' leaves 1 of 2 layers"):
        standing.run(accept, standing.subject, plan, None, Gates(), replace(INT8, min_share=0.9), Judgement())


@pytest.mark.parametrize("precision", ["int8", "int4-weight"])
def test_a_model_in_which_nothing_was_quantized_is_broken_for_its_purpose(tmp_path: Path, precision: str) -> None:
    standing = before("accept", prepared(tmp_path, "conv"), precision=precision, keep=(".",))
    assert standing.lowered is not None
    plan, promise = standing.lowered.plan, standing.asked.promise
    with pytest.raises(
        AccuracyError, match=rf"nothing .* quantized \({precision}\): rule 'kept' leaves 4 of 4 layers .*--allow-broken"
    ):
        standing.run(accept, standing.subject, plan, None, Gates(), promise, Judgement())
    standing.run(accept, standing.subject, plan, None, Gates(allow_broken=True), promise, Judgement())


def test_products_of_one_row_are_told_of_weights_in_few_bits(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    plan = Plan.of([Decision("fc", "MatMul", DType.FP16, "gemv", "one row", macs=100)])
    with pytest.raises(AccuracyError, match=r"rule 'gemv' leaves 1 of 1 .*--precision int8-weight\. The manifest"):
        standing.run(accept, standing.subject, plan, None, Gates(), INT8, Judgement())


def test_what_is_broken_is_refused_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    plan, broken = standing.lowered.plan, Judgement().broken(["'y' has 1.0 dB"])
    with pytest.raises(AccuracyError, match=r"broken: 'y' has 1\.0 dB\..*--allow-broken"):
        standing.run(accept, standing.subject, plan, None, Gates(), INT8, broken)
    standing.run(accept, standing.subject, plan, None, Gates(allow_broken=True), INT8, broken)
    standing.run(accept, standing.subject, plan, None, Gates(), INT8, Judgement().doubted(["few samples"]))


def test_it_is_no_wonder_where_nobody_asked(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "conv"), precision="fp16")
    standing.run(accept, standing.subject, Plan(), None, Gates(), standing.asked.promise, Judgement())
    assert not any("quantized" in text for text in standing.run.warnings)
