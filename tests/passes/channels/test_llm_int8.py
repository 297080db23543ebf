"""Splitting outlier channels off: exact in every layout, reordered where that is exact, and joined again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.passes.base import Changed, Skipped
from qcompiler.passes.channels.llm_int8 import LlmInt8, join, layout_of
from qcompiler.runtime.session import Session
from qcompiler.verification.equivalence import differences
from tests.kit import glu
from tests.kit.rewrite import check, check_skipped, check_untouched, model, to_graph, whole

TOKENS = {"x": (2, 5, 8)}


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def product() -> onnx.ModelProto:
    """Two layers that read one activation."""
    return model(
        ("Tanh", "x", "t"),
        ("MatMul", "t w1", "a"),
        ("MatMul", "t w2", "b"),
        ("Add", "a b", "y"),
        inputs=TOKENS,
        weights={"w1": normal(8, 6), "w2": normal(8, 6, seed=1)},
    )


def gated() -> onnx.ModelProto:
    """A gated block with a bias, whose inner channels a reordering can follow, between norms, where it cannot."""
    return model(
        ("LayerNormalization", "x g b", "n"),
        ("MatMul", "n wg", "gate"),
        ("Add", "gate bg", "biased"),
        ("Sigmoid", "biased", "s"),
        ("MatMul", "n wu", "up"),
        ("Mul", "s up", "h"),
        ("MatMul", "h wd", "y"),
        inputs=TOKENS,
        weights={
            "g": normal(8), "b": normal(8), "wg": normal(8, 12), "bg": normal(12), "wu": normal(8, 12, seed=2),
            "wd": normal(12, 8),
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "ops"),
    [
        ("mask", ["Tanh", "Gather", "Mul", "MatMul", "MatMul", "Add", "MatMul", "MatMul", "Add", "Add"]),
        ("gather", ["Tanh", "Gather", "Gather", "MatMul", "MatMul", "Add", "MatMul", "MatMul", "Add", "Add"]),
    ],
)
def test_layers_that_read_one_activation_share_its_parts(layout: str, ops: list[str]) -> None:
    graph, report = check(LlmInt8({"A": [3, 1], "B": [1, 3]}, layout), product(), ops=ops, tolerance=1e-5)
    assert report.notes == (
        Changed("A", f"2 of 8 channels multiplied apart ({layout})"),
        Changed("B", f"2 of 8 channels multiplied apart ({layout})"),
    )
    nodes = {node.name: node for node in graph.nodes}
    np.testing.assert_array_equal(nodes["A/outliers"].inputs[1].values, normal(8, 6)[[1, 3]])
    assert nodes["A"].inputs[0] is nodes["B"].inputs[0]
    assert layout_of(nodes["A"]) == layout


def test_a_mask_leaves_the_depth_of_the_product_and_zeros_in_its_weight() -> None:
    graph, _ = check(LlmInt8({"A": [3, 1]}), product(), tolerance=1e-5)
    kept = next(node for node in graph.nodes if node.name == "A").inputs[1].values
    assert kept.shape == (8, 6)
    assert not kept[[1, 3]].any()
    np.testing.assert_array_equal(np.delete(kept, [1, 3], 0), np.delete(normal(8, 6), [1, 3], 0))


def test_layers_with_different_outliers_get_parts_of_their_own() -> None:
    graph, _ = check(LlmInt8({"A": [0], "B": [1]}), product(), tolerance=1e-5)
    assert [node.op for node in graph.nodes].count("Gather") == 2


@pytest.mark.parametrize("layout", ["mask", "gather", "split"])
@pytest.mark.parametrize("flipped", [0, 1])
def test_a_gemm_keeps_its_bias_and_factors(layout: str, flipped: int) -> None:
    weight = normal(6, 8) if flipped else normal(8, 6)
    attrs = {"alpha": 0.5, "beta": 2.0, "transB": flipped}
    proto = model(
        ("MatMul", "x u", "t"),
        ("Gemm", "t w c", "y", attrs),
        inputs={"x": (3, 8)},
        weights={"u": normal(8, 8), "w": weight, "c": normal(6)},
    )
    graph, _ = check(LlmInt8({"Y": [7, 2, 2]}, layout), proto, tolerance=1e-5)
    apart = next(node for node in graph.nodes if node.name == "Y/outliers")
    assert apart.op == "Gemm"
    assert len(apart.inputs) == 2
    assert apart.attrs["alpha"] == 0.5
    assert layout_of(next(node for node in graph.nodes if node.name == "Y")) == layout


def test_channels_of_a_gated_product_are_moved_to_the_end_of_what_makes_them() -> None:
    graph, report = check(LlmInt8({"Y": [0, 5]}, "split"), gated(), tolerance=1e-5)
    assert report.notes == (
        Changed("h", "2 channels moved to the end, in 4 constants"),
        Changed("Y", "2 of 12 channels multiplied apart (split)"),
    )
    nodes = {node.name: node for node in graph.nodes}
    order = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 0, 5]
    np.testing.assert_array_equal(nodes["GATE"].inputs[1].values, normal(8, 12)[:, order])
    np.testing.assert_array_equal(nodes["BIASED"].inputs[1].values, normal(12)[order])
    np.testing.assert_array_equal(nodes["Y/outliers"].inputs[1].values, normal(12, 8)[[0, 5]])
    assert not [node for node in graph.nodes if node.op == "Gather"]


def test_where_channels_cannot_be_moved_they_are_masked() -> None:
    graph, report = check(LlmInt8({"GATE": [0], "UP": [0]}, "split"), gated(), tolerance=1e-5)
    assert report.notes[0] == Skipped("n", "its channels cannot be reordered: 'x' is a graph input")
    assert [note.text for note in report.notes[1:]] == ["1 of 8 channels multiplied apart (mask)"] * 2
    assert layout_of(next(node for node in graph.nodes if node.name == "UP")) == "mask"


def test_a_whole_residual_stream_is_reordered_once() -> None:
    """Norms of all layers, the embedding, what is added, and the head: one order, from end to end."""
    proto = glu.stack(channels=glu.OUTLIERS, layers=2)
    picked = {name: [5, 9] for name in ("L0.Q", "L0.K", "L0.V", "L1.GATE", "L1.UP", "LOGITS")}
    graph, report = check(LlmInt8(picked, "split"), proto, glu.feeds(1)[0], tolerance=1e-5)
    moved = [note for note in report.notes if "moved" in note.text]
    assert len(moved) == 1
    table = next(node for node in graph.nodes if node.op == "Gather").inputs[0].values
    was = next(one for one in proto.graph.initializer if one.name == "embedding")
    np.testing.assert_array_equal(table[:, -2:], onnx.numpy_helper.to_array(was)[:, [5, 9]])


def test_outliers_that_differ_too_much_along_one_stream_are_masked() -> None:
    picked = {name: [k] for k, name in enumerate(("L0.Q", "L0.GATE", "L1.Q", "L1.GATE"))}
    graph, report = check(LlmInt8(picked, "split"), glu.stack(layers=2), glu.feeds(1)[0], tolerance=1e-5)
    assert [note.text for note in report.notes if isinstance(note, Skipped)] == [
        "its channels are not reordered: its 4 readers have 4 different outliers in all"
    ] * len([note for note in report.notes if isinstance(note, Skipped)])
    assert any(isinstance(note, Skipped) for note in report.notes)
    assert not [node for node in graph.nodes if node.op == "Split"]


@settings(max_examples=25)
@given(
    st.sets(st.integers(0, 11), min_size=1, max_size=11),
    st.sets(st.integers(0, 7), min_size=1, max_size=7),
    st.sampled_from(["mask", "gather", "split"]),
)
def test_any_channels_can_be_split_off_exactly(down: set[int], up: set[int], layout: str) -> None:
    proto = gated()
    feeds = {"x": normal(2, 5, 8, seed=9) * 30}
    graph = to_graph(proto)
    before = {name: [value] for name, value in Session(graph).run(feeds).items()}
    report = LlmInt8({"Y": sorted(down), "UP": sorted(up)}, layout)(graph)
    assert {note.node for note in report.notes if isinstance(note, Changed)} >= {"Y", "UP"}
    onnx.checker.check_model(whole(graph), full_check=True)
    after = {name: [value] for name, value in Session(graph).run(feeds).items()}
    assert differences(before, after)["y"] <= 1e-5


@settings(max_examples=15)
@given(st.sets(st.integers(0, 7), min_size=1, max_size=7), st.sampled_from(["mask", "gather", "split"]))
def test_joining_gives_back_weights_to_the_bit(picked: set[int], layout: str) -> None:
    proto = model(
        ("MatMul", "x u", "t"),
        ("Gemm", "t w c", "y", {"transB": 1}),
        inputs={"x": (3, 8)},
        weights={"u": normal(8, 8), "w": normal(6, 8), "c": normal(6)},
    )
    graph = to_graph(proto)
    LlmInt8({"Y": sorted(picked)}, layout)(graph)
    assert join(graph, ["Y"]) == ["Y/outliers"]
    assert [node.op for node in graph.nodes] == ["MatMul", "Gemm"]
    found, order = graph.nodes[1].inputs[1].values, [*range(8)]
    if layout == "split":
        order = [*sorted(set(order) - picked), *sorted(picked)]
    np.testing.assert_array_equal(found, normal(6, 8)[:, order])
    onnx.checker.check_model(whole(graph), full_check=True)


def test_the_outlier_product_is_found_where_nodes_are_named_like_their_outputs() -> None:
    proto = product()
    for one in proto.graph.node:
        one.name = one.output[0]
    graph, _ = check(LlmInt8({"a": [1]}), proto, tolerance=1e-5)
    assert {"a", "a/outliers"} <= {node.name for node in graph.nodes}
    assert join(graph, ["a"]) == ["a/outliers"]


def test_joining_one_layer_leaves_what_others_share() -> None:
    graph = to_graph(product())
    LlmInt8({"A": [1], "B": [1]})(graph)
    assert join(graph, ["A"]) == ["A/outliers"]
    assert [node.op for node in graph.nodes] == ["Tanh", "Gather", "Mul", "MatMul", "MatMul", "MatMul", "Add", "Add"]


@pytest.mark.parametrize(
    ("channels", "why"),
    [
        ({"A": []}, "no channel was named"),
        ({"A": [8]}, "it has channels 0 to 7, and 8 was named"),
        ({"A": [-1]}, "it has channels 0 to 7, and -1 was named"),
        ({"A": range(8)}, "all of its channels were named"),
        ({"T": [0]}, "it is no product with a constant float matrix on its right"),
        ({"nowhere": [0]}, "there is no such node"),
    ],
)
def test_refused(channels: Any, why: str) -> None:
    check_skipped(LlmInt8(channels), product(), why)


def test_rows_as_channels_are_refused() -> None:
    proto = model(
        ("Gemm", "x w", "y", {"transA": 1}), inputs={"x": (8, 3)}, weights={"w": normal(8, 6)}
    )  # fmt: skip
    check_skipped(LlmInt8({"Y": [0]}), proto, "its channels do not lie on the last axis of an activation")


def test_a_weight_that_is_computed_is_refused() -> None:
    proto = model(("MatMul", "x w", "y"), inputs={"x": (3, 8), "w": (8, 6)})
    check_skipped(LlmInt8({"Y": [0]}), proto, "no product with a constant float matrix")


def test_what_is_split_is_not_split_again() -> None:
    graph = to_graph(product())
    LlmInt8({"A": [1]})(graph)
    assert LlmInt8({"A": [2]})(graph).notes == (Skipped("A", "it is split already"),)


def test_nothing_asked_nothing_done() -> None:
    check_untouched(LlmInt8(), product())
