"""Where a tensor cannot be divided, the reason names the node, and nothing changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from tests.kit.absorbing import DENSE, IMAGE, KERNEL, TOKENS, VECTORS, build, find, positive
from tests.kit.rewrite import to_graph, whole

# --- Refusals ---

INT8 = {"x": (np.int8, (2, 8))}
# What stands before `t`, weights, inputs, why not
REFUSED: dict[str, tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any], str]] = {
    "input": ([("MatMul", "t w", "y")], {"w": (8, 5)}, {"t": (2, 8)}, "'t' is an input of the graph"),
    "softmax": ([("Softmax", "x", "t"), DENSE], {"w": (8, 5)}, TOKENS, "'T' (Softmax) does not pass a factor on"),
    "gelu": ([("Gelu", "x", "t"), DENSE], {"w": (8, 5)}, TOKENS, "'T' (Gelu) does not pass a factor on"),
    "a part that is computed": (
        [("MatMul", "x v", "a"), ("Gather", "a ids", "t", {"axis": 2}), DENSE],
        {"v": (8, 8), "w": (4, 5)},
        {**TOKENS, "ids": (np.int64, (4,))},
        "which elements 'T' (Gather) takes is not known",
    ),
    "parts along several axes": (
        [("MatMul", "x v", "a"), ("Gather", "a ids", "t", {"axis": 2}), DENSE],
        {"v": (8, 8), "ids": np.array([[1, 2], [3, 4]]), "w": (2, 5)},
        TOKENS,
        "'T' (Gather) gathers channels along several axes",
    ),
    "SiLU": (
        [("MatMul", "x v", "a"), ("Sigmoid", "a", "s"), ("Mul", "a s", "t"), DENSE],
        {"v": (8, 6), "w": (6, 5)},
        TOKENS,
        "no factor of 'T' takes it: 'a' is also read by 'S' (Sigmoid); 'S' (Sigmoid) does not pass a factor on",
    ),
    "square": (
        [("MatMul", "x v", "a"), ("Mul", "a a", "t"), DENSE],
        {"v": (8, 6), "w": (6, 5)},
        TOKENS,
        "'a' is also read by 'T' (Mul)",
    ),
    "both sides computed": (
        [("Exp", "x", "e"), ("Tanh", "x", "f"), ("Div", "e f", "t"), DENSE],
        {"w": (8, 5)},
        TOKENS,
        "neither side of 'T' takes it: 'E' (Exp)",
    ),
    "ReLU6": (
        [("Conv", "x v", "a"), ("Clip", "a zero six", "t"), KERNEL],
        {"v": (6, 4, 1, 1), "w": (5, 6, 1, 1), "zero": np.float32(0), "six": np.float32(6)},
        IMAGE,
        "'T' (Clip) has one bound for all channels",
    ),
    "a layer that computes its weight": (
        [("MatMul", "x v", "t"), DENSE, ("Exp", "x", "e"), ("MatMul", "t e", "z")],
        {"v": (4, 3), "w": (3, 5)},
        VECTORS,
        "'t' is also read by 'Z' (MatMul), which has no constant weight",
    ),
    "a Conv that computes its weight": (
        [("Exp", "v", "u"), ("Conv", "x u", "t"), KERNEL],
        {"w": (5, 6, 1, 1)},
        {**IMAGE, "v": (6, 4, 1, 1)},
        "input 1 of 'T' (Conv) is not constant",
    ),
    "rows and columns": (
        [("MatMul", "x v", "t"), DENSE, ("MatMul", "u t", "z")],
        {"v": (8, 6), "w": (6, 5), "u": (4, 5)},
        TOKENS,
        "which adds up elements of different channels",
    ),
    "a weight of other size": (
        [("MatMul", "x v", "a"), ("Relu", "a", "t"), DENSE, ("Reshape", "a shape", "b"), ("MatMul", "b u", "z")],
        {"v": (8, 6), "w": (6, 5), "u": (3, 5), "shape": np.array([0, 0, 2, 3])},
        TOKENS,
        "'a' is also read by 'B' (Reshape)",
    ),
    "embedding sum": (
        [("LayerNormalization", "x g", "a"), ("Add", "a x", "t"), DENSE],
        {"g": (8,), "w": (8, 5)},
        TOKENS,
        "'x' is an input of the graph",
    ),
    "training": (
        [("BatchNormalization", "x g b m v", "t rm rv", {"training_mode": 1}), KERNEL],
        {"g": (4,), "b": (4,), "m": (4,), "v": positive(4), "w": (5, 4, 1, 1)},
        IMAGE,
        "'T' (BatchNormalization) is in training mode",
    ),
    "another output": (
        [("MaxPool", "x", "p t0", {"kernel_shape": [2, 2]}), ("Cast", "t0", "t", {"to": 1}), KERNEL],
        {"w": (5, 4, 1, 1)},
        IMAGE,
        "'t0' is not float",
    ),
    "vectors": (
        [("MatMul", "x v", "t"), DENSE],
        {"v": (8,), "w": (5, 3)},
        TOKENS,
        "'T' (MatMul) multiplies vectors",
    ),
    "statistics of a norm": (
        [("LayerNormalization", "x g b", "z t"), DENSE],
        {"g": (8,), "b": (8,), "w": (1, 3)},
        TOKENS,
        "'t' is not the main output of 'Z' (LayerNormalization)",
    ),
    "a part of what a kernel writes": (
        [("Conv", "x v", "a"), ("Split", "a", "z t", {"axis": 2, "num_outputs": 2}), KERNEL],
        {"v": (6, 4, 1, 1), "w": (5, 6, 1, 1)},
        IMAGE,
        "the part that 'Z' (Split) takes cannot be divided: only a part of 'a' would be divided",
    ),
    "an integer weight": (
        [("MatMul", "x v", "t"), DENSE, ("Cast", "u8", "u", {"to": 1}), ("MatMul", "t u", "z")],
        {"v": (8, 6), "w": (6, 5), "u8": np.ones((6, 5), np.int8)},
        TOKENS,
        "'t' is also read by 'Z' (MatMul): constant 'u8' of 'Z' is not float",
    ),
    "an integer bias": (
        [("MatMul", "x v", "a"), ("Cast", "b8", "b", {"to": 1}), ("Add", "a b", "t"), DENSE],
        {"v": (8, 6), "b8": np.ones(6, np.int8), "w": (6, 5)},
        TOKENS,
        "'b8' is not float",
    ),
    "a scalar behind a view": (
        [("MatMul", "x v", "a"), ("Reshape", "b shape", "c"), ("Add", "a c", "t"), DENSE],
        {"v": (8, 6), "b": np.float32(2), "shape": np.array([1, 1]), "w": (6, 5)},
        TOKENS,
        "constant 'c' of 'T' stands behind a node that fixes its shape",
    ),
    "mixed axes": (
        [("Exp", "x", "a"), ("Reshape", "a shape", "t"), DENSE],
        {"shape": np.array([-1, 8]), "w": (8, 5)},
        {"x": ("n", 12)},
        "'T' (Reshape) mixes channels with other axes, or their number is not known",
    ),
    "padded channels": (
        [("Conv", "x v", "a"), ("Pad", "a pads", "t"), KERNEL],
        {"v": (6, 4, 1, 1), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]), "w": (5, 8, 1, 1)},
        IMAGE,
        "'T' (Pad) pads along the channels",
    ),
    "padded with ones": (
        [("Conv", "x v", "a"), ("Pad", "a pads one", "t"), KERNEL],
        {"v": (6, 4, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.float32(1), "w": (5, 6, 1, 1)},
        IMAGE,
        "'T' (Pad) does not pad with zeros by fixed amounts",
    ),
    "resized channels": (
        [("Conv", "x v", "a"), ("Resize", "a _ zoom", "t"), KERNEL],
        {"v": (6, 4, 1, 1), "zoom": np.array([1, 2, 1, 1], np.float32), "w": (5, 12, 1, 1)},
        IMAGE,
        "'T' (Resize) may resize the channels",
    ),
    "computed repeats": (
        [("MatMul", "x v", "a"), ("Tile", "a n", "t"), DENSE],
        {"v": (8, 6), "w": (6, 5)},
        {**TOKENS, "n": (np.int64, (3,))},
        "'T' (Tile) computes how often it repeats",
    ),
    "open parts of a Concat": (
        [("Relu", "x", "a"), ("Concat", "a b", "t", {"axis": 1}), DENSE],
        {"w": (8, 5)},
        {"x": (2, "n"), "b": (2, "m")},
        "'a', a part of 'T' (Concat), has an open number of channels",
    ),
    "quantized weight": (
        [("DequantizeLinear", "v8 step", "v"), ("MatMul", "x v", "t"), DENSE],
        {"v8": np.ones((8, 6), np.int8), "step": np.float32(1), "w": (6, 5)},
        TOKENS,
        "'V' (DequantizeLinear) does not pass a factor on",
    ),
    "a scalar norm of unknown length": (
        [("Exp", "x", "e"), ("Mul", "e two", "t"), DENSE],
        {"two": np.float32(2), "w": (8, 5)},
        {"x": (2, "n")},
        "the length of 't' along its channels is not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    nodes, weights, inputs, why = REFUSED[case]
    outputs = ["y", "z"] if any("z" in spec[2].split() for spec in nodes) else ["y"]
    graph = to_graph(build(nodes, weights, inputs, outputs))
    tensor = find(graph, "t")
    plan = absorb.find_moves(graph, tensor, absorb.channel_axis(tensor) or -1)
    assert why in plan.why
    assert absorb.apply(graph, plan, np.ones(plan.classes.size, np.float32), Names(graph)) == plan.why


def test_reductions_over_computed_axes_are_refused() -> None:
    nodes = [("MatMul", "x v", "a"), ("ReduceMean", "a axes", "t", {"keepdims": 1}), DENSE]
    graph = to_graph(build(nodes, {"v": (8, 6), "w": (6, 5)}, {**TOKENS, "axes": (np.int64, (1,))}))
    find(graph, "t").shape = [2, "rows", 6]
    assert absorb.can(graph, find(graph, "t"), -1) == "'T' (ReduceMean) does not name its axes"


def test_an_unknown_rank_on_the_way_is_refused() -> None:
    graph = to_graph(build([("MatMul", "x v", "a"), ("Relu", "a", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS))
    find(graph, "a").shape = None
    assert absorb.can(graph, find(graph, "t"), -1) == "the rank of 'a' is not known"


def test_a_shape_that_does_not_fit_is_refused() -> None:
    graph = to_graph(build([("MatMul", "x v", "a"), ("Relu", "a", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS))
    find(graph, "a").shape = [2, 5, 7]
    assert absorb.can(graph, find(graph, "t"), -1) == "'a' has 7 elements along an axis of 6 factors"


def test_a_transposed_convolution_of_other_size_is_refused() -> None:
    nodes = [("ConvTranspose", "x v", "a"), ("Relu", "a", "t"), KERNEL]
    graph = to_graph(build(nodes, {"v": (4, 6, 1, 1), "w": (5, 6, 1, 1)}, IMAGE))
    find(graph, "t").shape = find(graph, "a").shape = [2, 7, 6, 6]
    assert absorb.can(graph, find(graph, "t"), 1) == "'A' (ConvTranspose) has 6 channels, not 7"


def test_a_gather_of_unknown_rank_is_refused() -> None:
    graph = to_graph(build([("Gather", "e ids", "t"), DENSE], {"e": (9, 8), "w": (8, 5)}, {"ids": (np.int64, (2, 3))}))
    find(graph, "ids").shape = None
    assert absorb.can(graph, find(graph, "t"), -1) == "the ranks of the inputs of 'T' (Gather) are not known"


def test_no_layer_reads_along_that_axis() -> None:
    graph = to_graph(build([("MatMul", "x v", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS))
    assert "no linear node" in absorb.can(graph, find(graph, "t"), -2)
    assert "no linear node" in absorb.find_insertion(graph, find(graph, "t"), -2).why
    assert absorb.channel_axis(find(graph, "y")) is None


@pytest.mark.parametrize(
    ("reader", "why"),
    [(("MatMul", ["t", "w"]), "'t' is read in a branch or a loop"), (("Exp", ["t"]), "'t' is also read by 'E' (Exp)")],
    ids=lambda value: value[0],
)
def test_what_a_branch_reads_is_left_alone(reader: Any, why: str) -> None:
    op, reads = reader
    inside = onnx.helper.make_node(op, reads, ["e"], name="E")
    branch = onnx.helper.make_graph([inside], "b", [], [onnx.ValueInfoProto(name="e")])
    proto = build(
        [("MatMul", "x v", "t"), DENSE, ("If", "c", "z", {"then_branch": branch, "else_branch": branch})],
        {"v": (8, 6), "w": (6, 5)},
        {**TOKENS, "c": (np.bool_, ())},
    )
    graph = to_graph(proto)
    assert absorb.can(graph, find(graph, "t"), -1) == why


def test_a_tensor_that_nothing_computes_is_refused() -> None:
    graph = to_graph(build([DENSE], {"w": (8, 5)}, {"t": (2, 8)}))
    tensor = graph.inputs.pop()
    assert absorb.can(graph, tensor, -1) == "'t' is not computed in this graph"


def test_a_stream_without_end_is_given_up() -> None:
    links = [("Relu", f"a{k}", f"a{k + 1}") for k in range(120)]
    proto = build([("MatMul", "x v", "a0"), *links, ("Relu", "a120", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS)
    graph = to_graph(proto)
    assert "within 100 tensors" in absorb.can(graph, find(graph, "t"), -1)


@pytest.mark.parametrize(
    ("scale", "why"),
    [
        (np.ones(5), "6 channels and 5 factors"),
        (np.array([1, 1, 0, 1, 1, 1]), "not positive"),
        (np.array([1, 1, np.inf, 1, 1, 1]), "not positive and finite"),
        (np.array([1, 1, 1e-38, 1, 1, 1]), "would leave the range of float32"),
    ],
)
def test_factors_that_cannot_be_applied(scale: Any, why: str) -> None:
    graph = to_graph(build([("MatMul", "x v", "t"), DENSE], {"v": (8, 6), "w": (6, 5)}, TOKENS))
    before = whole(graph).SerializeToString(deterministic=True)
    graph.nodes[0].inputs[1].values = graph.nodes[0].inputs[1].values * np.float32(1e5)
    before = whole(graph).SerializeToString(deterministic=True)
    plan = absorb.find_moves(graph, find(graph, "t"), -1)
    assert why in absorb.apply(graph, plan, scale.astype(np.float32), Names(graph))
    assert whole(graph).SerializeToString(deterministic=True) == before
