"""A scale and a shift per channel that a weight and a bias take up: which weights can, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.cleanup._affine import Affine, absorb, channels, stored_weight, why_not_absorb
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, random_feeds, to_graph, whole

RNG = np.random.default_rng(4)
IMAGE = {"x": (2, 4, 5, 5)}
KERNEL = RNG.standard_normal((6, 4, 1, 1)).astype(np.float32)
INTEGERS = RNG.integers(-127, 128, (6, 4, 1, 1)).astype(np.int8)
ROW = RNG.standard_normal(6).astype(np.float32)


def layer(op: str, weight: Any, attrs: dict[str, Any] | None = None, bias: Any = None) -> gs.Graph:
    """x → layer 'Y' → y, with a float weight."""
    reads, weights = ("x w", {"w": weight}) if bias is None else ("x w b", {"w": weight, "b": bias})
    inputs = {"x": (3, 4)} if op == "Gemm" else IMAGE
    return to_graph(model((op, reads, "y", attrs or {}), inputs=inputs, weights=weights))


def stored(values: Any = INTEGERS, scales: Any = None, *, zero: int = 0, axis: int = 0) -> gs.Graph:
    """x → Conv(DQ(int8)) 'Y' → y."""
    scales = np.linspace(0.01, 0.02, len(values)).astype(np.float32) if scales is None else scales
    zeros = np.full(np.shape(scales), zero, np.int8)
    nodes = (("DequantizeLinear", "w s z", "f", {"axis": axis}), ("Conv", "x f", "y"))
    return to_graph(model(*nodes, inputs=IMAGE, weights={"w": values, "s": scales, "z": zeros}, opset=21))


def last(graph: gs.Graph) -> gs.Node:
    return next(node for node in graph.nodes if node.name == "Y")


LAYERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "Conv": ("Conv", KERNEL, {}),
    "grouped Conv": ("Conv", KERNEL[:, :2], {"group": 2}),
    "ConvTranspose": ("ConvTranspose", RNG.standard_normal((4, 6, 2, 2)).astype(np.float32), {}),
    "grouped ConvTranspose": ("ConvTranspose", RNG.standard_normal((4, 3, 2, 2)).astype(np.float32), {"group": 2}),
    "Gemm": ("Gemm", RNG.standard_normal((4, 6)).astype(np.float32), {"beta": 0.5, "alpha": 2.0}),
    "turned Gemm": ("Gemm", RNG.standard_normal((6, 4)).astype(np.float32), {"transB": 1, "beta": 0.0}),
}


@pytest.mark.parametrize("bias", [None, ROW], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", LAYERS)
def test_scale_and_shift_are_taken_up(kind: str, bias: Any) -> None:
    graph = layer(*LAYERS[kind], bias=bias)
    scale, shift = np.linspace(-2, 3, 6), np.linspace(1, 2, 6)
    feeds = random_feeds(graph)
    before = Session(graph).run(feeds)["y"]
    assert channels(last(graph)) == 6
    assert absorb(last(graph), Affine(scale, shift), Names(graph)) == ""
    shaped = [1, -1, *[1] * (before.ndim - 2)]
    wanted = before * scale.reshape(shaped) + shift.reshape(shaped)
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], wanted, rtol=1e-4, atol=1e-4)


def test_a_stored_weight_keeps_its_integers_but_for_the_sign() -> None:
    graph = stored()
    feeds = random_feeds(graph)
    before = Session(graph, optimize=False).run(feeds)["y"]
    scale = np.array([2.0, -1.0, 0.5, 3.0, -0.25, 1.0])
    assert absorb(last(graph), Affine(scale), Names(graph)) == ""
    signs = np.sign(scale).astype(np.int8).reshape(6, 1, 1, 1)
    np.testing.assert_array_equal(graphs.values_of(graph.nodes[0].inputs[0]), INTEGERS * signs)
    after = Session(graph, optimize=False).run(feeds)["y"]
    np.testing.assert_allclose(after, before * scale.reshape(1, 6, 1, 1), rtol=1e-5, atol=1e-5)


def test_a_channel_times_zero_stores_zeros_and_a_scale_that_is_not_zero() -> None:
    graph = stored()
    assert absorb(last(graph), Affine(np.array([0.0, 1, 1, 1, 1, 1])), Names(graph)) == ""
    back = graph.nodes[0]
    assert not graphs.values_of(back.inputs[0])[0].any()
    assert graphs.values_of(back.inputs[1])[0] == 1


def test_minus_128_cannot_change_its_sign() -> None:
    values = INTEGERS.copy()
    values[2, 0] = -128
    graph = stored(values)
    written = whole(graph).SerializeToString(deterministic=True)
    assert "holds -128 where the sign changes" in absorb(last(graph), Affine(np.full(6, -1.0)), Names(graph))
    assert whole(graph).SerializeToString(deterministic=True) == written


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        (stored(), True),
        (stored(scales=np.float32(0.01)), True),
        (stored(zero=3), False),
        (stored(axis=1, scales=np.full(4, 0.01, np.float32)), False),
        (layer("Conv", KERNEL), False),
    ],
    ids=["per channel", "one scale", "offset", "other axis", "float"],
)
def test_which_stored_weights_take_a_scale(graph: gs.Graph, found: bool) -> None:
    assert (stored_weight(last(graph)) is not None) is found


def test_what_leaves_the_range_of_the_weight_is_refused_and_nothing_changes() -> None:
    graph = layer("Conv", KERNEL, bias=ROW)
    written = whole(graph).SerializeToString(deterministic=True)
    assert "folded weight of 'Y' would leave the range" in absorb(last(graph), Affine(np.full(6, 1e39)), Names(graph))
    assert "folded bias of 'Y' would leave the range" in absorb(
        last(graph), Affine(None, np.full(6, 1e39)), Names(graph)
    )
    assert whole(graph).SerializeToString(deterministic=True) == written


def test_a_shift_of_zeros_makes_no_bias() -> None:
    graph = layer("Conv", KERNEL)
    assert absorb(last(graph), Affine(np.full(6, 2.0), np.zeros(6)), Names(graph)) == ""
    assert len(last(graph).inputs) == 2


@pytest.mark.parametrize(
    ("nodes", "outputs", "why"),
    [
        ([("Conv", "x w", "t"), ("Relu", "t", "y")], ("y",), ""),
        ([("Conv", "x w", "t"), ("Relu", "t", "y")], ("y", "t"), "'t' between them is a graph output"),
        ([("Conv", "x w", "t"), ("Relu", "t", "y"), ("Exp", "t", "z")], ("y", "z"), "also read by other nodes"),
        ([("Conv", "x v", "t"), ("Relu", "t", "y")], ("y",), "the weight of 'T' is not a float constant"),
        ([("Conv", "x w c", "t"), ("Relu", "t", "y")], ("y",), "the bias of 'T' is not constant"),
        ([("Gemm", "m g r", "t"), ("Relu", "t", "y")], ("y",), "has not one value per channel"),
    ],
    ids=["free", "output", "two readers", "computed weight", "computed bias", "bias by row"],
)
def test_why_a_layer_takes_nothing_up(nodes: list[Any], outputs: tuple[str, ...], why: str) -> None:
    read = {name for one in nodes for name in one[1].split()}
    inputs = {**IMAGE, "v": (6, 4, 1, 1), "c": (6,), "m": (6, 4)}
    held = {"w": KERNEL, "g": KERNEL.reshape(6, 4).T.copy(), "r": RNG.standard_normal((6, 6)).astype(np.float32)}
    graph = to_graph(
        model(
            *nodes,
            inputs={name: shape for name, shape in inputs.items() if name in read},
            outputs=outputs,
            weights={name: value for name, value in held.items() if name in read},
        )
    )
    found = why_not_absorb(graph, graph.nodes[0], graph.nodes[1])
    assert why in found
    assert bool(found) is bool(why)
