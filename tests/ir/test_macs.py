"""Multiply-accumulates: the figure of each operator, nested graphs without a run, and what nobody can count."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.macs import macs_of, multiplies, node_macs, tensors_for_shapes, uncounted
from qcompiler.runtime.shapes import concrete_shapes
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

RNG = np.random.default_rng(0)
MS = "com.microsoft"
Shape = tuple[int, ...]


def macs(spec: Spec, dims: dict[str, Shape], **shapes: Shape) -> int | None:
    """Those of one node, with weights of these shapes, on inputs of those."""
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    graph = to_graph(model(spec, inputs=dims, weights=weights, opset=23))
    feeds = {name: np.ones(shape, np.float32) for name, shape in dims.items()}
    return macs_of(graph.nodes[0], concrete_shapes(graph, feeds, tensors_for_shapes(graph)))


def told(op: str, reads: list[Shape | None], writes: list[Shape | None], domain: str = MS, **attrs: Any) -> int | None:
    """Those of one node of which only shapes are known; None stands for what is omitted."""
    inputs = [gs.Variable.empty() if shape is None else gs.Variable(f"i{i}") for i, shape in enumerate(reads)]
    outputs = [gs.Variable.empty() if shape is None else gs.Variable(f"o{i}") for i, shape in enumerate(writes)]
    shapes = {f"i{i}": shape for i, shape in enumerate(reads) if shape is not None}
    shapes |= {f"o{i}": shape for i, shape in enumerate(writes) if shape is not None}
    return macs_of(gs.Node(op, "n", attrs, inputs, outputs, domain), shapes)


@pytest.mark.parametrize(
    ("spec", "dims", "weights", "expected"),
    [
        (("Conv", "x w", "y"), {"x": (2, 3, 10, 12)}, {"w": (8, 3, 3, 3)}, 2 * 8 * 8 * 10 * 27),
        (
            ("Conv", "x w", "y", {"strides": [2, 2], "pads": [1] * 4}),
            {"x": (1, 4, 8, 8)},
            {"w": (6, 4, 3, 3)},
            16 * 6 * 36,
        ),
        (("Conv", "x w", "y", {"group": 8}), {"x": (1, 8, 6, 6)}, {"w": (8, 1, 3, 3)}, 8 * 16 * 9),
        (("Conv", "x w", "y"), {"x": (1, 4, 20)}, {"w": (5, 4, 3)}, 5 * 18 * 12),
        (("ConvTranspose", "x w", "y"), {"x": (1, 4, 5, 5)}, {"w": (4, 6, 2, 2)}, 4 * 25 * 6 * 4),
        (("ConvTranspose", "x w", "y", {"group": 2}), {"x": (1, 4, 5, 5)}, {"w": (4, 3, 2, 2)}, 4 * 25 * 3 * 4),
        (("Gemm", "x w", "y"), {"x": (7, 5)}, {"w": (5, 11)}, 7 * 5 * 11),
        (("Gemm", "x w", "y", {"transA": 1, "transB": 1}), {"x": (5, 7)}, {"w": (11, 5)}, 7 * 5 * 11),
        (("MatMul", "x w", "y"), {"x": (2, 3, 4, 5)}, {"w": (5, 6)}, 2 * 3 * 4 * 5 * 6),
        (("MatMul", "x z", "y"), {"x": (2, 3, 4, 5), "z": (2, 1, 5, 6)}, {}, 2 * 3 * 4 * 5 * 6),
        (("MatMul", "x w", "y"), {"x": (4, 5)}, {"w": (5,)}, 20),
        (("MatMul", "x w", "y"), {"x": (5,)}, {"w": (5,)}, 5),
        (("DFT", "x", "y"), {"x": (3, 16, 1)}, {}, 3 * 2 * 16 * 4),
    ],
)
def test_each_operator_counts_its_products(
    spec: Spec, dims: dict[str, Shape], weights: dict[str, Shape], expected: int
) -> None:
    assert macs(spec, dims, **weights) == expected


@pytest.mark.parametrize(
    ("equation", "operands", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 24),
        ("ij,jk", [(2, 3), (3, 4)], 24),  # the result without an arrow: ik
        ("bij, bjk -> bik", [(5, 2, 3), (5, 3, 4)], 120),
        ("bqhd,bkhd->bhqk", [(2, 7, 4, 8), (2, 9, 4, 8)], 2 * 7 * 9 * 4 * 8),
        ("...ij,jk->...ik", [(6, 5, 2, 3), (3, 4)], 6 * 5 * 24),
        ("...d,...d->...", [(6, 1, 8), (5, 8)], 6 * 5 * 8),  # ellipses broadcast
        ("abc,cde->abde", [(2, 3, 4), (4, 5, 6)], 2 * 3 * 4 * 5 * 6),  # a dense layer with heads
        ("ij,j->ij", [(2, 3), (3,)], 6),
        ("aij,jk->ik", [(10, 2, 3), (3, 4)], 24),  # what only one operand has is summed before
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40),  # from the left, two at a time
        ("ii->i", [(3, 3)], 0),  # nothing is multiplied
    ],
)
def test_an_einsum_counts_what_its_equation_says(equation: str, operands: list[Shape], expected: int) -> None:
    assert told("Einsum", list(operands), [(1,)], "", equation=equation) == expected


Q, K, V = (2, 4, 7, 8), (2, 2, 9, 8), (2, 2, 9, 16)
SCORES = 2 * 4 * 7 * 9 * (8 + 16)


@pytest.mark.parametrize(
    ("op", "domain", "reads", "writes", "attrs", "expected"),
    [
        ("Attention", "", [Q, K, V], [None], {}, SCORES),
        ("Attention", "", [(2, 7, 32), (2, 9, 16), (2, 9, 32)], [None], {"q_num_heads": 4, "kv_num_heads": 2}, SCORES),
        ("Attention", "", [Q, (2, 2, 4, 8), (2, 2, 4, 16), None, (2, 2, 5, 8), (2, 2, 5, 16)], [None], {}, SCORES),
        ("Attention", "", [Q, (2, 2, 4, 8), (2, 2, 4, 16)], [None, (2, 2, 9, 8)], {}, SCORES),  # what is written tells
        ("Attention", MS, [(2, 7, 32), (32, 96)], [None], {"num_heads": 4}, 2 * 7 * 32 * 96 + 2 * 7 * 7 * 64),
        (
            "Attention",
            MS,
            [(2, 7, 32), (32, 80), None, None, (2, 2, 4, 5, 8)],
            [None],
            {"num_heads": 4, "qkv_hidden_sizes": [32, 32, 16]},
            2 * 7 * 32 * 80 + 2 * 7 * 12 * 48,
        ),
        ("QAttention", MS, [(2, 7, 32), (32, 96)], [None], {"num_heads": 4}, 2 * 7 * 32 * 96 + 2 * 7 * 7 * 64),
        ("MultiHeadAttention", MS, [(2, 7, 32), (2, 9, 32), (2, 9, 64)], [None], {"num_heads": 4}, SCORES),
        ("MultiHeadAttention", MS, [(2, 7, 32), (2, 4, 9, 8), (2, 4, 9, 16)], [None], {"num_heads": 4}, SCORES),
        ("MultiHeadAttention", MS, [(2, 7, 4, 3, 8)], [None], {"num_heads": 4}, 2 * 7 * 7 * 4 * 16),
        ("MultiHeadAttention", MS, [(2, 7, 32), (2, 9, 4, 2, 8)], [None], {"num_heads": 4}, 2 * 7 * 9 * 4 * 16),
        (
            "GroupQueryAttention",
            MS,
            [(2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 2, 11, 8), (2, 2, 11, 8)],
            [None],
            {"num_heads": 4, "kv_num_heads": 2},
            2 * 4 * 12 * 16,
        ),
        ("GroupQueryAttention", MS, [(2, 7, 64)], [None], {"num_heads": 4, "kv_num_heads": 2}, 2 * 4 * 7 * 7 * 16),
    ],
)
def test_attention_counts_scores_values_and_its_projection(
    op: str, domain: str, reads: list[Shape | None], writes: list[Shape | None], attrs: dict[str, Any], expected: int
) -> None:
    assert told(op, reads, writes, domain, **attrs) == expected


@pytest.mark.parametrize(
    ("op", "domain", "reads", "writes", "attrs", "expected"),
    [
        ("LSTM", "", [(5, 2, 8), (1, 16, 8), (1, 16, 4)], [None], {"hidden_size": 4}, 10 * (128 + 64)),
        ("GRU", "", [(2, 5, 8), (2, 12, 8), (2, 12, 4)], [None], {"layout": 1}, 10 * (192 + 96)),
        ("RNN", "", [(5, 2, 8), (1, 4, 8), (1, 4, 4)], [None], {}, 10 * (32 + 16)),
        ("DynamicQuantizeLSTM", MS, [(5, 2, 8), (1, 8, 16), (1, 4, 16)], [None], {}, 10 * (128 + 64)),
        ("DeformConv", "", [(1, 4, 6, 6), (8, 4, 3, 3), (1, 18, 4, 4)], [(1, 8, 4, 4)], {}, 8 * 16 * 36),
        ("QLinearConv", "", [(1, 4, 6, 6), (), (), (8, 4, 3, 3)], [(1, 8, 4, 4)], {}, 8 * 16 * 36),
        ("ConvInteger", "", [(1, 4, 6, 6), (8, 4, 3, 3)], [(1, 8, 4, 4)], {}, 8 * 16 * 36),
        ("FusedConv", MS, [(1, 4, 6, 6), (8, 4, 3, 3)], [(1, 8, 4, 4)], {}, 8 * 16 * 36),
        ("MatMulInteger", "", [(3, 5), (5, 6)], [(3, 6)], {}, 90),
        ("QLinearMatMul", "", [(3, 5), (), (), (5, 6)], [(3, 6)], {}, 90),
        ("FusedMatMul", MS, [(2, 3, 5), (2, 5, 6)], [(2, 3, 6)], {}, 180),
        ("FusedMatMul", MS, [(2, 5, 3), (2, 5, 6)], [(2, 3, 6)], {"transA": 1}, 180),
        ("FusedMatMul", MS, [(3, 2, 5), (2, 5, 6)], [(2, 3, 6)], {"transBatchA": 1}, 180),
        ("FusedMatMul", MS, [(5, 2, 3), (2, 5, 6)], [(2, 3, 6)], {"transA": 1, "transBatchA": 1}, 180),
        ("FusedGemm", MS, [(5, 3), (5, 6)], [(3, 6)], {"transA": 1}, 90),
        ("MatMulNBits", MS, [(2, 3, 64), (6, 2, 16)], [(2, 3, 6)], {"K": 64, "N": 6}, 36 * 64),
        ("MoE", MS, [(7, 8), (7, 4), (4, 16, 8), None, (4, 8, 16)], [(7, 8)], {"k": 2}, 7 * 2 * 256),
        (
            "QMoE",
            MS,
            [(7, 8), (7, 4), (4, 16, 4), None, None, (4, 8, 8)],
            [(7, 8)],
            {"k": 2, "expert_weight_bits": 4},
            7 * 2 * 256,
        ),
        ("STFT", "", [(2, 100, 1), (), (16,)], [(2, 22, 9, 2)], {}, 2 * 22 * 128),
        ("STFT", "", [(2, 100, 1), (), None, ()], [(2, 22, 9, 2)], {}, 2 * 22 * 128),
    ],
)
def test_what_else_multiplies_is_counted(
    op: str, domain: str, reads: list[Shape | None], writes: list[Shape | None], attrs: dict[str, Any], expected: int
) -> None:
    assert told(op, reads, writes, domain, **attrs) == expected


@pytest.mark.parametrize(
    ("op", "domain", "reads"),
    [
        ("PackedAttention", MS, [(7, 8), (8, 24)]),  # where the sequences end is in values
        ("LinearAttention", "", [(1, 7, 8)]),
        ("Thing", "com.acme", [(7, 8)]),  # it may do anything
        ("Attention", MS, [(2, 7, 8), None]),
    ],
)
def test_what_multiplies_and_cannot_be_counted_is_not_nothing(op: str, domain: str, reads: list[Shape | None]) -> None:
    assert told(op, reads, [None], domain) is None


@pytest.mark.parametrize(
    ("op", "domain"), [("Relu", ""), ("SkipLayerNormalization", MS), ("TRT_FP8QuantizeLinear", "trt")]
)
def test_other_operators_multiply_nothing(op: str, domain: str) -> None:
    assert told(op, [(4, 5)], [(4, 5)], domain) == 0


def test_unknown_shapes_are_not_nothing() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("MatMul", "a z", "y"), inputs={"x": (4, 5), "z": (5, 3)}))
    assert [macs_of(node, {}) for node in graph.nodes] == [0, None]
    assert node_macs(graph, {}) == {}
    assert uncounted(graph, {}) == ["Y"]
    assert uncounted(graph, {"Y": 60}) == []
    assert [multiplies(node) for node in graph.nodes] == [False, True]


def product(count: int, x: str = "x") -> Any:
    """A branch of so many products in a row."""
    names = [x, *(f"{x}{count}{i}" for i in range(count))]
    nodes = [("MatMul", f"{a} w", b) for a, b in itertools.pairwise(names)]
    return graph_proto(nodes, {}, [names[-1]])


SQUARE = np.ones((8, 8), np.float32)


def test_without_a_run_the_branch_with_more_work_counts() -> None:
    node = ("If", "c", "y", {"then_branch": product(1), "else_branch": product(2)})
    graph = to_graph(model(node, inputs={"x": (4, 8), "c": (np.bool_, ())}, weights={"w": SQUARE}))
    shapes = dict.fromkeys(("x", "x10", "x20", "x21"), (4, 8))
    assert node_macs(graph, shapes) == {"X10": 0, "X20": 256, "X21": 256}
    assert node_macs(graph, shapes, {"X10": 256}) == {"X10": 256}  # a run knows better
    assert uncounted(graph, {"X10": 0}) == ["X20", "X21"]


def loop(count: Any) -> gs.Graph:
    """A Loop of one product, of as many rounds as `count` says."""
    body = graph_proto(
        [("Identity", "go", "on"), ("MatMul", "a w", "b")],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "a": (4, 8)},
        ["on", "b"],
    )
    weights = {"w": SQUARE, "t": np.array(True)} | ({} if count is None else {"n": np.array(count)})
    inputs: dict[str, Any] = {"x": (4, 8)} | ({"n": (np.int64, ())} if count is None else {})
    return to_graph(model(("Loop", "n t x", "y", {"body": body}), inputs=inputs, weights=weights))


def test_without_a_run_constants_and_shapes_tell_how_often_a_body_runs() -> None:
    shapes = dict.fromkeys(("x", "a", "b"), (4, 8))
    assert node_macs(loop(6), shapes) == {"B": 6 * 256}
    assert node_macs(loop(None), shapes) == {}
    body = graph_proto([("MatMul", "h w", "h2"), ("Add", "h2 e", "s")], {"h": (4, 8), "e": (4, 8)}, ["s"])
    node = ("Scan", "x z", "y", {"body": body, "num_scan_inputs": 1})
    scan = to_graph(model(node, inputs={"x": (4, 8), "z": (5, 4, 8)}, weights={"w": SQUARE}))
    assert node_macs(scan, {**dict.fromkeys(("h", "h2"), (4, 8)), "z": (5, 4, 8)}) == {"H2": 5 * 256}
