"""Which tensors share one scale: what Concat joins, and what only moves values."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.planning.placement import shared_scales
from tests.kit.planning.convolutions import SAME, graph
from tests.kit.rewrite import Spec

DENSE: tuple[Spec, ...] = (("Relu", "x", "a"), ("Conv", "a w", "b", SAME), ("Concat", "a b", "y", {"axis": 1}))


def test_concat_joins_its_inputs_and_its_output() -> None:
    assert shared_scales.scale_groups(graph(*DENSE), {"a", "y"}) == [["a", "y"]]
    assert shared_scales.scale_groups(graph(*DENSE), {"a", "b", "y"}) == [["a", "b", "y"]]


def test_less_than_two_quantized_tensors_are_no_group() -> None:
    assert shared_scales.scale_groups(graph(*DENSE), {"y"}) == []
    assert (
        shared_scales.scale_groups(graph(*DENSE), {"x", "y"}) == []
    )  # Relu does not commute: it moves nothing through


@pytest.mark.parametrize(
    "node",
    [
        ("MaxPool", "a", "y", {"kernel_shape": [2, 2]}),
        ("Transpose", "a", "y"),
        ("Reshape", "a shape", "y"),
        ("Flatten", "a", "y"),
        ("Unsqueeze", "a axes", "y"),
        ("Squeeze", "a axes", "y"),
        ("Slice", "a axes shape", "y"),
        ("Gather", "a axes", "y"),
        ("Identity", "a", "y"),
        ("Split", "a", "y z", {"num_outputs": 2}),
    ],
    ids=lambda node: str(node[0]),
)
def test_what_only_moves_values_joins(node: Spec) -> None:
    made = graph(("Relu", "x", "a"), node, axes=np.array([0]), shape=np.array([-1]))
    assert shared_scales.scale_groups(made, {"a", "y", "axes"}) == [["a", "y"]]


@pytest.mark.parametrize(
    "node",
    [
        ("Resize", "a _ scales", "y", {"mode": "nearest"}),
        ("AveragePool", "a", "y", {"kernel_shape": [2, 2]}),
        ("Sigmoid", "a", "y"),
        ("Gather", "table i", "y"),
    ],
    ids=lambda node: str(node[0]),
)
def test_what_computes_does_not_join(node: Spec) -> None:
    nodes = (("Relu", "x", "a"), ("Cast", "a", "i", {"to": 7}), node)
    scales = np.array([1, 1, 2, 2], np.float32)
    made = graph(*nodes, scales=scales, table=np.ones((4, 4), np.float32))
    assert shared_scales.scale_groups(made, {"a", "i", "y"}) == []


def test_a_constant_in_two_concats_joins_nothing() -> None:
    nodes = (
        ("Relu", "x", "a"),
        ("Sigmoid", "x", "b"),
        ("Concat", "a k", "y", {"axis": 1}),
        ("Concat", "b k", "z", {"axis": 1}),
    )
    made = graph(*nodes, outputs=("y", "z"), k=np.ones((1, 1, 6, 6), np.float32))
    assert shared_scales.scale_groups(made, {"a", "b", "y", "z"}) == [["a", "y"], ["b", "z"]]


def test_groups_reach_through_tensors_without_a_pair_of_their_own() -> None:
    pooled = {"kernel_shape": [3, 3], **SAME}
    nodes = (("Relu", "x", "a"), ("MaxPool", "a", "m", pooled), ("Concat", "m x", "y", {"axis": 1}))
    assert shared_scales.scale_groups(graph(*nodes), {"a", "y"}) == [["a", "y"]]
