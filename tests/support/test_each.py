"""Items in turn: as they are asked for, in their order."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.support.each import in_turn


def scaling(factor: int) -> Callable[[int], int]:
    return lambda item: factor * item


def test_items_are_read_as_results_are_asked_for() -> None:
    read: list[int] = []
    results = in_turn("x", scaling, (3,), (read.append(item) or item for item in range(5)))  # type: ignore[func-returns-value]
    assert next(results) == 0
    assert read == [0]
    assert list(results) == [3, 6, 9, 12]
