"""What is visible inside: a graph's own things first, then those around it, as they are at the time."""

from __future__ import annotations

from collections import ChainMap

from hypothesis import given
from hypothesis import strategies as st

from qcompiler.support.scopes import within

levels = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers()), min_size=1, max_size=6)


@given(levels)
def test_the_innermost_meaning_of_a_name_counts(scopes: list[dict[str, int]]) -> None:
    seen = within({}, dict(scopes[0]))
    for one in scopes[1:]:
        seen = within(seen, dict(one))
    merged: dict[str, int] = {}
    for one in scopes:
        merged |= one
    assert dict(seen) == merged


@given(levels)
def test_a_chain_never_holds_another_chain(scopes: list[dict[str, int]]) -> None:
    seen = within({}, dict(scopes[0]))
    for one in scopes[1:]:
        seen = within(seen, dict(one))
    assert not isinstance(seen, ChainMap) or all(isinstance(one, dict) for one in seen.maps)


def test_both_are_seen_as_they_are_at_the_time() -> None:
    around, own = {"a": 1}, {"b": 2}
    seen = within(around, own)
    around["late"] = 3
    own["a"] = 4
    assert (seen["late"], seen["a"], seen["b"]) == (3, 4, 2)
    del own["a"]
    assert seen["a"] == 1


def test_only_the_own_scope_is_written_to() -> None:
    around, own = {"a": 1}, dict[str, int]()
    seen = within(around, own)
    seen["a"] = 2
    assert (around, own) == ({"a": 1}, {"a": 2})


def test_nothing_around_costs_nothing() -> None:
    own = {"a": 1}
    assert within({}, own) is own
