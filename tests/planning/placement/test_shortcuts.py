"""Placement beyond single layers: which input of a residual Add is the shortcut, and what Concat joins."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.planning.placement import candidates, shared_scales, shortcuts
from qcompiler.planning.placement.shortcuts import Shortcut
from qcompiler.target import parse_target
from tests.kit.rewrite import Spec, model, to_graph

RTX, FULL = parse_target("tensorrt-rtx"), parse_target("tensorrt")
SAME = {"pads": [1, 1, 1, 1]}
W = np.random.default_rng(3).standard_normal((8, 8, 3, 3)).astype(np.float32)
POINT = W[:, :, :1, :1].copy()
BLOCK: tuple[Spec, ...] = (("Conv", "x w", "c", SAME), ("Relu", "c", "r"), ("Conv", "r w", "d", SAME))


def graph(*nodes: Spec, outputs: tuple[str, ...] = ("y",), inputs: Any = None, **weights: Any) -> gs.Graph:
    inputs = inputs or {"x": (1, 8, 6, 6)}
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights={"w": W, "p": POINT, **weights}, opset=21))


@pytest.mark.parametrize(("reads", "index"), [("d x", 1), ("x d", 0)])
def test_the_shortcut_is_the_input_that_does_not_come_out_of_the_convolution(reads: str, index: int) -> None:
    found, refused = shortcuts.find_shortcuts(graph(*BLOCK, ("Add", reads, "y")))
    assert found == [Shortcut("Y", "D", "x", index)]
    assert refused == []


@pytest.mark.parametrize(("reads", "index"), [("d s", 1), ("s d", 0)])
def test_of_two_convolutions_the_one_on_the_longer_way_fuses(reads: str, index: int) -> None:
    found, _ = shortcuts.find_shortcuts(graph(*BLOCK, ("Conv", "x p", "s"), ("Add", reads, "y")))
    assert found == [Shortcut("Y", "D", "s", index)]


def test_a_shortcut_that_is_an_add_itself_is_found() -> None:
    nodes = (*BLOCK, ("Add", "d x", "e"), ("Relu", "e", "f"), ("Conv", "f w", "g", SAME), ("Add", "g e", "y"))
    found, _ = shortcuts.find_shortcuts(graph(*nodes))
    assert found == [Shortcut("E", "D", "x", 1), Shortcut("Y", "G", "e", 1)]


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((*BLOCK, ("Relu", "d", "e"), ("Add", "e x", "y")), "Relu 'E' stands between 'D' and the Add"),
        # as in ConvNeXt: the block starts at the convolution, so that it is read on both ways
        ((("Conv", "x w", "c", SAME), ("Tanh", "c", "t"), ("Add", "t c", "y")), "stands between"),
        ((("Conv", "x w", "c", SAME), ("Softmax", "c", "t"), ("Add", "t c", "y")), "'C' writes is read elsewhere too"),
    ],
)
def test_where_no_convolution_can_fuse_the_reason_says_why(nodes: tuple[Spec, ...], why: str) -> None:
    found, (refused,) = shortcuts.find_shortcuts(graph(*nodes))
    assert found == []
    assert (refused.node, refused.op, refused.rule) == ("Y", "Add", "residual-float")
    assert why in refused.why


def test_a_convolution_that_is_a_graph_output_does_not_fuse() -> None:
    found, (refused,) = shortcuts.find_shortcuts(graph(*BLOCK, ("Add", "d x", "y"), outputs=("y", "d")))
    assert found == []
    assert "read elsewhere" in refused.why


@pytest.mark.parametrize(
    "nodes",
    [
        [("Conv", "x w", "c", SAME), ("Add", "c b", "y")],
        [("Conv", "x w", "c", SAME), ("GlobalAveragePool", "c", "g"), ("Conv", "x w", "d", SAME), ("Add", "d g", "y")],
        [("Relu", "x", "r"), ("Add", "r x", "y")],
        [("Add", "x x", "y")],
    ],
    ids=["bias", "broadcast", "no convolution", "doubled"],
)
def test_other_adds_are_no_residuals(nodes: list[Spec]) -> None:
    assert shortcuts.find_shortcuts(graph(*nodes, b=np.ones((8, 1, 1), np.float32))) == ([], [])


def test_a_shortcut_that_came_quantized_is_left_alone() -> None:
    scale, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    pair = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "xd"))
    found, (refused,) = shortcuts.find_shortcuts(graph(*BLOCK, *pair, ("Add", "d xd", "y"), s=scale, z=zero))
    assert found == []
    assert refused.rule == "quantized-already"


def test_only_tensorrt_gets_quantized_shortcuts_and_rtx_says_why_not() -> None:
    made = graph(*BLOCK, ("Add", "d x", "y"))
    assert shortcuts.shortcuts(made, FULL, {"C", "D"}) == ([Shortcut("Y", "D", "x", 1)], [])
    chosen, (refused,) = shortcuts.shortcuts(made, RTX, {"C", "D"})
    assert chosen == []
    assert "tensorrt-rtx writes 'D' as floats" in refused.why


def test_a_shortcut_stays_float_where_its_convolution_does() -> None:
    chosen, (refused,) = shortcuts.shortcuts(graph(*BLOCK, ("Add", "d x", "y")), FULL, {"C"})
    assert chosen == []
    assert refused.why == "its convolution 'D' stays float, so the Add does too"


def test_only_ranges_that_can_be_used_are_asked_for() -> None:
    made = graph(*BLOCK, ("Conv", "x p", "s"), ("Add", "d s", "y"))
    found, _ = candidates.find_candidates(made, FULL)
    assert shortcuts.tensors_for_shortcuts(made, FULL, found) == ["s"]
    assert shortcuts.tensors_for_shortcuts(made, RTX, found) == []
    assert shortcuts.tensors_for_shortcuts(made, FULL, [one for one in found if one.node != "D"]) == []


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
