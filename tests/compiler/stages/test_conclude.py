"""conclude: the comparison, what was not quantized, the data and the engine, in one word with its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.conclude import conclude
from qcompiler.plan import Plan
from qcompiler.planning.search.safety_net import SafetyNet, Step
from qcompiler.verification.finite_on_all import Finiteness
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Word
from tests.kit.cases import prepared
from tests.kit.subjects import before

INT8 = Promise("int8", asks=True, something=True)


def test_what_the_data_and_the_engine_say_is_added_and_told_at_the_end(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    plan, run = standing.lowered.plan, Compilation()
    first = run(conclude, plan, None, Gates(), INT8, None, SafetyNet(), ("bytes against floats",), last=False)
    assert first.word is Word.DOUBTFUL
    assert not run.warnings
    last = run(
        conclude,
        plan,
        None,
        Gates(),
        INT8,
        None,
        SafetyNet(),
        ("bytes against floats", "two layers run in half"),
        last=True,
    )
    assert last.reasons[-2:] == ("bytes against floats", "two layers run in half")
    assert run.records["verdict"] == {"verdict": "doubtful", "reasons": list(last.reasons)}
    assert run.warnings == [f"the result is doubtful: {'; '.join(last.reasons)}"]


def test_a_model_in_which_nothing_was_quantized_is_broken_for_its_purpose() -> None:
    run = Compilation()
    assert run(conclude, Plan(), None, Gates(), INT8, None, SafetyNet(), (), last=True).word is Word.BROKEN
    assert "the model has no convolution" in run.warnings[0]


def test_where_float_may_be_chosen_that_is_a_doubt() -> None:
    promise = replace(INT8, precision="auto", something=False)
    assert (
        Compilation()(conclude, Plan(), None, Gates(), promise, None, SafetyNet(), (), last=True).word is Word.DOUBTFUL
    )


def test_a_sample_on_which_the_result_is_not_finite_breaks_it() -> None:
    failing, promise = Finiteness(64, (3,), "y", "Exp_1"), replace(INT8, something=False)
    found = Compilation()(conclude, Plan(), None, Gates(), promise, failing, SafetyNet(), (), last=True)
    assert found.word is Word.BROKEN
    assert "first on sample 3, in output 'y'" in found.reasons[0]


def test_a_goal_that_was_missed_is_told_unless_the_user_set_a_gate() -> None:
    net, run = SafetyNet(curve=(Step(0.9, 17.5),), target_db=25.0, met=False), Compilation()
    run(conclude, Plan(), None, Gates(), INT8, None, net, (), last=True)
    assert "stopped at 17.5 dB, short of its goal of 25 dB" in run.warnings[-1]
    likely = Compilation()
    likely(conclude, Plan(), None, Gates(), INT8, None, replace(net, likelihood=True), (), last=True)
    told = "stopped at a perplexity that is 1.8% higher, short of its goal of a perplexity that is 0.3% higher"
    assert told in likely.warnings[-1]
    gated = Compilation()
    gated(conclude, Plan(), None, Gates(min_sqnr=10), INT8, None, net, (), last=True)
    assert not any("short of its goal" in text for text in gated.warnings)
