"""A typo is answered with the closest name, anything else with all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.support.suggest import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("precison", ["target", "precision"], "did you mean 'precision'?"),
        ("Precision", ["precision"], "did you mean 'precision'?"),
        ("выхот", ["вход", "выход"], "did you mean 'выход'?"),
        ("zzz", ["b", "a"], "known are: a, b"),
        ("", ["b", "a"], "known are: a, b"),
        ("x", [], "there are none"),
        ("x", {"y": 1}, "known are: y"),
    ],
)
def test_the_answer(name: str, known: list[str], answer: str) -> None:
    assert did_you_mean(name, known) == answer


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.data())
def test_a_known_name_is_closest_to_itself(known: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(known))
    assert did_you_mean(name, known) == f"did you mean '{name}'?"


@given(st.text(), st.lists(st.text(min_size=1)))
def test_the_order_of_what_is_known_does_not_matter(name: str, known: list[str]) -> None:
    assert did_you_mean(name, known) == did_you_mean(name, reversed(known))


def test_an_iterator_is_read_once() -> None:
    assert did_you_mean("fp9", iter(["fp8", "int8"])) == "did you mean 'fp8'?"
