"""Q/DQ nodes are read as ONNX defines them: what is stored, how it is scaled, who reads it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from qcompiler.errors import EngineError
from qcompiler.ir import qdq
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(0)
S, Z = np.float32(0.1), np.int8(3)
F32: np.dtype[Any] = np.dtype(np.float32)


def graph_of(*nodes: Spec, **options: Any) -> gs.Graph:
    return to_graph(model(*nodes, **{"opset": 21, **options}))


def node_of(graph: gs.Graph, op: str) -> gs.Node:
    return next(node for node in graph.nodes if node.op == op)


def pair(**weights: Any) -> gs.Graph:
    """x → Q → DQ → Relu."""
    reads = " s z" if "z" in weights else " s"
    return graph_of(
        ("QuantizeLinear", "x" + reads, "q"),
        ("DequantizeLinear", "q" + reads, "d"),
        ("Relu", "d", "y"),
        weights={"s": S, **weights},
    )


@pytest.mark.parametrize(
    ("domain", "known"), [("", True), ("ai.onnx", True), (qdq.MICROSOFT, True), ("com.acme", False), (None, True)]
)
def test_q_and_dq_are_known_in_onnx_and_in_onnx_runtime(domain: str | None, known: bool) -> None:
    q, dq = (gs.Node(op, domain=domain) for op in ("QuantizeLinear", "DequantizeLinear"))
    assert (qdq.is_q(q), qdq.is_dq(dq)) == (known, known)
    assert not qdq.is_q(dq)
    assert not qdq.is_dq(q)
    assert not qdq.is_q(None)
    assert not qdq.is_dq(None)


def test_pairs_are_in_order_and_the_list_may_be_edited() -> None:
    graph = pair(z=Z)
    found = []
    for node in qdq.pairs(graph):
        found.append(node.op)
        graph.nodes.remove(node)
    assert found == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("zero", [np.int8(3), np.uint8(128), np.array(0, ml_dtypes.float8_e4m3fn), np.int16(0)])
def test_the_type_is_that_of_the_zero_point(zero: Any) -> None:
    q, dq = qdq.pairs(pair(z=zero))
    assert qdq.stored_type(q) == qdq.stored_type(dq) == zero.dtype
    assert qdq.zero_point_of(q) == zero
    assert qdq.scale_of(dq) == S


def test_without_anything_that_says_the_type_it_is_what_onnx_takes() -> None:
    q, dq = qdq.pairs(pair())
    for tensor in (qdq.integer_of(q), qdq.integer_of(dq)):
        tensor.dtype = None
    assert qdq.stored_type(q) == qdq.stored_type(dq) == np.uint8
    assert qdq.zero_point_of(q) is None
    q.attrs["output_dtype"] = 3  # TensorProto.INT8
    assert qdq.stored_type(q) == np.int8


def test_the_quantized_side_is_between_the_two() -> None:
    q, dq = qdq.pairs(pair(z=Z))
    assert qdq.integer_of(q) is qdq.integer_of(dq)


@pytest.mark.parametrize(
    ("shape", "scale", "attrs"),
    [
        ((6, 8), (), {}),
        ((6, 8), (1,), {"axis": 0}),
        ((6, 8), (6,), {"axis": 0}),
        ((6, 8), (8,), {}),
        ((6, 8), (8,), {"axis": -1}),
        ((2, 6, 3), (6,), {"axis": 1}),
        ((6, 8), (3, 8), {"axis": 0, "block_size": 2}),
        ((6, 8), (6, 2), {"axis": 1, "block_size": 4}),
    ],
    ids=str,
)
@pytest.mark.parametrize("signed", [True, False])
def test_floats_are_those_of_onnx_runtime(
    shape: tuple[int, ...], scale: tuple[int, ...], attrs: dict[str, int], signed: bool
) -> None:
    kind, low, high = (np.int8, -128, 128) if signed else (np.uint8, 0, 256)
    weights = {
        "w": RNG.integers(low, high, shape).astype(kind),
        "s": RNG.uniform(0.01, 1, scale).astype(np.float32),
        "z": RNG.integers(low, high, scale).astype(kind),
    }
    graph = graph_of(("DequantizeLinear", "w s z", "d", attrs), ("Identity", "d", "y"), weights=weights)
    (node,) = qdq.pairs(graph)
    expected = Session(graph, optimize=False).run({"x": np.zeros((2, 4), np.float32)})["y"]
    found = qdq.dequantized(node, F32)
    np.testing.assert_array_equal(found, expected, strict=True)
    assert qdq.dequantized(node, np.dtype(np.float16)).dtype == np.float16
    assert qdq.block_size(node) == attrs.get("block_size", 0)


def test_the_last_block_may_be_shorter() -> None:
    w, s = np.ones((5, 2), np.int8), np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    inputs = [gs.Constant("w", w), gs.Constant("s", s)]
    node = gs.Node("DequantizeLinear", "d", {"axis": 0, "block_size": 2}, inputs, [gs.Variable("y")])
    assert qdq.dequantized(node, F32).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4], [5, 6]]


def test_what_has_no_value_yet_is_refused_with_node_and_tensor() -> None:
    _, dq = qdq.pairs(pair(z=Z))
    with pytest.raises(EngineError, match=r"node 'D' \(DequantizeLinear, tensor 'q'\) has data or a scale"):
        qdq.dequantized(dq, F32)


def test_scales_that_do_not_fit_the_data_are_refused() -> None:
    inputs = [gs.Constant("w", np.ones((6, 8), np.int8)), gs.Constant("s", np.ones(5, np.float32))]
    node = gs.Node("DequantizeLinear", "d", {"axis": 0}, inputs, [gs.Variable("y")])
    with pytest.raises(EngineError, match="has 5 scales along an axis of 6"):
        qdq.dequantized(node, F32)


def weight_behind(view: Spec | None, *, activation: bool = False) -> gs.Graph:
    """x · DQ(w), with a view behind the DQ and perhaps a Q/DQ before the product."""
    w: NDArray[np.int8] = np.ones((4, 4), np.int8)
    nodes: list[Spec] = [("DequantizeLinear", "w s z", "d")]
    if activation:
        nodes += [("QuantizeLinear", "x s z", "xq"), ("DequantizeLinear", "xq s z", "xd")]
    if view is not None:
        nodes.append(view)
    nodes.append(("MatMul", f"{'xd' if activation else 'x'} {'d' if view is None else 'v'}", "y"))
    return graph_of(*nodes, weights={"w": w, "s": S, "z": Z})


@pytest.mark.parametrize("view", [None, ("Transpose", "d", "v"), ("Identity", "d", "v")], ids=["none", "T", "id"])
def test_a_weight_is_alone_where_its_product_reads_a_plain_float(view: Spec | None) -> None:
    graph = weight_behind(view)
    dq, product = graph.nodes[0], graph.nodes[-1]
    assert qdq.is_weight(dq)
    assert qdq.is_weight_only(dq)
    assert qdq.dequantizer(product.inputs[1]) is dq
    assert qdq.dequantizer(product.inputs[0]) is None
    both = weight_behind(view, activation=True)
    assert qdq.is_weight(both.nodes[0])
    assert not qdq.is_weight_only(both.nodes[0])


def test_a_float_constant_behind_a_q_is_a_weight_too_and_an_activation_is_none() -> None:
    graph = graph_of(
        ("QuantizeLinear", "w s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("MatMul", "x d", "y"),
        weights={"w": np.ones((4, 4), np.float32), "s": S, "z": Z},
    )
    assert all(qdq.is_weight(node) for node in qdq.pairs(graph))
    assert not any(qdq.is_weight(node) for node in qdq.pairs(pair(z=Z)))
    assert not any(qdq.is_weight_only(node) for node in qdq.pairs(pair(z=Z)))


def test_readers_are_found_behind_views_with_the_way_to_them() -> None:
    graph = graph_of(
        ("Transpose", "x", "t"),
        ("Identity", "t", "i"),
        ("Mul", "i i", "a"),
        ("Relu", "t", "b"),
        ("Neg", "x", "c"),
        outputs=["a", "b", "c"],
    )
    found = {(node.op, i, tuple(one.op for one in chain)) for node, i, chain in qdq.readers(graph.inputs[0])}
    assert found == {
        ("Mul", 0, ("Transpose", "Identity")),
        ("Mul", 1, ("Transpose", "Identity")),
        ("Relu", 0, ("Transpose",)),
        ("Neg", 0, ()),
    }
    assert {node.op for node, _, _ in qdq.readers(graph.inputs[0], ())} == {"Transpose", "Neg"}


def carried(*between: Spec, last: str) -> gs.Graph:
    return graph_of(
        ("QuantizeLinear", "x s z", "q"),
        *between,
        ("DequantizeLinear", f"{last} s z", "y"),
        weights={"s": S, "z": Z, "shape": np.array([4, 2])},
    )


def test_integers_travel_through_what_only_carries_values() -> None:
    graph = carried(("Transpose", "q", "t"), ("Reshape", "t shape", "r"), last="r")
    found = qdq.region(graph, graph.nodes[0].outputs[0], np.dtype(np.int8))
    assert found is not None
    assert {tensor.name for tensor in found.tensors} == {"q", "t", "r"}
    assert {node.op for node in found.ends} == {"QuantizeLinear", "DequantizeLinear"}
    middle = qdq.region(graph, graph.nodes[1].outputs[0], np.dtype(np.int8))
    assert middle is not None
    assert {id(one) for one in middle.tensors} == {id(one) for one in found.tensors}


def test_integers_that_are_computed_with_or_leave_the_graph_have_no_region() -> None:
    graph = carried(("Add", "q q", "a"), last="a")
    assert qdq.region(graph, graph.nodes[0].outputs[0], np.dtype(np.int8)) is None
    leaving = carried(("Transpose", "q", "t"), last="t")
    leaving.outputs.append(leaving.nodes[1].outputs[0])
    assert qdq.region(leaving, leaving.nodes[0].outputs[0], np.dtype(np.int8)) is None


def test_every_signed_twin_has_limits() -> None:
    for unsigned, signed in qdq.SIGNED.items():
        low, high = qdq.LIMITS[signed]
        bits = 4 if signed == qdq.INT4 else 8
        assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert np.array([low, high]).astype(signed).astype(int).tolist() == [low, high]
        assert int(np.array(high - low).astype(unsigned)) == high - low
