"""The stage that notes every try: goal, outcome, and the gate that it missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qcompiler.compiler.stages.note import note
from qcompiler.compiler.stages.verify import verify
from qcompiler.verification.gates import Gates
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_tries_stand_in_order_with_what_they_missed(tmp_path: Path) -> None:
    standing = before("verify", prepared(tmp_path, "conv"))
    run, decided, lowered = standing.run, standing.decided, standing.lowered
    assert decided is not None
    assert lowered is not None
    found = run(verify, standing.subject, lowered, standing.asked.verify).verification
    promise = standing.asked.promise
    first = run(note, decided, lowered, found, Gates(min_sqnr=150.0), promise)
    tries = run(note, decided, lowered, found, Gates(), replace(promise, min_share=1.0), first)
    assert run(note, decided, lowered, None, Gates(), promise, tries)[:2] == tries
    assert [one.missed[:9] for one in tries] == ["output 'y", f"{lowered.plan.share():.1%} of t"[:9]]
    assert found is not None
    assert {(one.goal_db, one.sqnr_db, one.share) for one in tries} == {
        (25.0, found.worst_sqnr_db, lowered.plan.share())
    }
    assert [one.missed for one in run.records["tries"]][-1] == ""
    assert [one.looks for one in run.records["tries"]] == [1, 2, 2]  # nothing was compared for the last


def test_weights_in_few_bits_are_counted(tmp_path: Path) -> None:
    standing = before("verify", prepared(tmp_path, "transformer"), precision="int8-weight")
    assert standing.decided is not None
    assert standing.lowered is not None
    (one,) = standing.run(note, standing.decided, standing.lowered, None, Gates(), standing.asked.promise)
    assert (one.goal_db, one.sqnr_db, one.missed) == (None, None, "")
    assert one.stored == len(standing.lowered.plan.quantized()) > 0
