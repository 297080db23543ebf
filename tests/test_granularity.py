"""Granularity: plain values that compare by content."""

from __future__ import annotations

import dataclasses

import pytest

from qcompiler.granularity import Granularity, PerAxis, PerBlock, PerTensor


def test_granularities_are_values() -> None:
    assert len({PerTensor(), PerTensor(), PerAxis(0), PerAxis(0), PerAxis(1), PerBlock(0, 32), PerBlock(0, 64)}) == 5


@pytest.mark.parametrize("one", [PerAxis(0), PerBlock(0, 32)])
def test_granularities_cannot_be_changed(one: Granularity) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.axis = 1  # type: ignore[misc, union-attr]


def test_the_union_names_all_three() -> None:
    assert all(isinstance(one, Granularity) for one in (PerTensor(), PerAxis(1), PerBlock(0, 16)))
