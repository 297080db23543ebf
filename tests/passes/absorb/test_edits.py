"""The constants that take a division by factors per channel: which they are, and that only their own readers see it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.graph import values_of
from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.passes.absorb.edits import Edit, compensate, edit_of, scaled_constants
from qcompiler.passes.absorb.index import NONE, along
from tests.kit.absorbing import DENSE, TOKENS, VECTORS, build, divide, factors, find, normal
from tests.kit.rewrite import to_graph


def test_an_unknown_shape_of_a_constant_behind_a_view_is_refused() -> None:
    nodes = [("Reshape", "v0 shape", "v"), ("MatMul", "x v", "t"), DENSE]
    graph = to_graph(build(nodes, {"v0": (48,), "shape": np.array([8, 6]), "w": (6, 5)}, TOKENS))
    graph.tensors()["v0"].name = "v0"
    edit = edit_of(gs.Node("Add", "add", inputs=[find(graph, "v")]), 0, along(0, np.arange(5), 2))
    assert edit == "the Reshape 'V' behind constant 'v0' mixes its axes"


def test_a_weight_of_another_size_makes_up_for_nothing() -> None:
    graph = to_graph(build([DENSE], {"w": (8, 5)}, {"t": (2, 8)}))
    edit = compensate(graph.nodes[0], 0, along(-1, np.arange(6), 2))
    assert edit == "also read by 'Y' (MatMul), whose weight has shape [8, 5]"


def test_a_shared_bias_and_weight_keep_their_values_for_others() -> None:
    proto = build(
        [("Gemm", "x v b", "t"), ("Gemm", "x v b", "z"), DENSE],
        {"v": (4, 4), "b": (4,), "w": (4, 4)},
        VECTORS,
        ["y", "z"],
    )
    graph, _ = divide(proto, "t")
    assert values_of(next(node for node in graph.nodes if node.name == "Z").inputs[1]) == pytest.approx(normal(4, 4))


def test_a_norm_s_weight_shared_by_two_norms() -> None:
    proto = build(
        [("LayerNormalization", "x g", "t"), ("MatMul", "t w", "a"), ("LayerNormalization", "a g", "y")],
        {"g": (8,), "w": (8, 8)},
        TOKENS,
    )
    divide(proto, "t")


def test_a_shared_transpose_of_a_tied_weight_is_doubled() -> None:
    proto = build(
        [("Transpose", "e", "et"), ("MatMul", "x v", "t"), ("MatMul", "t et", "y"), ("Add", "et one", "z")],
        {"v": (8, 6), "e": (9, 6), "one": np.float32(1)},
        TOKENS,
        ["y", "z"],
    )
    graph, _ = divide(proto, "t")
    assert [node.op for node in graph.nodes].count("Transpose") == 2


def test_weights_of_read_only_memory() -> None:
    graph = to_graph(build([("MatMul", "x v", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS))
    for node in graph.nodes:
        values_of(node.inputs[1]).flags.writeable = False
    plan = absorb.find_moves(graph, find(graph, "t"), -1)
    assert absorb.apply(graph, plan, factors(plan), Names(graph)) == ""


def test_several_edits_of_one_constant_are_taken_together() -> None:
    graph = to_graph(build([("Add", "x c", "y")], {"c": (4,)}, VECTORS))
    node, index = graph.nodes[0], np.arange(4)
    edits = [Edit(node, 1, index, True), Edit(node, 1, index[::-1].copy(), False)]
    factors_ = np.array([2, 4, 8, 16, 1], np.float32)
    found = scaled_constants(edits, factors_)
    assert not isinstance(found, str)
    ((edit, new),) = found
    assert edit.constant.name == "c"
    np.testing.assert_array_equal(new, normal(4) * factors_[:4] / factors_[3::-1])


def test_elements_of_no_channel_stay() -> None:
    graph = to_graph(build([("Add", "x c", "y")], {"c": (4,)}, VECTORS))
    edit = Edit(graph.nodes[0], 1, np.array([0, NONE, 1, NONE]), True)
    found = scaled_constants([edit], np.array([2, 4, 1], np.float32))
    assert not isinstance(found, str)
    ((_, new),) = found
    np.testing.assert_array_equal(new, normal(4) * np.array([2, 1, 4, 1], np.float32))


def test_a_factor_that_takes_a_constant_out_of_its_type_is_named() -> None:
    graph = to_graph(build([("Add", "x c", "y")], {"c": np.full(4, 1e30, np.float32)}, VECTORS))
    edit = Edit(graph.nodes[0], 1, np.arange(4), True)
    found = scaled_constants([edit], np.array([1, 1e20, 1, 1, 1], np.float32))
    assert found == "'c' of 'Y' would leave the range of float32"


def test_integers_are_no_constant_to_scale() -> None:
    graph = to_graph(build([("Gather", "x i", "y")], {"i": np.array([0, 1])}, VECTORS))
    assert edit_of(graph.nodes[0], 1, along(0, np.arange(2), 1)) == "constant 'i' of 'Y' is not float"
    assert edit_of(graph.nodes[0], 0, along(0, np.arange(3), 2)) is None


def test_a_constant_of_no_axes_stays_an_array() -> None:
    graph = to_graph(build([("Mul", "x k", "t"), DENSE], {"k": np.float32(3), "w": (8, 5)}, TOKENS))
    edit = Edit(graph.nodes[0], 1, np.zeros((), np.int64), multiply=False)
    values = scaled_constants([edit], np.array([2, 1], np.float32))
    assert not isinstance(values, str)
    assert isinstance(values[0][1], np.ndarray)
    assert values[0][1] == pytest.approx(1.5)
