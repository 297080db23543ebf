"""check_finite: every sample is run through the result, and what is not finite is recorded."""

from __future__ import annotations

from pathlib import Path

from qcompiler.compiler.stages.verify import check_finite
from tests.kit.cases import SAMPLES, prepared
from tests.kit.subjects import before


def test_all_samples_are_run_that_were_not_compared(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    found = standing.run(check_finite, standing.subject, standing.lowered, True)
    assert found is not None
    assert standing.subject.parts is not None
    count = SAMPLES - standing.subject.parts.samples[2]
    assert (found.samples, found.failing) == (count, ())
    record = standing.run.records["verification"]["finite"]
    assert record == {"samples": count, "failing": [], "output": "", "node": ""}


def test_where_nothing_is_compared_nothing_is_run(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    assert standing.run(check_finite, standing.subject, standing.lowered, False) is None
