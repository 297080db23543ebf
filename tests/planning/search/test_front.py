"""The front: cheapest first, each more accurate than those before; what was run is told from what is predicted."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.planning.search.front import MOST_POINTS, FrontPoint, front_of, single
from qcompiler.planning.search.moves import Board, Reached, Step
from qcompiler.planning.search.prices import Assignment, Prices
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType

INT8 = DType.INT8
USE = Use(INT8, 1.0)


def found(groups: int, high: int) -> tuple[Board, Assignment, tuple[FrontPoint, ...]]:
    """A front of so many groups, of which the first are in high precision where the search ended."""
    names = [f"g{i}" for i in range(groups)]
    noises = {name: {INT8: np.array([0.01 / (i + 1)])} for i, name in enumerate(names)}
    board = Board({name: {INT8: USE} for name in names}, noises, Prices(dict.fromkeys(names, 10), 10 * groups))
    begin = board.cheapest()
    ended: Assignment = {name: None if i < high else USE for i, name in enumerate(names)}
    share = 1 - high / groups
    reached = Reached(ended, (Step(1.0, 12.0), Step(share, 25.0)), np.array([1.2]))
    return board, ended, front_of(board, begin, 12.0, reached)


def test_it_goes_from_cheap_to_accurate_and_marks_what_was_run() -> None:
    _, ended, front = found(10, 3)
    assert front[0].measured
    assert front[0].sqnr_db == 12.0
    (chosen,) = (point for point in front if point.chosen)
    assert chosen.measured
    assert set(chosen.restored) == {name for name, use in ended.items() if use is None}
    assert [point.share for point in front] == sorted((point.share for point in front), reverse=True)
    assert front[-1].share == 0
    for point in front:
        assert {*point.restored, *point.uses} == set(ended)


def test_what_was_run_behind_the_end_of_the_search_stands_on_it() -> None:
    board, ended, _ = found(10, 1)
    stricter: Assignment = {**ended, "g1": None, "g2": None}
    louder: Assignment = {**ended, "g0": USE, "g9": None}
    ran = ((board.cheapest(), 12.0), (stricter, 31.0), (louder, 14.0), (ended, 25.5))
    reached = Reached(ended, (Step(1.0, 12.0), Step(0.9, 25.5)), np.array([40.0]), ran)
    front = front_of(board, board.cheapest(), 12.0, reached)
    chosen = next(at for at, point in enumerate(front) if point.chosen)
    assert set(front[chosen + 1].restored) == {"g0", "g1", "g2"}
    assert (front[chosen + 1].sqnr_db, front[chosen + 1].measured) == (31.0, True)
    assert all(
        "g9" not in point.restored or len(point.restored) > 1 for point in front
    )  # less than the end, not wanted


def test_a_long_front_is_thinned_and_keeps_what_was_run() -> None:
    _, _, front = found(300, 40)
    assert len(front) <= MOST_POINTS + 2
    assert sum(point.measured for point in front) == 2
    assert any(point.chosen for point in front)


def test_a_search_that_ended_where_it_began_has_one_point() -> None:
    board, _, _ = found(4, 1)
    (point,) = single(board, board.cheapest(), 31.0)
    assert (point.share, point.sqnr_db, point.restored, point.chosen) == (1.0, 31.0, (), True)


def test_the_record_is_plain_data() -> None:
    _, _, front = found(4, 1)
    told = front[0].to_json(0)
    assert told["id"] == 0
    assert told["formats"] == dict.fromkeys(front[0].uses, "int8")
    assert told["share"] == pytest.approx(1.0)
    assert set(told) == {
        "id", "share", "sqnr_db", "predicted_s", "bytes", "high", "formats", "measured", "chosen",
    }  # fmt: skip
