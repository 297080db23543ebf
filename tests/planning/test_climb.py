"""Where everything quantized at once stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcompiler.planning.climb import Climb, Standing, goal_of, main_format, spiking
from qcompiler.planning.ready import prepared
from qcompiler.recipe.tables import QfemTable
from qcompiler.target import DType
from tests.kit import glu
from tests.kit.subjects import of_net


def climb(tmp_path: Path, planted: Any, **recipe: Any) -> Climb:
    standing = of_net("calibrate", glu.stack(layers=2, **planted), glu.feeds(16), tmp_path, **recipe)
    subject, asked = standing.subject, standing.asked
    ready = prepared(subject.model, subject.layers, subject.seen, asked.planning, asked.target)
    assert ready.simulation is not None
    return Climb(ready, ready.simulation, asked.planning)


def test_the_best_ranges_are_no_worse_than_the_first(tmp_path: Path) -> None:
    one = climb(tmp_path, {"channels": (40.0,)})
    first, runs = one.first(), one.runs
    best = one.best()
    assert best.sqnr_db >= first.sqnr_db
    assert one.runs > runs
    assert first.goal_db == 25.0
    assert 0.9 < first.share <= 1.0
    assert one.first() == first  # and nothing is run again for it
    assert one.best() == best


def test_layers_that_spike_are_left_out_of_the_calm_figure(tmp_path: Path) -> None:
    found = climb(tmp_path, {"spiking": (1,)}).first()
    assert found.calm_db > found.sqnr_db + 5


def test_a_standing_knows_what_is_missing() -> None:
    assert Standing(25.0, 20.0, 20.0, 1.0).missing_db == 5.0
    assert not Standing(25.0, 20.0, 20.0, 1.0).met
    assert Standing(25.0, 26.0, 26.0, 1.0).missing_db == 0.0
    assert Standing(25.0, 26.0, 26.0, 1.0).met


def test_a_gate_is_the_goal_and_a_number_set_by_hand_stands_beside_it(tmp_path: Path) -> None:
    planning = of_net("calibrate", glu.stack(layers=1), glu.feeds(8), tmp_path, min_sqnr=10.0).asked.planning
    assert goal_of(planning) == 10.0
    assert goal_of(replace(planning, min_sqnr=None)) == 25.0
    by_hand = replace(planning.safety, target_sqnr_db=30.0)
    assert goal_of(replace(planning, safety=by_hand)) == 30.0
    assert main_format(planning) is DType.INT8
    assert main_format(replace(planning, formats=(DType.FP8,))) is DType.FP8


@pytest.mark.parametrize(("alpha", "count"), [("auto", 1), ("off", 0), (2000.0, 0)])
def test_what_spikes_is_what_qfem_would_spare(tmp_path: Path, alpha: Any, count: int) -> None:
    subject = of_net("calibrate", glu.stack(layers=2, spiking=(1,)), glu.feeds(8), tmp_path).subject
    names = list(subject.layers.by_activation)
    assert len(spiking(names, subject.seen, QfemTable(alpha=alpha))) == count
    assert spiking(names[:1], subject.seen, QfemTable(alpha=1.0)) == frozenset()  # all of them would be apart
