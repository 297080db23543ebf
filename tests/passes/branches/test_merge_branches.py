from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.branches.merge_branches import MergeBranches
from qcompiler.runtime.session import Session
from tests.kit.rewrite import check, check_untouched, graph_proto, model, to_graph

RNG = np.random.default_rng(6)
WIDE = 8
NAMES = "q k v o up down"


def weights(layers: int) -> dict[str, Any]:
    found = {
        f"{n}{i}": RNG.standard_normal((WIDE, WIDE)).astype(np.float32) / 3
        for i in range(layers)
        for n in NAMES.split()
    }
    return {**found, "other": np.ones((WIDE, WIDE), np.float32), "two": np.float32(2)}


def decoder(past: bool, layers: int) -> onnx.GraphProto:
    """Layers of attention and feed-forward over x, with the cache in front or without, as an exporter writes them."""
    t = "p" if past else "n"
    nodes: list[Any] = []
    x = "x"
    for i in range(layers):
        nodes += [("MatMul", f"{x} {one}{i}", f"{t}{one}{i}") for one in "qkv"]
        for one in "kv":
            own, whole = f"{t}{one}{i}", f"{t}all_{one}{i}"
            nodes.append(("Concat", f"past_{one}{i} {own}", whole, {"axis": 1}) if past else ("Identity", own, whole))
        nodes += [
            ("Transpose", f"{t}all_k{i}", f"{t}turned{i}", {"perm": [0, 2, 1]}),
            ("MatMul", f"{t}q{i} {t}turned{i}", f"{t}s{i}"),
            ("Softmax", f"{t}s{i}", f"{t}a{i}", {"axis": -1}),
            ("MatMul", f"{t}a{i} {t}all_v{i}", f"{t}c{i}"),
            ("MatMul", f"{t}c{i} o{i}", f"{t}w{i}"),
            ("Add", f"{x} {t}w{i}", f"{t}r{i}"),
            ("MatMul", f"{t}r{i} up{i}", f"{t}u{i}"),
            ("Relu", f"{t}u{i}", f"{t}relu{i}"),
            ("MatMul", f"{t}relu{i} down{i}", f"{t}x{i}"),
        ]
        x = f"{t}x{i}"
    return graph_proto(nodes, {}, [x, *(f"{t}all_{one}{i}" for i in range(layers) for one in "kv")])


def merged(layers: int) -> onnx.ModelProto:
    outputs = ["y", *(f"present_{one}{i}" for i in range(layers) for one in "kv")]
    branches = {"then_branch": decoder(True, layers), "else_branch": decoder(False, layers)}
    inputs = {"x": ("b", "s", WIDE), "flag": (bool, (1,))}
    inputs |= {f"past_{one}{i}": ("b", "past", WIDE) for i in range(layers) for one in "kv"}
    proto = model(("If", "flag", " ".join(outputs), branches), inputs=inputs, outputs=outputs, weights=weights(layers))
    for value in proto.graph.output:
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [None, None, WIDE]))
    return proto


def feeds(layers: int, flag: bool, past: int = 4) -> dict[str, Any]:
    caches = {
        f"past_{one}{i}": RNG.standard_normal((2, past, WIDE)).astype(np.float32) for i in range(layers) for one in "kv"
    }
    return {"x": RNG.standard_normal((2, 3, WIDE)).astype(np.float32), "flag": np.array([flag]), **caches}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("flag", [True, False])
def test_the_layers_of_a_decoder_stand_around_what_differs(layers: int, flag: bool) -> None:
    graph, report = check(MergeBranches(), merged(layers), feeds(layers, flag), tolerance=1e-5)
    assert sum(graphs.is_linear(node) for node in graph.nodes) == 8 * layers
    inside = [node for inner in graphs.branches(graph) for node in inner.nodes]
    assert not any(graphs.is_linear(node) for node in inside)
    assert sum(graphs.is_op(node, "Concat") for node in inside) == 2 * layers
    assert report.changed == 1


