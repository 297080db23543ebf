"""Placement rules: which linear nodes are candidates, and the rule and reason of every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.macs import node_macs, tensors_for_shapes
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement.candidates import (
    by_activation,
    decision,
    existing,
    find_candidates,
    not_numbers,
    too_small,
)
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

RNG = np.random.default_rng(2)
RTX, FULL = parse_target("tensorrt-rtx"), parse_target("tensorrt")
HALF = np.float16


def weight(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


def graph(*nodes: Spec, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), **weights: Any) -> gs.Graph:
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights=weights, opset=21))


def verdict(*nodes: Spec, target: Any = RTX, keep: tuple[str, ...] = (), **how: Any) -> Candidate | Refusal:
    """That of the only linear or recurrent node."""
    found, refused = find_candidates(graph(*nodes, **how), target, keep)
    everything: list[Candidate | Refusal] = [*found, *refused]
    (one,) = everything
    return one


X2: dict[str, Any] = {"x": (4, 32)}
X3: dict[str, Any] = {"x": (2, 6, 32)}
X4: dict[str, Any] = {"x": (1, 32, 8, 8)}


@pytest.mark.parametrize(
    ("node", "inputs", "shape", "axis"),
    [
        (("MatMul", "x w", "y"), X3, (32, 48), 1),
        (("Gemm", "x w", "y"), X2, (32, 48), 1),
        (("Gemm", "x w", "y", {"transB": 1}), X2, (48, 32), 0),
        (("Conv", "x w", "y"), X4, (48, 32, 3, 3), 0),
        (("Conv", "x w", "y", {"group": 32}), X4, (32, 1, 3, 3), 0),
    ],
)
def test_a_linear_node_with_a_constant_weight_is_a_candidate(
    node: Spec, inputs: dict[str, Any], shape: tuple[int, ...], axis: int
) -> None:
    assert verdict(node, inputs=inputs, w=weight(*shape)) == Candidate("Y", node[0], "x", "w", axis)


def test_a_weight_behind_a_transpose_keeps_its_channels() -> None:
    nodes = (("Transpose", "w", "t", {"perm": [1, 0]}), ("MatMul", "x t", "y"))
    assert verdict(*nodes, inputs=X3, w=weight(48, 32)) == Candidate("Y", "MatMul", "x", "w", 0, ("T",))


def test_a_weight_behind_a_reshape_that_mixes_channels_gets_one_scale() -> None:
    nodes = (("Reshape", "w s", "r"), ("MatMul", "x r", "y"))
    found = verdict(*nodes, inputs=X3, w=weight(16, 96), s=np.array([32, 48]))
    assert found == Candidate("Y", "MatMul", "x", "w", None, ("R",))


@pytest.mark.parametrize(
    ("nodes", "how", "rule"),
    [
        ([("MatMul", "x z", "y")], {"inputs": {**X3, "z": (2, 32, 8)}}, "attention"),
        ([("Conv", "x z", "y")], {"inputs": {**X4, "z": (8, 32, 1, 1)}}, "dynamic-weight"),
        ([("MatMul", "w x", "y")], {"inputs": {"x": (32, 8)}, "w": weight(16, 32)}, "weight-left"),
        ([("MatMul", "x w", "y")], {"inputs": {"x": (HALF, (6, 32))}, "w": weight(32, 48, dtype=HALF)}, "not-float"),
        (
            [("Cast", "w", "c", {"to": 1}), ("MatMul", "x c", "y")],
            {"inputs": X3, "w": weight(32, 48, dtype=HALF)},
            "not-float",
        ),
        ([("Gemm", "x w", "y", {"alpha": 0.5})], {"inputs": X2, "w": weight(32, 48)}, "gemm-alpha"),
        ([("MatMul", "x w", "y")], {"inputs": X3, "w": weight(32)}, "gemv"),
        ([("ConvTranspose", "x w", "y")], {"inputs": X4, "w": weight(32, 16, 2, 2)}, "no-kernel"),
        (
            [("LSTM", "x w r", "y", {"hidden_size": 4})],
            {"inputs": {"x": (5, 1, 8)}, "w": weight(1, 16, 8), "r": weight(1, 16, 4)},
            "recurrent",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_refused_with_its_rule(nodes: list[Spec], how: dict[str, Any], rule: str) -> None:
    one = verdict(*nodes, **how)
    assert isinstance(one, Refusal)
    assert one.rule == rule
    assert len(one.why) > 15


def test_conv_transpose_is_a_candidate_where_the_target_has_it() -> None:
    found = verdict(("ConvTranspose", "x w", "y"), inputs=X4, w=weight(32, 16, 2, 2), target=FULL)
    assert found == Candidate("Y", "ConvTranspose", "x", "w", 1)


def test_keep_matches_anywhere_in_the_name_and_comes_first() -> None:
    nodes = (("MatMul", "x w1", "head_a"), ("MatMul", "head_a w2", "y"))
    g = graph(*nodes, inputs=X3, w1=weight(32, 32), w2=weight(32, 32))
    found, refused = find_candidates(g, RTX, ("^HEAD", "nothing"))
    assert [one.node for one in found] == ["Y"]
    assert [(one.node, one.rule) for one in refused] == [("HEAD_A", "kept")]
    assert "'^HEAD'" in refused[0].why


def test_what_came_quantized_is_left_alone() -> None:
    nodes = (
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("DequantizeLinear", "w s z", "v"),
        ("MatMul", "d v", "y"),
    )
    constants: dict[str, Any] = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((32, 32), np.int8)}
    one = verdict(*nodes, inputs=X3, **constants)
    assert isinstance(one, Refusal)
    assert one.rule == "quantized-already"
    plan = existing(graph(*nodes, inputs=X3, **constants))
    assert plan.precision("Y") is DType.INT8


def came(*, weight: Any, axis: int = 1, block: int = 0, alone: bool = True) -> Candidate | Refusal:
    """A MatMul of x, or of x behind a pair, with a stored weight."""
    pair = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"))
    attrs = {"axis": axis} | ({"block_size": block} if block else {})
    scales = np.full((weight.shape[0] // block, weight.shape[1]) if block else (weight.shape[axis],), 0.01, np.float32)
    nodes: tuple[Spec, ...] = (*(() if alone else pair), ("DequantizeLinear", "w ws wz", "v", attrs))
    nodes += (("MatMul", "x v" if alone else "d v", "y"),)
    constants: dict[str, Any] = {"ws": scales, "wz": np.zeros(scales.shape, weight.dtype), "w": weight}
    constants |= {} if alone else {"s": np.float32(0.1), "z": np.int8(0)}
    return verdict(*nodes, inputs=X3, **constants)


def test_a_weight_that_came_stored_is_a_candidate_with_its_scales() -> None:
    one = came(weight=np.ones((32, 32), np.int8))
    assert isinstance(one, Candidate)
    assert (one.activation, one.weight, one.axis, one.amax) == ("x", "v", 1, None)
    assert one.scales is not None
    np.testing.assert_array_equal(one.scales, np.full(32, 0.01, np.float32))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"weight": np.ones((32, 32), np.uint8)}, "uint8"),
        ({"weight": np.ones((32, 32), np.int8), "axis": 0}, "output channels"),
        ({"weight": np.ones((32, 32), np.int8), "axis": 0, "block": 16}, "blocks"),
    ],
)
def test_a_stored_weight_that_no_quantized_activation_can_meet_stays_alone(given: dict[str, Any], why: str) -> None:
    one = came(**given)
    assert isinstance(one, Refusal)
    assert one.rule == "weight-only"
    assert why in one.why


def test_a_pair_gives_its_range_to_everything_that_reads_the_tensor() -> None:
    nodes = (
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("MatMul", "d w1", "a"),
        ("MatMul", "x w2", "b"),
        ("Add", "a b", "y"),
    )
    constants: dict[str, Any] = {"s": np.float32(0.5), "z": np.int8(0), "w1": weight(32, 32), "w2": weight(32, 32)}
    found, refused = find_candidates(graph(*nodes, inputs=X3, **constants), RTX)
    assert refused == ()
    assert [(one.node, one.activation, one.amax) for one in found] == [("A", "x", 63.5), ("B", "x", 63.5)]


def test_a_product_of_which_one_operand_came_quantized_is_left_as_it_is() -> None:
    nodes = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"), ("MatMul", "d t", "y"))
    constants: dict[str, Any] = {"s": np.float32(0.5), "z": np.int8(0)}
    one = verdict(*nodes, inputs={**X3, "t": (2, 32, 6)}, **constants)
    assert isinstance(one, Refusal)
    assert one.rule == "half-quantized"


def test_a_float_graph_embodies_a_float_plan() -> None:
    plan = existing(graph(("MatMul", "x w", "y"), inputs=X3, w=weight(32, 48)))
    assert plan.precision("Y") is DType.FP32


def test_layers_in_branches_are_refused_and_named_with_their_owner() -> None:
    then = graph_proto([("MatMul", "x w", "t")], {}, ["t"], {"w": weight(32, 32)})
    other = graph_proto([("Identity", "x", "o")], {}, ["o"])
    one = verdict(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={"flag": (np.bool_, ()), **X3}
    )
    assert isinstance(one, Refusal)
    assert (one.rule, one.op) == ("subgraph", "MatMul")
    assert "'Y' (If)" in one.why


def test_operators_of_other_domains_are_not_ours() -> None:
    proto = model(
        ("Conv", "x w", "y", {}, "com.acme"), inputs=X4, weights={"w": weight(8, 32, 1, 1)}, domains=("com.acme",)
    )
    found, (refusal,) = find_candidates(to_graph(proto), RTX)
    assert found == ()
    assert (refusal.node, refusal.rule) == ("Y", "custom")
    assert "Conv of domain 'com.acme'" in refusal.why


def joint(op: str) -> gs.Graph:
    """One MatMul for q, k and v, taken apart by Gather or Split behind a Reshape and a Transpose."""
    apart: dict[str, tuple[Spec, ...]] = {
        "Gather": (("Gather", "t i", "y"),),
        "Split": (("Split", "t", "y u v", {"num_outputs": 3}),),
        "Relu": (("Relu", "t", "y"),),
    }
    nodes = (("MatMul", "x w", "a"), ("Reshape", "a s", "b"), ("Transpose", "b", "t", {"perm": [2, 0, 1, 3]}))
    constants: dict[str, Any] = {"s": np.array([2, 6, 3, 32]), "i": np.array(1)}
    return graph(*nodes, *apart[op], inputs=X3, w=weight(32, 96), **constants)


@pytest.mark.parametrize(("op", "axis"), [("Gather", None), ("Split", None), ("Relu", 1)])
def test_a_joint_projection_gets_one_weight_scale_where_the_compiler_needs_it(op: str, axis: int | None) -> None:
    (found,), _ = find_candidates(joint(op), RTX)
    assert found.axis == axis
    (found,), _ = find_candidates(joint(op), FULL)
    assert found.axis == 1


@pytest.mark.parametrize(
    ("node", "dims", "shape", "rule"),
    [
        (("MatMul", "x w", "y"), (2, 6, 32), (32, 8), "tiny"),
        (("MatMul", "x w", "y"), (2, 6, 8), (8, 32), "tiny"),
        (("MatMul", "x w", "y"), (2, 6, 32), (32, 16), None),
        (("MatMul", "x w", "y"), (1, 1, 32), (32, 48), "gemv"),
        (("MatMul", "x w", "y"), (32,), (32, 48), "gemv"),
        (("MatMul", "x w", "y"), (2, 1, 32), (32, 48), None),
        (("MatMul", "x w", "y"), (100, 1, 32), (32, 48), None),
        (("MatMul", "x w", "y"), (6, 32), (32, 48), None),
        (("MatMul", "x w", "y"), (3, 1, 32), (3, 32, 48), "gemv"),
        (("MatMul", "x w", "y"), (3, 5, 32), (3, 32, 48), None),
        (("MatMul", "x w", "y"), (1, 32), (32, 48), "gemv"),
        (("Gemm", "x w", "y"), (6, 32), (32, 48), None),
        (("Gemm", "x w", "y", {"transB": 1}), (6, 32), (8, 32), "tiny"),
        (("Gemm", "x w", "y", {"transA": 1}), (32, 1), (32, 48), "gemv"),
        (("Conv", "x w", "y"), (1, 32, 1, 1), (48, 32, 1, 1), "gemv"),
        (("Conv", "x w", "y"), (8, 32, 1, 1), (48, 32, 1, 1), None),
        (("Conv", "x w", "y"), (1, 32, 3, 3), (48, 32, 3, 3), None),
        (("Conv", "x w", "y"), (1, 3, 8, 8), (4, 3, 3, 3), None),
        (("Conv", "x w", "y"), (1, 32, 20), (48, 32, 1), None),
    ],
)
def test_small_products_are_refused_when_shapes_are_known(
    node: Spec, dims: tuple[int, ...], shape: tuple[int, ...], rule: str | None
) -> None:
    g = graph(node, inputs={"x": dims}, w=weight(*shape))
    (found,), _ = find_candidates(g, RTX)
    shapes = concrete_shapes(g, {"x": np.ones(dims, np.float32)}, tensors_for_shapes(g))
    small = too_small(found, g.nodes[0], shapes)
    assert (small and small.rule) == rule


def test_without_shapes_nothing_but_the_weight_can_be_too_small() -> None:
    g = graph(("MatMul", "x w", "y"), inputs={"x": ("n", "t", 32)}, w=weight(32, 48))
    (found,), _ = find_candidates(g, RTX)
    assert too_small(found, g.nodes[0], {}) is None


def test_what_reads_infinities_stays_float() -> None:
    g = graph(("MatMul", "x a", "m"), ("MatMul", "m b", "y"), inputs=X3, a=weight(32, 32), b=weight(32, 48))
    found, _ = find_candidates(g, RTX)
    seen = {"x": Histogram.of(np.ones(4, np.float32)), "m": Histogram.of(np.array([1, -np.inf, np.nan], np.float32))}
    (refusal,) = not_numbers(found, seen)
    assert (refusal.node, refusal.rule) == ("Y", "not-finite")
    assert refusal.why.startswith("2 values of its activation")


def test_candidates_that_share_an_activation_are_one_group() -> None:
    nodes = (("MatMul", "x w1", "a"), ("MatMul", "x w2", "b"), ("Add", "a b", "c"), ("MatMul", "c w1_", "y"))
    g = graph(*nodes, inputs=X3, w1=weight(32, 32), w2=weight(32, 32), w1_=weight(32, 32))
    found, _ = find_candidates(g, RTX)
    groups = by_activation(found)
    assert {name: [one.node for one in group] for name, group in groups.items()} == {"x": ["A", "B"], "c": ["Y"]}
    macs = node_macs(g, concrete_shapes(g, {"x": np.ones((2, 6, 32), np.float32)}, tensors_for_shapes(g)))
    assert macs == dict.fromkeys(("A", "B", "Y"), 2 * 6 * 32 * 32)


def test_a_refusal_becomes_a_line_of_the_plan() -> None:
    line = decision(Refusal("n", "Conv", "tiny", "because"), DType.BF16, 12)
    assert (line.node, line.op, line.precision, line.rule, line.why, line.macs) == (
        "n", "Conv", DType.BF16, "tiny", "because", 12,
    )  # fmt: skip


def test_what_is_refused_later_is_no_candidate_any_more() -> None:
    layers = find_candidates(
        graph(
            ("MatMul", "x w", "a"),
            ("MatMul", "x v", "b"),
            outputs=("a", "b"),
            inputs=X3,
            w=weight(32, 48),
            v=weight(32, 48),
        ),
        RTX,
    )
    left = layers.refusing([Refusal("A", "MatMul", "tiny", "too small")])
    assert [one.node for one in left.found] == ["B"]
    assert left.refused == (*layers.refused, Refusal("A", "MatMul", "tiny", "too small"))
    assert {name: [one.node for one in group] for name, group in layers.by_activation.items()} == {"x": ["A", "B"]}


def test_what_else_multiplies_is_refused_and_so_counts() -> None:
    body = graph_proto([("Einsum", "x w", "i", {"equation": "abc,cd->abd"}), ("Relu", "i", "j")], {}, ["j"])
    nodes = (
        ("Einsum", "x w", "e", {"equation": "abc,cd->abd"}),
        ("Attention", "e e e", "t", {"q_num_heads": 2, "kv_num_heads": 2}),
        ("If", "c", "f", {"then_branch": body, "else_branch": graph_proto([("Relu", "x", "k")], {}, ["k"])}),
        ("Add", "t f", "y"),
    )
    found, refused = find_candidates(graph(*nodes, inputs={**X3, "c": (np.bool_, ())}, w=weight(32, 32)), RTX)
    assert found == ()
    assert [(one.node, one.rule) for one in refused] == [("E", "no-rule"), ("T", "no-rule"), ("I", "subgraph")]
    assert "no rule quantizes Einsum" in refused[0].why


def test_quantized_operators_are_a_plan_already() -> None:
    weights: dict[str, Any] = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((32, 32), np.int8)}
    nodes = (
        ("QuantizeLinear", "x s z", "q"),
        ("QLinearMatMul", "q s z w s z s z", "r"),
        ("DequantizeLinear", "r s z", "y"),
    )
    plan = existing(graph(*nodes, inputs=X3, **weights))
    assert {one.node: one.precision for one in plan} == {"R": DType.INT8}
    blocks = {"b": np.zeros((48, 1, 16), np.uint8), "s": np.ones(48, np.float32)}
    packed = ("MatMulNBits", "x b s", "y", {"K": 32, "N": 48, "block_size": 32, "bits": 4}, "com.microsoft")
    plan = existing(to_graph(model(packed, inputs=X3, weights=blocks, opset=21, domains=("com.microsoft",))))
    assert {one.node: one.precision for one in plan} == {"Y": DType.INT4_WEIGHT}
