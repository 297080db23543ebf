from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.products.turn_products import TurnProducts
from tests.kit.rewrite import check, check_untouched, model


def _left(x: tuple[Any, ...], *w: int) -> Any:
    weight = np.random.default_rng(5).standard_normal(w).astype(np.float32)
    return model(("MatMul", "w x", "y"), inputs={"x": x}, opset=18, weights={"w": weight})


@pytest.mark.parametrize(
    ("x", "w"),
    [
        pytest.param((32, "n"), (16, 32), id="matrix"),
        pytest.param(("n", 32, "s"), (16, 32), id="batch"),
        pytest.param((32, "n"), (3, 16, 32), id="stack of weights"),
        pytest.param((3, 32, "n"), (3, 16, 32), id="stack of both"),
        pytest.param(("n", 3, 32, 5), (3, 16, 32), id="a batch of stacks"),
    ],
)
def test_a_constant_on_the_left_comes_to_the_right(x: tuple[Any, ...], w: tuple[int, ...]) -> None:
    graph, _ = check(TurnProducts(), _left(x, *w), ops=["Transpose", "MatMul", "Transpose"], tolerance=2e-6)
    assert graph.nodes[1].inputs[1].shape[-2:] == (32, 16)
    assert graph.nodes[1].name == "Y"


def test_a_vector_needs_no_transposes() -> None:
    check(TurnProducts(), _left((32,), 16, 32), ops=["MatMul"], tolerance=2e-6)


def test_what_is_smaller_than_a_tile_stays() -> None:
    check_untouched(TurnProducts(), _left((32, "n"), 3, 32))


def test_a_constant_on_the_right_stays() -> None:
    weight = np.ones((32, 16), np.float32)
    check_untouched(TurnProducts(), model(("MatMul", "x w", "y"), inputs={"x": ("n", 32)}, weights={"w": weight}))
