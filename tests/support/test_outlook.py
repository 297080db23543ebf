"""What is left of a run: by what was foreseen at first, by how it goes then."""

from __future__ import annotations

import pytest

from qcompiler.support.outlook import Outlook, rounded


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(outlook: Outlook, hands: Hands, stage: str, seconds: float) -> None:
    outlook.began(stage)
    hands.now += seconds
    outlook.ended()


def test_before_anything_has_run_it_is_what_was_foreseen() -> None:
    assert Outlook({"a": 10, "b": 30}, Hands()).left == 40
    assert Outlook({}, Hands()).left == 0


def test_what_goes_as_foreseen_leaves_the_rest_as_foreseen() -> None:
    hands = Hands()
    outlook = Outlook({"a": 10, "b": 30, "c": 60}, hands)
    run(outlook, hands, "a", 10)
    assert outlook.left == pytest.approx(90)
    outlook.began("b")
    hands.now += 10
    assert outlook.left == pytest.approx(80)


@pytest.mark.parametrize("slower", [0.2, 0.5, 3.0, 8.0])
def test_after_a_quarter_a_machine_of_another_speed_is_seen_through(slower: float) -> None:
    hands = Hands()
    foreseen = {"a": 25.0, "b": 25.0, "c": 50.0}
    outlook = Outlook(foreseen, hands)
    run(outlook, hands, "a", 25 * slower)
    really = 75 * slower
    assert really / 2 < outlook.left < 2 * really


def test_a_stage_that_has_a_bar_is_judged_by_it_the_more_the_further_it_is() -> None:
    hands = Hands()
    outlook = Outlook({"a": 10}, hands)
    outlook.began("a")
    hands.now += 9
    outlook.reached(0.5)
    assert outlook.left == pytest.approx(0.5 * 9 + 0.5 * 2.25)  # 9 s more by the bar; by the plan it is overdue
    outlook.reached(1.0)
    assert outlook.left == 0


def test_a_stage_that_takes_longer_than_foreseen_is_never_said_to_be_done() -> None:
    hands = Hands()
    outlook = Outlook({"a": 10}, hands)
    outlook.began("a")
    hands.now += 40
    assert outlook.left == 10


def test_what_was_passed_by_is_not_waited_for() -> None:
    hands = Hands()
    outlook = Outlook({"a": 10, "b": 20, "c": 30}, hands)
    run(outlook, hands, "b", 20)  # `a` found nothing to do
    assert outlook.left == pytest.approx(30)


def test_a_stage_that_runs_again_brings_back_those_behind_it() -> None:
    hands = Hands()
    outlook = Outlook({"decide": 10, "lower": 20, "verify": 30}, hands)
    for stage, seconds in (("decide", 10), ("lower", 20), ("verify", 30)):
        run(outlook, hands, stage, seconds)
    assert outlook.left == 0
    outlook.began("decide")
    assert outlook.left == pytest.approx(60)


def test_a_stage_that_nobody_foresaw_changes_nothing() -> None:
    hands = Hands()
    outlook = Outlook({"a": 10}, hands)
    run(outlook, hands, "write", 5)
    assert outlook.left == 10
    outlook.ended()
    assert outlook.left == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "under 1 s"), (7.4, "7 s"), (42, "40 s"), (170, "3 min"), (4800, "1 h 20 min")],
)
def test_seconds_are_told_as_coarsely_as_they_are_known(seconds: float, text: str) -> None:
    assert rounded(seconds) == text
