"""Divisions that reach further: attention heads, tensors that others read as they were, generated networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from tests.kit.absorbing import DENSE, IMAGE, LAST, NORM, PADS, TOKENS, build, divide, find, normal, positive, takers
from tests.kit.rewrite import model, to_graph


def heads(values: int, queries: int, repeat: Sequence[Any], weights: Mapping[str, Any]) -> onnx.ModelProto:
    """Attention over tokens [b, s, 24] with heads of 4, more for queries than for values."""
    projected: list[Any] = []
    for one in "kv":
        projected.append(("Reshape", f"{one}0 open", f"{one}1"))
        projected.append(("Transpose", f"{one}1", f"{one}2", {"perm": [0, 2, 1, 3]}))
    return build(
        [
            ("MatMul", "x wk", "k0"),
            ("MatMul", "x wv", "v0"),
            *projected,
            *repeat,
            ("Transpose", "k2", "k3", {"perm": [0, 1, 3, 2]}),
            ("MatMul", "k2 k3", "a0"),
            ("Softmax", "a0", "a"),
            ("MatMul", "a v", "o0"),
            ("Transpose", "o0", "o1", {"perm": [0, 2, 1, 3]}),
            ("Reshape", "o1 flat", "t"),
            DENSE,
        ],
        {
            "wk": (24, 4 * queries),
            "wv": (24, 4 * values),
            "open": np.array([0, 0, -1, 4]),
            "flat": np.array([0, 0, -1]),
            "w": (4 * queries, 24),
            **weights,
        },
        {"x": ("b", "s", 24)},
    )


def test_values_of_each_head_are_free() -> None:
    _, plan = divide(heads(6, 6, [("Identity", "v2", "v")], {}), "t")
    assert takers(plan) == ["MatMul"]
    assert plan.classes.tolist() == list(range(24))


@pytest.mark.parametrize("how", ["Expand", "Tile"])
def test_heads_that_share_values_share_factors(how: str) -> None:
    """Grouped queries: each of two value heads serves three query heads."""
    repeat = [
        ("Unsqueeze", "v2 two", "v3"),
        (how, f"v3 {how.lower()}", "v4"),
        ("Shape", "k2", "shape"),
        ("Reshape", "v4 shape", "v"),
    ]
    shapes = {"two": np.array([2]), "expand": np.array([1, 2, 3, 1, 4]), "tile": np.array([1, 1, 3, 1, 1])}
    _, plan = divide(heads(2, 6, repeat, shapes), "t")
    assert takers(plan) == ["MatMul"]
    classes = plan.classes.reshape(2, 3, 4)
    assert (classes == classes[:, :1]).all()
    assert np.unique(plan.classes).size == 8


def test_one_value_head_for_all() -> None:
    """Multi-query: the heads of the values are broadcast by MatMul itself."""
    _, plan = divide(heads(1, 6, [("Identity", "v2", "v")], {}), "t")
    assert plan.classes.tolist() == list(range(4)) * 6


def test_positions_that_one_kernel_writes_share_a_factor() -> None:
    proto = build(
        [("Conv", "x v b", "a"), ("Relu", "a", "r"), ("Flatten", "r", "t"), ("Gemm", "t w", "y")],
        {"v": (6, 4, 3, 3), "b": (6,), "w": (96, 5)},
        IMAGE,
    )
    _, plan = divide(proto, "t")
    assert plan.classes.tolist() == np.repeat(np.arange(6), 16).tolist()


def test_tokens_that_one_layer_writes_share_a_factor() -> None:
    """A weight has no tokens: where a reshape makes channels of them, their factors are tied."""
    nodes = [("MatMul", "x v", "a"), ("Reshape", "a shape", "t"), ("Gemm", "t w", "y")]
    _, plan = divide(build(nodes, {"v": (8, 6), "shape": np.array([2, 30]), "w": (30, 5)}, TOKENS), "t")
    assert plan.classes.tolist() == list(range(6)) * 5


def test_factors_that_differ_within_a_class_are_refused() -> None:
    graph = to_graph(heads(1, 2, [("Identity", "v2", "v")], {}))
    plan = absorb.find_moves(graph, find(graph, "t"), -1)
    assert "one common factor" in absorb.apply(graph, plan, normal(8) ** 2 + 1, Names(graph))
    scale = np.arange(1, 9, dtype=np.float32)
    assert plan.tied(scale).tolist() == [5, 6, 7, 8] * 2
    assert not plan.fits(scale)


# --- Readers that want the tensor as it was ---


def residual(*norm: Any, **weights: Any) -> onnx.ModelProto:
    """A norm (as BERT has them, behind the sum) that a layer and the next sum read."""
    return build([*norm, ("MatMul", "t w", "a"), ("Add", "t a", "y")], {"w": (8, 8), **weights}, TOKENS)


def test_a_norm_that_the_residual_reads_is_doubled_on_request() -> None:
    proto = residual(("LayerNormalization", "x g b", "t"), g=(8,), b=(8,))
    graph = to_graph(proto)
    why = absorb.can(graph, find(graph, "t"), -1)
    assert why == "'t' is also read by 'Y' (Add)"
    graph, plan = divide(proto, "t", split=True)
    assert [node.op for node in plan.copies] == ["LayerNormalization"]
    assert [node.op for node in graph.nodes] == ["LayerNormalization", "LayerNormalization", "MatMul", "Add"]


def test_a_norm_written_out_has_only_its_last_steps_doubled() -> None:
    proto = residual(*NORM, ("Mul", "n g", "ng"), ("Add", "ng b", "t"), **LAST, g=(8,), b=(8,))
    graph, plan = divide(proto, "t", split=True)
    assert [node.op for node in plan.copies] == ["Add", "Mul"]
    assert len(graph.nodes) == len(to_graph(proto).nodes) + 2


def test_a_norm_that_is_an_output_is_doubled_on_request() -> None:
    proto = build([("RMSNormalization", "x g", "t"), DENSE], {"g": (8,), "w": (8, 5)}, TOKENS, ["t", "y"])
    graph = to_graph(proto)
    assert absorb.can(graph, find(graph, "t"), -1) == "'t' is a graph output"
    divide(proto, "t", split=True)


def test_a_doubled_norm_leaves_the_original_to_products_and_activations() -> None:
    nodes = [("LayerNormalization", "x g", "t"), DENSE, ("Mul", "t c", "m"), ("Relu", "t", "z"), ("MatMul", "m w", "v")]
    proto = build(nodes, {"g": (8,), "c": (8,), "w": (8, 8)}, TOKENS, ["y", "m", "z", "v"])
    graph, _ = divide(proto, "t", split=True)
    assert {node.inputs[0].name for node in graph.nodes if node.name in ("M", "Z")} == {"t"}


def test_a_product_goes_on_to_layers_that_make_up_for_it() -> None:
    nodes = [("MatMul", "x v", "t"), DENSE, ("Sigmoid", "x", "s"), ("Mul", "s t", "m"), ("MatMul", "m w", "z")]
    _, plan = divide(build(nodes, {"v": (8, 8), "w": (8, 5)}, TOKENS, ["y", "z"]), "t")
    assert [node.name for node in plan.readers] == ["Y", "Z"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ([("Mul", "t t", "z")], "'t' is also read by 'Z' (Mul)"),
        ([("Relu", "t", "r"), ("Mul", "r t", "z")], "'t' is also read by 'Z' (Mul)"),
        ([("Relu", "t", "r"), ("Mul", "r t", "m"), ("MatMul", "m w", "z")], "'t' is also read by 'M' (Mul)"),
        ([("Relu", "t", "z")], "'z' is a graph output"),
    ],
    ids=["square", "square of parts, an output", "square of parts", "an output"],
)
def test_a_product_of_two_divided_tensors_is_refused(more: Any, why: str) -> None:
    proto = build([("MatMul", "x v", "t"), DENSE, *more], {"v": (8, 8), "w": (8, 5)}, TOKENS, ["y", "z"])
    graph = to_graph(proto)
    assert absorb.can(graph, find(graph, "t"), -1) == why


def test_a_layer_is_not_doubled() -> None:
    graph = to_graph(residual(("MatMul", "x v", "t"), v=(8, 8)))
    assert absorb.can(graph, find(graph, "t"), -1, split=True) == "'t' is also read by 'Y' (Add)"


def test_reading_the_shape_is_no_reading() -> None:
    nodes = [("MatMul", "x v", "t"), DENSE, ("Shape", "t", "z")]
    divide(build(nodes, {"v": (8, 6), "w": (6, 5)}, TOKENS, ["y", "z"]), "t")


# --- Generated networks ---


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Something that can take a division, some steps that pass it on, and readers; on vectors or images."""
    image = draw(st.booleans())
    channels = draw(st.sampled_from([2, 4, 6]))
    seed = draw(st.integers(0, 99))
    weights: dict[str, Any] = {
        "b": normal(channels, seed=seed),
        "g": normal(channels, seed=seed + 1),
        "c": positive(channels, 1, 1) if image else positive(channels),
        "k": np.float32(0.5),
    }
    if image:
        group = draw(st.sampled_from([1, 2]))
        weights["v"] = normal(channels, 4 // group, 3, 3, seed=seed)
        start: Any = ("Conv", "x v b", "t0", {"group": group, **PADS})
        steps = [
            "Relu t",
            "LeakyRelu t",
            "MaxPool t",
            "AveragePool t",
            "Mul t c",
            "Div t c",
            "Add t c",
            "Mul t k",
            "Where",
        ]
    else:
        transposed = draw(st.booleans())
        weights["v"] = normal(channels, 8, seed=seed) if transposed else normal(8, channels, seed=seed)
        start = draw(
            st.sampled_from(
                [("Gemm", "x v b", "t0", {"transB": int(transposed)}), ("LayerNormalization", "h g b", "t0")]
            )
        )
        steps = [
            "Relu t",
            "Neg t",
            "Mul t c",
            "Mul c t",
            "Div t c",
            "Sub c t",
            "Add t b",
            "Mul t s",
            "Mul k t",
            "Abs t",
        ]
    nodes: list[Any] = [("Gemm", "x v", "h", {"transB": int(transposed)})] if not image else []
    nodes += [start] if image else [("Sigmoid", "h", "s"), start]
    last = "t0"
    for number, step in enumerate(draw(st.lists(st.sampled_from(steps), max_size=5))):
        output = f"t{number + 1}"
        if step == "Where":
            nodes.append(("Max", f"{last} c", output))
        else:
            op, *reads = step.split()
            attrs = {"kernel_shape": [2, 2]} if "Pool" in op else {}
            nodes.append((op, " ".join(last if read == "t" else read for read in reads), output, attrs))
        last = output
    readers = draw(st.integers(1, 3))
    for number in range(readers):
        if image:
            depthwise = draw(st.booleans())
            weights[f"w{number}"] = normal(channels, 1 if depthwise else channels, 1, 1, seed=seed + number)
            nodes.append(("Conv", f"{last} w{number}", f"y{number}", {"group": channels if depthwise else 1}))
        else:
            flip = draw(st.booleans())
            weights[f"w{number}"] = normal(*((5, channels) if flip else (channels, 5)), seed=seed + number)
            nodes.append(("Gemm", f"{last} w{number}", f"y{number}", {"transB": int(flip)}))
    inputs = {"x": (2, 4, 9, 9)} if image else {"x": (3, 8)}
    proto = model(*nodes, inputs=inputs, weights=weights, outputs=[f"y{k}" for k in range(readers)], opset=23)
    proto.doc_string = last
    return proto


@settings(max_examples=60, deadline=None)
@given(networks())
def test_generated_networks_stay_exact(proto: onnx.ModelProto) -> None:
    divide(proto, proto.doc_string)
