"""The stage that makes the plan, and what is tried next where a gate was missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcompiler.compiler.stages.decide import decide, stricter
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.verify import verify
from qcompiler.compiler.subject import Planned
from qcompiler.recipe.tables import SafetyTable, WeightOnlyTable
from qcompiler.target import DType
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from tests.kit.cases import QUANTIZED, prepared
from tests.kit.subjects import Standing, before


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_every_layer_that_can_be_is_quantized_with_a_reason(tmp_path: Path, name: str) -> None:
    standing = before("decide", prepared(tmp_path, name))
    decided = standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    plan = decided.chosen.plan
    assert {one.node for one in plan.quantized()} == QUANTIZED[name]
    assert all(one.why for one in plan)
    assert standing.run.records["safety"] == replace(decided.chosen.net, front=())
    assert standing.run.records["goal"]["met"] is True


def test_float_precisions_quantize_nothing_and_count_the_work(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "conv"), data=False, precision="bf16")
    decided = standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    plan = decided.chosen.plan
    assert {one.rule for one in plan} == {"float"}
    assert plan.share() == 0
    assert all(one.macs > 0 and one.precision is DType.BF16 for one in plan)


def _proved(standing: Standing, planned: Planned) -> Verification:
    lowered = standing.run(lower, standing.subject, planned, standing.asked.target, standing.asked.lower)
    found = standing.run(verify, standing.subject, lowered, standing.asked.verify).verification
    assert found is not None
    return found


def test_a_missed_gate_starts_a_search_and_goes_along_its_front(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "transformer"))
    planning, target = standing.asked.planning, standing.asked.target
    decided = standing.run(decide, standing.subject, target, planning)
    found = _proved(standing, decided)
    assert len(decided.chosen.net.front) == 1  # the first plan was good enough
    held, missed = Gates(min_sqnr=-50.0), Gates(min_sqnr=190.0)
    assert stricter(standing.subject, planning, decided, found, held) is None
    assert stricter(standing.subject, planning, decided, None, missed) is None
    assert stricter(standing.subject, replace(planning, pick="knee"), decided, found, missed) is None
    tries, closer = [decided], planning
    while again := stricter(standing.subject, closer, tries[-1], found, missed):
        subject, closer = again
        assert subject is standing.subject
        tries.append(standing.run(decide, subject, target, closer, tries[-1]))
        assert len(tries) < 30
    assert len(tries) > 2
    assert len(tries[1].chosen.net.front) > 1
    assert planning.safety == SafetyTable()  # as it was handed on
    shares = [one.chosen.plan.share() for one in tries]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] < shares[0]
    last = [one for one in tries[-1].chosen.net.front if one.uses][-1]
    assert last.chosen
    assert tries[-1].chosen.goal is not None
    assert "the next point of the front" in tries[-1].chosen.goal.why


def test_stored_weights_go_back_where_nothing_else_can(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "precision": "int4-weight",
        "weight_only": WeightOnlyTable(method="rtn", block_size=32),
        "safety": SafetyTable(min_share=0.0),
    }
    standing = before("verify", prepared(tmp_path, "transformer"), **recipe)
    assert standing.decided is not None
    assert standing.lowered is not None
    assert standing.subject.stored is not None
    proof = standing.run(verify, standing.subject, standing.lowered, standing.asked.verify)
    again = stricter(
        standing.subject, standing.asked.planning, standing.decided, proof.verification, Gates(min_sqnr=190.0)
    )
    assert again is not None
    assert again[0].stored is not None
    assert len(again[0].stored.restored) == 1
    assert not standing.subject.stored.restored  # as it was handed on


RANGES = '{"x": 4.5, "r1": [0.0, 6.0], "r2": 7.0, "f": 3.0}'


def test_ranges_alone_make_a_plan_without_a_search(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text(RANGES)
    standing = before("decide", prepared(tmp_path, "conv"), data=False, ranges=str(tmp_path / "ranges.json"))
    decided = standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    plan = decided.chosen.plan
    assert {one.node for one in plan.quantized()} >= {"C1", "C2", "C3"}
    assert {(one.calibrator, one.observed) for one in plan.quantizers.values()} == {("given", None)}
    assert {name: plan.quantizers[name].amax for name in ("x", "r1", "r2")} == {"x": 4.5, "r1": 6.0, "r2": 7.0}
    assert not decided.chosen.net.curve


@pytest.mark.parametrize("target", ["tensorrt-rtx", "onnxruntime"])
def test_ranges_beside_data_win_and_the_rest_is_measured(tmp_path: Path, target: str) -> None:
    (tmp_path / "ranges.json").write_text('{"x": 4.5, "r2": 7.0}')
    case = prepared(tmp_path, "conv")
    standing = before("decide", case, ranges=str(tmp_path / "ranges.json"), target=target)
    decided = standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    quantizers = decided.chosen.plan.quantizers
    given = {name: one.amax for name, one in quantizers.items() if one.calibrator == "given"}
    assert given == {"x": 4.5, "r2": 7.0}
    assert quantizers["r1"].calibrator != "given"
    assert quantizers["x"].observed is not None
    assert "the range of its activation was given" in decided.chosen.plan.decisions["C1"].why


def test_what_was_seen_of_every_activation_is_told_in_a_few_bars(tmp_path: Path) -> None:
    standing = before("decide", prepared(tmp_path, "conv"))
    decided = standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    bars = standing.run.records["histograms"]
    assert set(bars) == set(decided.chosen.plan.quantizers)
    for name, one in bars.items():
        assert one["maximum"] <= standing.subject.seen.histograms[name].amax
        assert sum(one["counts"]) + one["zeros"] + one["below"] == one["elements"]
