from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.graph import values_of
from qcompiler.passes.base import Changed, Report, Skipped
from qcompiler.passes.channels.follow_scales import FollowScales
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.verification.equivalence import Equivalence
from tests.kit.absorbing import TOKENS, build, normal
from tests.kit.rewrite import check_untouched, random_feeds, to_graph, whole

FACTORS = {"n": np.geomspace(0.2, 30, 8).astype(np.float32), "h": np.geomspace(4, 0.1, 32).astype(np.float32)}


def block(*, bias: bool = False) -> onnx.ModelProto:
    """A norm that two layers read, and a product of both in front of a third."""
    product = [("MatMul", "n wu", "u"), ("Add", "u bu", "up")] if bias else [("MatMul", "n wu", "up")]
    return build(
        [
            ("RMSNormalization", "x g", "n"),
            ("MatMul", "n wg", "gate"),
            *product,
            ("Sigmoid", "gate", "s"),
            ("Mul", "s up", "h"),
            ("MatMul", "h wd", "y"),
        ],
        {"g": (8,), "wg": (8, 32), "wu": normal(8, 32, seed=4), "wd": normal(32, 16, seed=5), "bu": normal(32, seed=6)},
        TOKENS,
    )


def other(proto: onnx.ModelProto, bits: int = 8, **changed: float) -> dict[tuple[str, int], Any]:
    """The constants of the smoothed graph, rounded per output channel; `changed` multiplies the weights of a layer."""
    graph = to_graph(proto)
    SmoothQuant(FACTORS)(graph)
    return constants(graph, bits, **changed)


def constants(graph: gs.Graph, bits: int = 8, **changed: float) -> dict[tuple[str, int], Any]:
    found = {}
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                values = values_of(tensor)
                step = np.abs(values).max(0) / (2 ** (bits - 1) - 1)
                rounded = np.round(values / step) * step if values.ndim == 2 else values
                found[node.outputs[0].name, index] = rounded * changed.get(node.outputs[0].name, 1.0)
    return found