def test_an_empty_cache() -> None:
    check(MergeBranches(), merged(2), feeds(2, False, past=0), tolerance=1e-5)


def two(then: list[Any], other: list[Any], ends: str = "p q") -> onnx.ModelProto:
    a, b = ends.split()
    branches = {"then_branch": graph_proto(then, {}, [a]), "else_branch": graph_proto(other, {}, [b])}
    return model(
        ("If", "flag", "y", branches), inputs={"x": (2, WIDE), "flag": (bool, ())}, weights=weights(1), opset=18
    )


def test_branches_that_are_the_same_leave_no_if() -> None:
    proto = two([("MatMul", "x q0", "p")], [("MatMul", "x q0", "q")])
    graph, _ = check(MergeBranches(), proto, ops=["MatMul", "Identity"])
    assert not any(graphs.is_op(node, "If") for node in graph.nodes)


@pytest.mark.parametrize(
    ("then", "other"),
    [
        ([("MatMul", "x q0", "p")], [("MatMul", "x k0", "q")]),
        ([("MatMul", "x q0", "p")], [("Mul", "x two", "q")]),
        ([("Relu", "x", "p")], [("Relu", "x", "q")]),
    ],
    ids=["weights", "operators", "no-layers"],
)
def test_branches_that_share_no_layer_are_not_touched(then: list[Any], other: list[Any]) -> None:
    check_untouched(MergeBranches(), two(then, other))


def test_attributes_keep_nodes_apart() -> None:
    then = [("MatMul", "x q0", "m"), ("Elu", "m", "p", {"alpha": 1.0})]
    other = [("MatMul", "x q0", "n"), ("Elu", "n", "q", {"alpha": 2.0})]
    proto = two(then, other)
    graph, _ = check(MergeBranches(), proto, ops=["MatMul", "If", "Identity"])
    for flag in (True, False):
        feed = {"x": RNG.standard_normal((2, WIDE)).astype(np.float32), "flag": np.array(flag)}
        before, after = (Session(one, optimize=False).run(feed)["y"] for one in (to_graph(proto), graph))
        np.testing.assert_array_equal(before, after)


def test_what_would_wait_for_itself_stays() -> None:
    """In one branch the first layer reads what the second one makes, in the other it is the other way round."""
    then = [("MatMul", "x q0", "a"), ("Neg", "a", "b"), ("MatMul", "b k0", "c"), ("Add", "a c", "p")]
    other = [("MatMul", "x k0", "d"), ("Neg", "d", "e"), ("MatMul", "e q0", "f"), ("Add", "f d", "q")]
    proto = two(then, other)
    graph = to_graph(proto)
    MergeBranches()(graph)
    for flag in (True, False):
        feed = {"x": RNG.standard_normal((2, WIDE)).astype(np.float32), "flag": np.array(flag)}
        before, after = (Session(one, optimize=False).run(feed)["y"] for one in (to_graph(proto), graph))
        np.testing.assert_allclose(before, after, rtol=1e-5)


def test_sizes_that_are_computed_apart_do_not_keep_layers_inside() -> None:
    """Both branches reshape with a shape of their own making, which several nodes of theirs read."""
    then = [
        ("Shape", "x", "s"), ("MatMul", "x q0", "a"), ("Reshape", "a s", "b"), ("MatMul", "b k0", "c"),
        ("Reshape", "c s", "p"),
    ]  # fmt: skip
    other = [
        ("Shape", "x", "h"), ("Abs", "h", "t"), ("MatMul", "x q0", "d"), ("Reshape", "d t", "e"),
        ("MatMul", "e k0", "f"), ("Reshape", "f t", "q"),
    ]  # fmt: skip
    proto = two(then, other)
    graph, _ = check(MergeBranches(), proto)
    assert [node.op for node in graph.nodes].count("MatMul") == 2
    assert not any(graphs.is_linear(node) for inner in graphs.branches(graph) for node in inner.nodes)
