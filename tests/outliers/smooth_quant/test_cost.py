"""What choosing alphas is said to take grows with what there is to multiply."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from qcompiler.outliers.smooth_quant import cost
from qcompiler.planning.placement import candidates
from qcompiler.statistics.timed import timed
from tests.kit.cases import Case, prepared
from tests.kit.subjects import before


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepared(tmp_path_factory.mktemp("cost"), "transformer")


def seconds(case: Case, monkeypatch: pytest.MonkeyPatch, ticks: Any, *, only: int | None = None) -> float:
    """Seconds by a clock that says what it is told."""
    standing = before("observe", case)
    subject, points = standing.subject, standing.asked.watch
    assert subject.samples is not None
    assert subject.parts is not None
    known = timed(
        subject.model, points.points(subject.model, subject.layers.found), subject.samples, subject.parts, subject.axes
    )
    groups = candidates.by_activation(subject.layers.found)
    chosen = dict(itertools.islice(groups.items(), only))
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=ticks))
    return cost.seconds_of_choice(subject.model, chosen, known, calibrator="auto", per_channel=True, format="int8")


def test_one_group_takes_as_much_longer_as_more_alphas_are_tried(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    found = seconds(case, monkeypatch, lambda: float(next(clock)), only=1)
    assert found == pytest.approx(1.75)  # none, two and one between them, of none, four and two between them


def test_all_groups_take_longer_by_their_sizes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    every = seconds(case, monkeypatch, lambda: float(next(clock)))
    assert every > 3.5


def test_nothing_is_timed_where_there_is_nothing_to_choose(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    assert seconds(case, monkeypatch, lambda: float(next(clock)), only=0) == 0.0
    assert next(clock) == 0
