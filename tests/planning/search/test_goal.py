"""The goal: the cheapest point of a front that holds it, found in few looks, and points that the user picks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from qcompiler.errors import UsageError
from qcompiler.planning.search.goal import Check, Goal, GoalReached, choose, counted, picked
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType


@dataclass(frozen=True)
class Spot:
    """A point as the front has it."""

    share: float
    sqnr_db: float
    seconds: float | None = None
    restored: tuple[str, ...] = ()
    uses: Mapping[str, Use] = field(default_factory=dict)


FRONT = [Spot(1 - at / 20, 20.0 + at) for at in range(21)]
SQNR = Goal("sqnr", 25.0)


def looking(least_db: float) -> tuple[Callable[[Spot], Check], list[Spot]]:
    """A check that asks for so many dB, and what it has looked at."""
    seen: list[Spot] = []

    def holds(point: Spot) -> Check:
        seen.append(point)
        return Check(point.sqnr_db >= least_db, point.sqnr_db, 0.5)

    return holds, seen


def test_where_the_cheapest_holds_one_look_is_enough() -> None:
    holds, seen = looking(15.0)
    found = choose(FRONT, holds, SQNR)
    assert (found.at, len(seen), found.why) == (0, 1, "the cheapest plan holds the goal")


@pytest.mark.parametrize("least_db", [20.5, 23.0, 29.9, 39.5])
def test_the_cheapest_that_holds_is_found_by_halving(least_db: float) -> None:
    holds, seen = looking(least_db)
    found = choose(FRONT, holds, SQNR, most=12)
    assert FRONT[found.at].sqnr_db == math.ceil(least_db)
    assert found.check is not None
    assert found.check.holds
    assert len(seen) <= 6
    assert found.why == "the cheapest plan of the front that holds the goal"


def test_a_budget_ends_the_halving_with_a_plan_that_holds() -> None:
    holds, seen = looking(22.0)
    found = choose(FRONT, holds, SQNR, most=3)
    assert len(seen) == 3
    assert found.check is not None
    assert found.check.holds
    assert "of the 3 plans that were looked at" in found.why


def test_what_is_cheaper_than_the_searchs_plan_is_not_looked_at() -> None:
    holds, seen = looking(24.0)
    assert choose(FRONT, holds, SQNR, start=6).at == 6
    assert seen == [FRONT[6]]


def test_where_none_holds_the_most_accurate_that_the_floor_allows_is_taken() -> None:
    holds, _ = looking(100.0)
    assert choose(FRONT, holds, SQNR, most=12).at == 20
    found = choose(FRONT, holds, Goal("default", 25.0, min_share=0.9), most=12)
    assert (found.at, FRONT[found.at].share) == (2, 0.9)
    assert "with 90% quantized" in found.why
    assert found.check is not None
    assert not found.check.holds


def test_a_plan_in_doubt_has_a_lower_floor_where_there_is_one() -> None:
    goal = Goal("default", 25.0, min_share=0.9, doubtful_db=20.0, least_share=0.8)
    lower = goal.lowered(Check(False, 19.9, 0.0))
    assert lower is not None
    assert (lower.min_share, lower.target) == (0.8, 25.0)
    assert lower.lowered(Check(False, 19.9, 0.0)) is None
    assert [goal.lowered(one) for one in (None, Check(False, 20.0, 0.0), Check(True, 26.0, 0.0))] == [None] * 3
    assert Goal("default", 25.0, min_share=0.9).lowered(Check(False, 3.0, 0.0)) is None


def test_a_plan_below_the_floor_already_stays() -> None:
    holds, _ = looking(100.0)
    assert choose(FRONT, holds, Goal("default", 25.0, min_share=0.9), start=8).at == 8


@pytest.mark.parametrize(
    ("pick", "at"),
    [("fastest", 0), ("most-accurate", 19), (0, 0), (7, 7), (0.8, 4), (0.79, 4), (1.0, 0), (0.0, 20)],
)
def test_a_point_is_picked_by_word_id_or_share(pick: str | float, at: int) -> None:
    assert picked(FRONT, pick) == at


def test_the_knee_is_where_more_cost_begins_to_bring_little() -> None:
    bent = [Spot(1.0, 10), Spot(0.98, 20), Spot(0.95, 28), Spot(0.6, 30), Spot(0.3, 31), Spot(0.0, math.inf)]
    assert picked(bent, "knee") == 2
    assert picked(bent[:1], "knee") == 0


def test_time_outranks_the_share_where_it_is_known() -> None:
    timed = [Spot(0.9, 30, seconds=1.0), Spot(1.0, 20, seconds=2.0)]
    assert picked(timed, "fastest") == 0


def test_an_id_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="the front has 21 points, with ids from 0 to 20"):
        picked(FRONT, 21)


def test_a_plan_is_looked_at_once() -> None:
    seen = []

    def look(uses: Mapping[str, Use]) -> Check:
        seen.append(uses)
        return Check(True, 0.0, 0.0)

    once = counted(look)
    plan = {"x": Use(DType.INT8, 1.0), "a": Use(DType.FP8, 2.0)}
    once(plan)
    once(dict(reversed(plan.items())))
    once({"x": Use(DType.INT8, 1.5)})
    assert len(seen) == 2


def test_the_manifest_says_what_was_asked_and_reached() -> None:
    told = GoalReached(Goal("metric", 0.01), Check(True, 0.004, 0.002), "because", 3).to_json()
    assert told == {
        "kind": "metric",
        "target": 0.01,
        "figure": 0.004,
        "margin": 0.002,
        "unit": "relative",
        "likelihood": False,
        "objective": "share",
        "met": True,
        "checks": 3,
        "in_sample": "",
        "why": "because",
    }
    assert GoalReached(SQNR, None, "").to_json()["met"] is None
