"""Placement beyond single layers: which input of a residual Add is the shortcut, and what Concat joins."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.planning.placement import candidates, shortcuts
from qcompiler.planning.placement.shortcuts import Shortcut
from qcompiler.target import parse_target
from tests.kit.planning.convolutions import SAME, graph
from tests.kit.rewrite import Spec

RTX, FULL = parse_target("tensorrt-rtx"), parse_target("tensorrt")
BLOCK: tuple[Spec, ...] = (("Conv", "x w", "c", SAME), ("Relu", "c", "r"), ("Conv", "r w", "d", SAME))


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
