from __future__ import annotations

import pytest

from qcompiler.passes.products._budget import Budget


def test_what_comes_first_gets_it() -> None:
    budget = Budget(nodes=10, size=100)
    assert not budget.take(6, 60)
    assert budget.take(5, 10) == "it would become 5 nodes, and 4 of the 10 that one model gets are left"
    assert budget.take(1, 41) == "it would become 41 bytes of weights, and 40 of the 100 that one model gets are left"


def test_what_is_refused_takes_nothing() -> None:
    budget = Budget(nodes=10, size=100)
    assert budget.take(11, 0)
    assert budget.take(1, 101)
    assert not budget.take(10, 100)
    assert budget.take(1, 0)


@pytest.mark.parametrize(
    ("nodes", "size", "fits"), [(4096, 32 << 20, True), (4097, 0, False), (0, (32 << 20) + 1, False)]
)
def test_a_model_gets_so_much(nodes: int, size: int, fits: bool) -> None:
    assert (Budget().take(nodes, size) == "") is fits
