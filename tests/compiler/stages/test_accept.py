"""The stage that accepts the result or refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.accept import accept
from qcompiler.compiler.stages.verify import verify
from qcompiler.errors import AccuracyError
from qcompiler.plan import Plan
from qcompiler.verification.gates import Gates
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_a_gate_that_is_missed_is_an_error_and_one_that_holds_is_silent(tmp_path: Path) -> None:
    standing = before("verify", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    found = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify).verification
    standing.run(accept, standing.subject, standing.lowered.plan, found, Gates(min_sqnr=0.0), True)
    assert not standing.run.warnings
    with pytest.raises(AccuracyError, match="at least 150 dB"):
        standing.run(accept, standing.subject, standing.lowered.plan, found, Gates(min_sqnr=150.0), True)


def test_a_model_in_which_nothing_was_quantized_is_told(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "conv"))
    standing.run(accept, standing.subject, Plan(), None, Gates(), True)
    assert "nothing in this model was quantized" in standing.run.warnings[0]


def test_it_is_no_wonder_where_nobody_asked(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "conv"), precision="fp16")
    standing.run(accept, standing.subject, Plan(), None, Gates(), False)
    assert not standing.run.warnings
