from __future__ import annotations

from itertools import permutations

import numpy as np

from qcompiler.passes.layout._axes import back, between, straight, then


def test_orders_are_those_of_numpy() -> None:
    a = np.arange(24).reshape(2, 3, 4)
    for first in permutations(range(3)):
        assert np.array_equal(a.transpose(first).transpose(back(first)), a)
        assert then(first, back(first)) == straight(3)
        for second in permutations(range(3)):
            assert np.array_equal(a.transpose(first).transpose(second), a.transpose(then(first, second)))
            assert then(first, between(first, second)) == second
