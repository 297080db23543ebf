"""Initializers with the same numbers are stored once."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.passes.quantize.share_constants import ShareConstants
from tests.kit.rewrite import check, check_untouched, model

W = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)


def test_equal_weights_are_one() -> None:
    nodes = (("MatMul", "x w", "a"), ("MatMul", "x v", "b"), ("Add", "a b", "y"))
    graph, report = check(ShareConstants(), model(*nodes, weights={"w": W, "v": W.copy()}), tolerance=0)
    assert graph.nodes[0].inputs[1] is graph.nodes[1].inputs[1]
    assert "reads 'w' instead of 'v'" in report.notes[0].text


@pytest.mark.parametrize("other", [W + 1, W.astype(np.float64).astype(np.float32)[:, ::-1]], ids=["values", "order"])
def test_what_differs_stays(other: np.ndarray) -> None:
    nodes = (("MatMul", "x w", "a"), ("MatMul", "x v", "b"), ("Add", "a b", "y"))
    check_untouched(ShareConstants(), model(*nodes, weights={"w": W, "v": np.ascontiguousarray(other)}))


def test_the_same_bytes_in_another_shape_or_type_are_another_weight() -> None:
    nodes = (("MatMul", "x w", "a"), ("Reshape", "a to", "r"), ("MatMul", "r v", "y"))
    shaped = np.ascontiguousarray(W.reshape(32, 4))
    check_untouched(ShareConstants(), model(*nodes, weights={"w": W, "v": shaped, "to": np.array([2, 32])}))


def test_small_constants_stay_by_themselves() -> None:
    nodes = (("Add", "x a", "h"), ("Add", "h b", "y"))
    ones = np.ones(4, np.float32)
    check_untouched(ShareConstants(), model(*nodes, weights={"a": ones, "b": ones.copy()}))
