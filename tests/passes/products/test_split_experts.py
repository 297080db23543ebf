from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.products.split_experts import SplitExperts
from tests.kit.rewrite import check, check_skipped, check_untouched, model


def _weight(*shape: int, spread: float = 1.0) -> Any:
    values = np.random.default_rng(5).standard_normal(shape)
    sizes = np.geomspace(1, spread, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (values * sizes).astype(np.float32)


def _stack(x: tuple[Any, ...], w: Any) -> Any:
    return model(("MatMul", "x w", "y"), inputs={"x": x}, opset=18, weights={"w": w})


EACH = ["MatMul", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("x", "w", "ops"),
    [
        pytest.param((3, "s", 80), (3, 80, 96), ["Split", *EACH, "Concat"], id="rows of each"),
        pytest.param(("n", 3, "s", 80), (3, 80, 96), ["Split", *EACH, "Concat"], id="a batch of them"),
        pytest.param((1, "s", 80), (3, 80, 96), [*EACH, "Concat"], id="the same rows for all"),
        pytest.param(("s", 80), (3, 80, 96), ["Unsqueeze", *EACH, "Concat"], id="one matrix for all"),
        pytest.param((3, "s", 80), (3, 1, 80, 96), ["Unsqueeze", *EACH, "Concat"], id="an axis in front"),
        pytest.param(("n", "s", 80), (1, 80, 96), ["MatMul"], id="no stack"),
        pytest.param(("s", 80), (1, 80, 96), ["Unsqueeze", "MatMul"], id="no stack, one axis more"),
        pytest.param(("n", "s", 40), (1, 40, 48), ["MatMul"], id="no stack, a small one"),
    ],
)
def test_each_matrix_gets_a_product(x: tuple[Any, ...], w: tuple[int, ...], ops: list[str]) -> None:
    graph, _ = check(SplitExperts(), _stack(x, _weight(*w)), ops=ops, tolerance=2e-6)
    assert all(len(node.inputs[1].shape) == 2 for node in graph.nodes if node.op == "MatMul")


def test_two_axes_are_taken_apart_one_after_the_other() -> None:
    graph, report = check(SplitExperts(), _stack(("n", 2, 3, "s", 80), _weight(2, 3, 80, 96)), tolerance=2e-6)
    assert sum(node.op == "MatMul" for node in graph.nodes) == 6
    assert [note.text for note in report.notes] == ["6 products"]


def test_the_parts_are_called_after_the_whole() -> None:
    graph, _ = check(SplitExperts(), _stack((3, "s", 80), _weight(3, 80, 96)), tolerance=2e-6)
    assert [node.name for node in graph.nodes if node.op == "MatMul"] == ["Y/expert", "Y/expert_1", "Y/expert_2"]


@pytest.mark.parametrize(
    ("x", "w", "why"),
    [
        pytest.param((40, "s", 80), (40, 80, 96), "too many", id="many"),
        pytest.param((3, "s", 32), (3, 32, 32), "too small", id="small"),
        pytest.param(("e", "s", 80), (3, 80, 96), "size 'e'", id="not known how many"),
    ],
)
def test_others_are_made_alike(x: tuple[Any, ...], w: tuple[int, ...], why: str) -> None:
    weight = _weight(*w, spread=50)
    graph, report = check(SplitExperts(), _stack(x, weight), ops=["MatMul", "Mul"], tolerance=2e-6)
    assert why in report.notes[0].text
    ranges = np.abs(graph.nodes[0].inputs[1].values).max(axis=-2)
    assert np.allclose(ranges, ranges.max(axis=0), rtol=1e-5)


def test_an_expert_of_zeros_stays_zero() -> None:
    weight = _weight(3, 32, 32, spread=50)
    weight[1] = 0
    check(SplitExperts(), _stack((3, "s", 32), weight), ops=["MatMul", "Mul"], tolerance=2e-6)


def test_what_is_alike_and_together_stays_together() -> None:
    check_skipped(SplitExperts(), _stack((3, "s", 32), _weight(3, 32, 32)), "too small")


def test_weights_that_are_gathered_are_not_looked_at() -> None:
    proto = model(
        ("Gather", "w i", "g"),
        ("MatMul", "x g", "y"),
        inputs={"x": (2, 5, 80), "i": (np.int64, (2,))},
        weights={"w": _weight(3, 80, 96)},
    )
    check_untouched(SplitExperts(), proto)
