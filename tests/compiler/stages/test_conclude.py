"""conclude: the last word has what the engine said as well."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.conclude import conclude
from qcompiler.verification.verdict import Verdict, Word


def test_what_the_engine_says_is_added() -> None:
    run = Compilation()
    assert run(conclude, Verdict(), ()).word is Word.HOLDS
    found = run(conclude, Verdict().doubted(["few samples"]), ("two layers run in float",))
    assert found.reasons == ("few samples", "two layers run in float")
    assert run.records["verdict"] == {"verdict": "doubtful", "reasons": ["few samples", "two layers run in float"]}
