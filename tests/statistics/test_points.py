"""Points: what is wanted, each name once, and what two of them want together."""

from __future__ import annotations

import pytest

from qcompiler.statistics.points import Points


def test_other_statistics_need_histograms_and_tensors_but_ranges_none() -> None:
    points = Points.of(
        histograms=["b", "a", "b"], outliers={"c": 1}, rows={"d": -1}, hessians={"e": 8}, ranges=["g"], flags=["f"]
    )
    assert points.histograms == ("b", "a")
    assert points.counted == ("b", "a", "c")
    assert points.tensors == ("b", "a", "c", "d", "e", "f")
    assert Points().tensors == ()


def test_two_are_joined_in_the_order_of_the_first() -> None:
    one = Points.of(histograms=["a", "b"], outliers={"a": 1}, ranges=["r"])
    other = Points.of(histograms=["c", "a"], outliers={"c": -1, "a": 1}, hessians={"h": 4})
    assert one | other == Points.of(
        histograms=["a", "b", "c"], outliers={"a": 1, "c": -1}, hessians={"h": 4}, ranges=["r"]
    )
    assert one | one == one
    assert hash(one | Points()) == hash(one)


@pytest.mark.parametrize("what", ["outliers", "rows", "hessians"])
def test_a_tensor_cannot_be_wanted_in_two_ways(what: str) -> None:
    one, other = Points.of(**{what: {"a": 1}}), Points.of(**{what: {"a": 2}})
    with pytest.raises(ValueError, match="tensor 'a' is wanted with 1 and with 2"):
        _ = one | other
