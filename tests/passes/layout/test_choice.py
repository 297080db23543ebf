from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qcompiler.passes.layout._choice import Moved, Problem, choose

A, B, C = (0, 1), (1, 0), (2, 0)


def test_operators_stay_where_nothing_is_won() -> None:
    problem = Problem([{A: 0, B: 1}], [Moved(10, A, (0,)), Moved(10, 0, (B,))])
    assert choose(problem, [A]) == [A]


def test_an_operator_between_two_transposes_moves() -> None:
    problem = Problem([{A: 1, B: 0}], [Moved(10, A, (0,)), Moved(10, 0, (A,))])
    assert choose(problem, [B]) == [A]


def test_one_that_cannot_move_stays() -> None:
    problem = Problem([{B: 0}], [Moved(10, A, (0,)), Moved(10, 0, (A,))])
    assert choose(problem, [B]) == [B]


def test_a_copy_serves_all_that_read_it() -> None:
    problem = Problem([], [Moved(10, A, (B, B, A, C))])
    assert problem.total([]) == 20


@pytest.mark.parametrize("seed", range(12))
def test_of_two_layouts_the_best_choice_is_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = 6
    places = [*range(count), A, B]
    tensors = [
        Moved(
            int(random.integers(1, 9)), places[random.integers(8)], tuple(places[i] for i in random.integers(8, size=3))
        )
        for _ in range(9)
    ]
    problem = Problem([{A: int(random.integers(3)), B: int(random.integers(3))} for _ in range(count)], tensors)
    found = choose(problem, [A] * count)
    assert problem.total(found) == min(problem.total(one) for one in product((A, B), repeat=count))


def test_three_layouts_do_not_get_worse() -> None:
    problem = Problem(
        [{A: 0, B: 0, C: 0}, {A: 0, B: 0, C: 0}],
        [Moved(10, C, (0,)), Moved(10, 0, (1,)), Moved(10, 1, (C,)), Moved(3, A, (0,))],
    )
    found = choose(problem, [A, B])
    assert problem.total(found) < problem.total([A, B])
