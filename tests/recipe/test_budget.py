"""How long may be searched, and how many runs that is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qcompiler.recipe.budget import (
    EFFORTS,
    LEAST_RUN,
    LEAST_RUNS,
    SPEED,
    budget_of,
    duration,
    for_layers,
    runs_for,
    runs_in,
    seconds_of,
)
from qcompiler.recipe.checks import WrongError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("2m", 120.0), ("1.5h", 5400.0), ("250ms", 0.25), (" 2 m ", 120.0), ("30", 30.0), (45, 45.0)],
)
def test_a_time_is_seconds(text: Any, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "2x", "-1s", "0", 0, -3, math.inf, "inf", True, None, "2m30s"])
def test_no_time_is_told_what_one_looks_like(text: Any) -> None:
    with pytest.raises(WrongError, match="a time such as 90s, 2m or 1h, or a number of seconds, above 0"):
        duration(text)


def test_a_time_of_the_users_takes_the_place_of_the_effort() -> None:
    assert seconds_of("quick", None) < seconds_of("balanced", None) < seconds_of("thorough", None)
    assert {seconds_of(effort, 7.0) for effort in EFFORTS} == {7.0}


def test_a_time_pays_for_the_more_runs_the_smaller_the_model_is() -> None:
    assert runs_in(30.0, SPEED) == 30
    assert runs_in(30.0, 10 * SPEED) == 3
    assert runs_in(60.0, SPEED) == 60
    assert runs_in(1.0, 0) == runs_in(1.0, 1000) == round(1.0 / LEAST_RUN)
    assert runs_in(0.1, 1e15) == 1


def test_a_search_costs_a_few_passes_over_the_data() -> None:
    assert budget_of("balanced", None, 10 * SPEED, 64) == 4 * 64
    assert budget_of("balanced", None, 10 * SPEED, 512) == 4 * 64
    assert budget_of("quick", None, 10 * SPEED, 64) == 32
    assert budget_of("balanced", None, 10 * SPEED, 2) == LEAST_RUNS
    assert budget_of("balanced", None, 0, 2) == round(2.0 / LEAST_RUN)
    assert budget_of("balanced", 10.0, SPEED, 64) == 10


def test_the_search_for_layers_leaves_half_of_what_an_effort_pays_for_and_uses_a_time_of_the_users() -> None:
    assert for_layers("balanced", None, 10 * SPEED, 64) == 2 * 64
    assert for_layers("balanced", None, 10 * SPEED, 2) == LEAST_RUNS
    assert for_layers("balanced", None, 0, 64) == budget_of("balanced", None, 0, 64)  # a moment is none to be halved
    assert for_layers("thorough", None, 10 * SPEED, 64) == budget_of("thorough", None, 10 * SPEED, 64)
    assert for_layers("balanced", 10.0, SPEED, 64) == 10


def test_few_samples_leave_the_runs_that_tell_layers_apart_and_a_time_of_the_users_is_kept() -> None:
    assert runs_for(32, "balanced", None, 120) == 240
    assert runs_for(256, "balanced", None, 120) == 256
    assert runs_for(32, "quick", None, 120) == 32
    assert runs_for(32, "balanced", 5.0, 120) == 32