def followed(proto: onnx.ModelProto, weights: dict[tuple[str, int], Any]) -> tuple[gs.Graph, Report]:
    """Runs the pass behind the equivalence check."""
    graph = to_graph(proto)
    equal = Equivalence(graph, [random_feeds(graph)])
    one = FollowScales(weights)
    report = one(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    equal.check(one, report, graph)
    return graph, report


def shown(graph: gs.Graph, proto: onnx.ModelProto) -> dict[str, Any]:
    """By what the weights of each layer were multiplied."""
    plain = {node.outputs[0].name: node for node in to_graph(proto).nodes}
    linear = [node for node in graph.nodes if node.op == "MatMul"]
    return {
        (name := node.outputs[0].name): values_of(node.inputs[1]) / values_of(plain[name].inputs[1]) for node in linear
    }


@pytest.mark.parametrize(("bits", "power", "close"), [(8, 1.0, 0.06), (8, -1.0, 0.06), (4, 0.5, 0.25)])
def test_the_factors_are_read_out_of_rounded_weights(bits: int, power: float, close: float) -> None:
    proto = block()
    factors = {name: one**power for name, one in FACTORS.items()}
    graph = to_graph(proto)
    SmoothQuant(factors)(graph)
    graph, report = followed(proto, constants(graph, bits))
    assert [type(note) for note in report.notes] == [Changed, Changed]
    assert [note.node for note in report.notes] == ["h", "n"]
    found = shown(graph, proto)
    np.testing.assert_allclose(found["y"][:, 0], factors["h"], rtol=close)
    np.testing.assert_allclose(found["gate"][:, 0], factors["n"], rtol=close)
    np.testing.assert_allclose(found["up"], factors["n"][:, None] / factors["h"], rtol=2 * close)


def test_factors_smaller_than_the_rounding_of_int4_show_in_many_outputs() -> None:
    proto = build([("RMSNormalization", "x g", "n"), ("MatMul", "n w", "y")], {"g": (8,), "w": (8, 512)}, TOKENS)
    factors = np.array([0.9, 0.93, 0.96, 0.99, 1.02, 1.05, 1.08, 1.1], np.float32)
    graph = to_graph(proto)
    SmoothQuant({"n": factors})(graph)
    after, report = followed(proto, constants(graph, 4))
    assert [note.node for note in report.notes] == ["n"]
    np.testing.assert_allclose(shown(after, proto)["y"][:, 0], factors, rtol=0.03)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_alone_shows_no_factors(bits: int) -> None:
    proto = block()
    _, report = followed(proto, constants(to_graph(proto), bits))
    assert report.notes == ()


@pytest.mark.parametrize("layer", ["y", "gate", "up"])
def test_one_wrong_scale_for_a_whole_layer_is_no_factor(layer: str) -> None:
    proto = block()
    _, report = followed(proto, constants(to_graph(proto), 8, **{layer: 8.0}))
    assert report.notes == ()


def test_outputs_that_change_places_do_not_hide_the_factors() -> None:
    proto = block()
    weights = other(proto)
    swapped = weights["y", 1].copy()
    swapped[:, [2, 3]] = 4 * swapped[:, [3, 2]]  # large, so that they hold most of the difference
    graph, _ = followed(proto, weights | {("y", 1): swapped})
    factor = shown(graph, proto)["y"][:, 0]
    np.testing.assert_allclose(factor, FACTORS["h"], rtol=0.2)


def test_a_layer_that_is_wrong_among_its_siblings_is_outvoted() -> None:
    proto = build(
        [("RMSNormalization", "x g", "n"), *(("MatMul", f"n w{one}", one) for one in "qkv")],
        {"g": (8,), **{f"w{one}": normal(8, 32, seed=k) for k, one in enumerate("qkv")}},
        TOKENS,
        ["q", "k", "v"],
    )
    graph = to_graph(proto)
    SmoothQuant({"n": FACTORS["n"]})(graph)
    weights = constants(graph)
    weights["k", 1] = 8 * weights["k", 1][:, ::-1]  # its channels swapped, and its scale wrong
    after, report = followed(proto, weights)
    assert [note.node for note in report.notes] == ["n"]
    np.testing.assert_allclose(shown(after, proto)["q"][:, 0], FACTORS["n"], rtol=0.25)


def test_where_a_scale_is_wrong_behind_a_bias_the_bias_is_right() -> None:
    proto = block(bias=True)
    graph, _ = followed(proto, other(proto, y=8.0))
    np.testing.assert_allclose(shown(graph, proto)["y"][:, 0], FACTORS["h"], rtol=0.06)


def test_of_a_joint_projection_the_part_that_was_divided_tells() -> None:
    proto = build(
        [
            ("MatMul", "x w", "t"),
            ("Add", "t b", "u"),
            ("Split", "u", "q k v", {"axis": -1, "num_outputs": 3}),
            ("Sigmoid", "q", "s"),
            ("Mul", "s v", "m"),
            ("MatMul", "m wo", "y"),
        ],
        {"w": (8, 96), "b": normal(96, seed=7), "wo": normal(32, 16, seed=8)},
        TOKENS,
        ["y", "k"],
    )
    graph = to_graph(proto)
    SmoothQuant({"m": FACTORS["h"]})(graph)
    after, report = followed(proto, constants(graph, 8, y=8.0))
    assert [note.node for note in report.notes] == ["m"]
    np.testing.assert_allclose(shown(after, proto)["y"][:, 0], FACTORS["h"], rtol=0.06)
    np.testing.assert_allclose(shown(after, proto)["t"][0, :64], 1.0)


def test_a_channel_that_rounding_has_left_nothing_of_is_told_by_who_took_its_factor() -> None:
    proto = block()
    factors = FACTORS["h"].copy()
    factors[5] = 1e-4
    graph = to_graph(proto)
    SmoothQuant({"h": factors})(graph)
    weights = constants(graph)
    assert not weights["y", 1][5].any()
    after, _ = followed(proto, weights)
    np.testing.assert_allclose(shown(after, proto)["y"][5, 0], 1e-4, rtol=0.05)


def test_what_cannot_be_divided_here_says_why() -> None:
    proto = build([("MatMul", "x w", "y")], {"w": (8, 16)}, TOKENS)
    weights = {("y", 1): values_of(to_graph(proto).nodes[0].inputs[1]) * FACTORS["n"][:, None]}
    _, report = followed(proto, weights)
    (note,) = report.notes
    assert isinstance(note, Skipped)
    assert note.node == "x"


def test_without_another_graph_nothing_is_done() -> None:
    check_untouched(FollowScales(), block())
