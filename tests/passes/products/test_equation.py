from __future__ import annotations

import pytest

from qcompiler.passes.products._equation import parse


def test_letters_are_labels() -> None:
    found = parse("abc,cd->abd", [3, 2])
    assert not isinstance(found, str)
    assert found.operands == (("a", "b", "c"), ("c", "d"))
    assert found.result == ("a", "b", "d")


def test_axes_of_an_ellipsis_are_counted_from_the_end() -> None:
    found = parse(" ...ij, ... jk -> ...ik", [4, 3])
    assert not isinstance(found, str)
    assert found.operands == (("...-2", "...-1", "i", "j"), ("...-1", "j", "k"))
    assert found.result == ("...-2", "...-1", "i", "k")


def test_without_an_arrow_the_result_has_what_occurs_once() -> None:
    found = parse("ij,jk", [2, 2])
    assert not isinstance(found, str)
    assert found.result == ("i", "k")


def test_small_letters_stand_in_front_of_capitals_in_such_a_result() -> None:
    found = parse("Bj,ja", [2, 2])
    assert not isinstance(found, str)
    assert found.result == ("a", "B")


@pytest.mark.parametrize(
    ("text", "ranks", "why"),
    [
        pytest.param("ii->i", [2], "diagonal", id="diagonal"),
        pytest.param("...i,i->...", [None, 1], "rank", id="unknown rank"),
        pytest.param("ij,jk->iq", [2, 2], "result", id="label from nowhere"),
        pytest.param("ij,jk->ik", [2], "operands", id="too few operands"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, ranks: list[int | None], why: str) -> None:
    found = parse(text, ranks)
    assert isinstance(found, str)
    assert why in found
