"""Changes by noise removed per price: what is too loud counts, what is quiet enough asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from qcompiler.planning.search.moves import Board, Reached, changed, improve, quantized
from qcompiler.planning.search.prices import Limits, Prices
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType

INT8, FP8 = DType.INT8, DType.FP8
EIGHT, FLOAT8 = Use(INT8, 1.0), Use(FP8, 1.0)


def board(noises: dict[str, list[float]], macs: dict[str, int]) -> Board:
    uses = {name: {INT8: EIGHT} for name in noises}
    return Board(uses, {name: {INT8: np.array(one)} for name, one in noises.items()}, Prices(macs, sum(macs.values())))


def test_the_most_noise_for_the_price_goes_first() -> None:
    one = board({"a": [4.0], "b": [3.0], "c": [0.5]}, {"a": 40, "b": 10, "c": 10})
    begin = one.cheapest()
    assert begin == {"a": EIGHT, "b": EIGHT, "c": EIGHT}
    assert one.changes(begin, np.array([5.0]), lambda plan: True, 9) == [("b", None)]
    assert one.changes(begin, np.array([1.5]), lambda plan: True, 9) == [("b", None), ("a", None)]


def test_only_views_that_are_too_loud_count() -> None:
    one = board({"a": [9.0, 0.0], "b": [0.0, 2.0]}, {"a": 10, "b": 10})
    assert one.changes(one.cheapest(), np.array([10.0, 1.0]), lambda plan: True, 9) == [("b", None)]


def test_what_is_not_allowed_is_passed_over() -> None:
    one = board({"a": [4.0], "b": [3.0]}, {"a": 90, "b": 10})
    found = one.changes(one.cheapest(), np.array([0.0]), lambda plan: one.prices.share(plan) >= 0.5, 9)
    assert found == [("b", None)]


def test_a_better_format_is_a_change_as_well() -> None:
    uses = {"a": {INT8: EIGHT, FP8: FLOAT8}}
    noises = {"a": {INT8: np.array([4.0]), FP8: np.array([1.0])}}
    prices = Prices({"a": 10}, 10, {"a": {"int8": 1.0, "fp8": 2.0, "high": 9.0}})
    one = Board(uses, noises, prices)
    assert one.changes(one.cheapest(), np.array([2.0]), lambda plan: True, 9) == [("a", FLOAT8)]
    never = Board(uses, noises, prices, high=False)
    assert never.changes(never.cheapest(), np.array([0.0]), lambda plan: True, 9) == [("a", FLOAT8)]


def test_a_group_that_is_not_finite_goes_first() -> None:
    one = board({"a": [np.inf], "b": [3.0]}, {"a": 1000, "b": 1})
    assert one.changes(one.cheapest(), np.array([4.0]), lambda plan: True, 9) == [("a", None)]


def test_changes_are_applied_in_order_and_nothing_given_is_changed() -> None:
    begin = {"a": EIGHT, "b": EIGHT, "c": EIGHT}
    after = changed(begin, [("a", None), ("b", FLOAT8)])
    assert list(after) == ["b", "c", "a"]
    assert quantized(after) == {"b": FLOAT8, "c": EIGHT}
    assert begin == {"a": EIGHT, "b": EIGHT, "c": EIGHT}


class Adds:
    """Runs plans: what groups send to the outputs adds up; a tenth of the power of the outputs varies."""

    shares = np.array([0.1])

    def __init__(self, noises: Mapping[str, float]) -> None:
        self._noises = noises

    def noises(self, plan: Mapping[str, Use], *, few: bool = False) -> Any:
        return np.array([sum(self._noises[group] for group in plan)])


def improved(noises: dict[str, float], **limits: float) -> Reached:
    one = board({name: [noise] for name, noise in noises.items()}, dict.fromkeys(noises, 10))
    measure: Any = Adds(noises)
    begin = one.cheapest()
    return improve(measure, one, begin, measure.noises(quantized(begin)), Limits(25.0, 0.9, 8.0, **limits))  # type: ignore[arg-type]


LOUD = {f"g{k}": 0.02 for k in range(10)}


@pytest.mark.parametrize(
    ("noises", "left"),
    [
        (LOUD, 8),  # 7 dB: in doubt at any floor, so the lower one stands
        (
            {**LOUD, **{f"g{k}": 1e-5 for k in range(2, 10)}},
            8,
        ),  # 14 dB at the first floor, out of doubt at the lower one
        ({**LOUD, "g1": 0.006, **{f"g{k}": 1e-5 for k in range(2, 10)}}, 9),  # 22 dB: short of the goal, not in doubt
    ],
)
def test_in_doubt_the_floor_is_a_lower_one(noises: dict[str, float], left: int) -> None:
    found = improved(noises, doubtful_db=20.0, least_share=0.8)
    assert len(quantized(found.chosen)) == left
    assert len(quantized(improved(noises).chosen)) == 9


def test_every_plan_that_was_run_is_known() -> None:
    noises = {**dict.fromkeys(LOUD, 1e-5), "g0": 0.02, "g1": 1e-3, "g2": 1e-3}
    one = board({name: [10 * noise] for name, noise in noises.items()}, dict.fromkeys(noises, 10))
    measure: Any = Adds(noises)
    begin = one.cheapest()
    found = improve(measure, one, begin, measure.noises(quantized(begin)), Limits(25.0, 0.0, 8.0))
    assert found.ran[0][0] == begin
    assert [db for _, db in found.ran] == [step.sqnr_db for step in found.curve][: len(found.ran)]
    assert found.chosen in [plan for plan, _ in found.ran]
