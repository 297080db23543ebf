"""conclude: the comparison, what was not quantized, the data and the engine, in one word with its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.conclude import conclude
from qcompiler.plan import Plan
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
    first = run(conclude, plan, None, Gates(), INT8, ("bytes against floats",), last=False)
    assert first.word is Word.DOUBTFUL
    assert not run.warnings
    last = run(conclude, plan, None, Gates(), INT8, ("bytes against floats", "two layers run in half"), last=True)
    assert last.reasons[-2:] == ("bytes against floats", "two layers run in half")
    assert run.records["verdict"] == {"verdict": "doubtful", "reasons": list(last.reasons)}
    assert run.warnings == [f"the result is doubtful: {'; '.join(last.reasons)}"]


def test_a_model_in_which_nothing_was_quantized_is_broken_for_its_purpose() -> None:
    run = Compilation()
    assert run(conclude, Plan(), None, Gates(), INT8, (), last=True).word is Word.BROKEN
    assert "the model has no convolution" in run.warnings[0]


def test_where_float_may_be_chosen_that_is_a_doubt() -> None:
    promise = replace(INT8, precision="auto", something=False)
    assert Compilation()(conclude, Plan(), None, Gates(), promise, (), last=True).word is Word.DOUBTFUL
