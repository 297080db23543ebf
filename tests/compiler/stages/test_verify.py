"""The stages that compare float and lowered, and run all samples to see whether the result stays finite."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.stages.verify import VerifyOptions, check_finite, verify
from qcompiler.compiler.subject import Lowered
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from tests.kit.cases import SAMPLES, prepared
from tests.kit.subjects import Standing, before

METRIC = """
from pathlib import Path
import numpy as np

def metric(run):
    with Path(__file__).with_suffix(".calls").open("a") as calls:
        calls.write("x")
    return float(np.asarray(run({"x": np.ones((1, 16, 64), np.float32)})[0]).mean())
"""


def test_what_nothing_was_chosen_by_judges(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case)
    assert standing.lowered is not None
    found = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify).verification
    assert found is not None
    assert found.data == f"'{case.data}', held out"
    assert (found.in_sample, found.samples, len(found.positions)) == (False, 5, 5)
    seen = (*standing.subject.seen.kept, *standing.subject.seen.held)
    assert not any(np.array_equal(feed["x"][0], case.rows[place]) for feed in seen for place in found.positions)
    assert standing.run.records["verification"]["worst_sqnr_db"] == pytest.approx(found.worst_sqnr_db)


def test_samples_that_are_too_few_to_keep_some_apart_are_said_to_be_in_sample(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case, samples=3)
    assert standing.lowered is not None
    found = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify).verification
    assert found is not None
    assert (found.data, found.in_sample, found.samples) == (f"'{case.data}'", True, 3)
    assert standing.run.records["verification"]["in_sample"]


def test_other_data_is_named(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case, verify_data=str(case.data))
    assert standing.lowered is not None
    proof = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify)
    assert proof.verification is not None
    assert proof.verification.data == f"'{case.data}'"
    assert not proof.verification.in_sample


def test_without_samples_nothing_is_compared(tmp_path: Path) -> None:
    standing = before("verify", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    proof = standing.run(verify, standing.subject, standing.lowered, VerifyOptions(0, drift=False))
    assert proof.verification is None
    assert standing.run.records["verification"] is None


def test_the_float_score_of_an_earlier_try_is_not_measured_again(tmp_path: Path) -> None:
    case = prepared(tmp_path, "transformer")
    (tmp_path / "judge.py").write_text(METRIC, encoding="utf8")
    standing = before("verify", case, metric=f"{tmp_path / 'judge.py'}:metric")
    assert standing.lowered is not None
    calls = tmp_path / "judge.calls"
    chosen = calls.stat().st_size  # by the metric, which is the goal
    first = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify)
    both = calls.stat().st_size - chosen
    again = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify, first)
    assert (both, calls.stat().st_size - chosen) == (2, 3)
    assert first.verification is not None
    assert again.verification is not None
    assert first.verification.score is not None
    assert again.verification.score == first.verification.score


def test_ranges_alone_are_judged_on_other_data_or_not_at_all(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    known = {"x": 5.0, "r1": 8.0, "r2": 12.0, "f": 5.0}
    (tmp_path / "ranges.json").write_text(json.dumps(known))
    for other in (None, str(case.data)):
        standing = before("verify", case, data=False, ranges=str(tmp_path / "ranges.json"), verify_data=other)
        assert standing.lowered is not None
        found = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify).verification
        assert (found is None) is (other is None)
    assert found is not None
    assert (found.samples, found.in_sample) == (24, False)
    assert found.worst_sqnr_db is not None
    assert found.worst_sqnr_db > 20


def compared(standing: Standing) -> tuple[Lowered, Verification]:
    assert standing.lowered is not None
    proof = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify)
    assert proof.verification is not None
    return standing.lowered, proof.verification


def test_no_sample_is_run_where_none_reaches_far(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    found = standing.run(check_finite, standing.subject, *compared(standing))
    assert found is not None
    assert standing.subject.parts is not None
    count = SAMPLES - standing.subject.parts.samples[2]
    record = standing.run.records["verification"]["finite"]
    assert record == {"samples": count, "failing": [], "output": "", "node": "", "run": 0, "why_all": ""}
    assert "0 of" in str(found)


def test_those_that_reach_far_are_run_and_all_where_nobody_knows_which_do(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    lowered, verification = compared(standing)
    places = [place for place in range(SAMPLES) if place not in verification.positions]
    name = next(iter(lowered.ranges))
    run = {}
    for where in (places[1], verification.positions[0], SAMPLES + 5, -1):
        far = Ranges({**lowered.ranges, name: Range(0.0, 3e38, where, where)})
        made = dataclasses.replace(lowered, ranges=far)
        found = standing.run(check_finite, standing.subject, made, verification)
        assert found is not None
        assert found.failing == ()
        run[where] = standing.run.records["verification"]["finite"]["run"]
        assert bool(found.why_all) == (where < 0)
    assert list(run.values()) == [1, 0, len(places), len(places)]


def test_where_nothing_is_compared_nothing_is_run(tmp_path: Path) -> None:
    standing = before("accept", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    assert standing.run(check_finite, standing.subject, standing.lowered, None) is None


@pytest.mark.parametrize(("least", "blamed"), [(None, False), (20.0, True)])
def test_who_is_to_blame_is_asked_where_a_gate_is_missed_and_not_where_all_holds(
    tmp_path: Path, least: float | None, blamed: bool
) -> None:
    standing = before("verify", prepared(tmp_path, "conv"))
    assert standing.lowered is not None
    reached = compared(standing)[1].worst_sqnr_db
    assert reached is not None
    gates = Gates(None if least is None else reached + least)
    options = dataclasses.replace(standing.asked.verify, close_db=reached + 1, gates=gates)
    found = standing.run(verify, standing.subject, standing.lowered, options).verification
    assert found is not None
    assert bool(found.suspects) is blamed
    assert found.layers
