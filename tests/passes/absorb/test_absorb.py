"""Dividing a tensor by factors per channel: every way that takes it stays exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.runtime import shapes
from qcompiler.verification.equivalence import differences
from tests.kit.absorbing import (
    CONSTANTS,
    DENSE,
    GELU,
    IMAGE,
    KERNEL,
    LAST,
    NORM,
    PADS,
    TOKENS,
    VECTORS,
    build,
    divide,
    factors,
    find,
    normal,
    positive,
    run,
    takers,
)
from tests.kit.rewrite import model, random_feeds, to_graph

# What stands before `t`, weights, inputs, who takes the division
TAKEN: dict[str, tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any], list[str]]] = {
    "Gemm": ([("Gemm", "x v b", "t"), DENSE], {"v": (4, 8), "b": (8,), "w": (8, 5)}, VECTORS, ["Gemm"]),
    "Gemm, transposed, one bias for all": (
        [("Gemm", "x v b", "t", {"transB": 1, "alpha": 0.5, "beta": 2.0}), DENSE],
        {"v": (8, 4), "b": np.float32(3), "w": (8, 5)},
        VECTORS,
        ["Gemm"],
    ),
    "Gemm with rows as channels": (
        [("Gemm", "v x", "t", {"transA": 1}), ("MatMul", "w t", "y")],
        {"v": (3, 8), "w": (5, 8)},
        VECTORS,
        ["Gemm"],
    ),
    "read by Gemms": (
        [("MatMul", "x v", "t"), ("Gemm", "t w", "y1", {"transB": 1}), ("Gemm", "t u b", "y2"), ("Add", "y1 y2", "y")],
        {"v": (4, 8), "w": (5, 8), "u": (8, 5), "b": (5,)},
        VECTORS,
        ["MatMul"],
    ),
    "MatMul and bias": (
        [("MatMul", "x v", "a"), ("Add", "b a", "t"), DENSE],
        {"v": (8, 6), "b": (6,), "w": (6, 5)},
        TOKENS,
        ["Add", "MatMul"],
    ),
    "MatMul minus one bias for all": (
        [("MatMul", "x v", "a"), ("Sub", "a b", "t"), DENSE],
        {"v": (8, 6), "b": np.float32(2), "w": (6, 5)},
        TOKENS,
        ["MatMul", "Sub"],
    ),
    "weight on the left": (
        [("MatMul", "v x", "t"), ("MatMul", "w t", "y")],
        {"v": (6, 5), "w": (4, 6)},
        TOKENS,
        ["MatMul"],
    ),
    "weights behind views": (
        [
            ("Transpose", "v0", "v1", {"perm": [1, 0]}),
            ("MatMul", "x v1", "t"),
            ("Reshape", "w0 shape", "w1"),
            ("Transpose", "w1", "w"),
            DENSE,
        ],
        {"v0": (6, 8), "w0": (30,), "shape": np.array([5, 6])},
        TOKENS,
        ["MatMul"],
    ),
    "Conv": (
        [("Conv", "x v b", "t", PADS), KERNEL],
        {"v": (6, 4, 3, 3), "b": (6,), "w": (5, 6, 1, 1)},
        IMAGE,
        ["Conv"],
    ),
    "grouped Convs": (
        [("Conv", "x v", "t", {"group": 2}), ("Conv", "t w", "y", {"group": 3})],
        {"v": (6, 2, 3, 3), "w": (9, 2, 1, 1)},
        IMAGE,
        ["Conv"],
    ),
    "depthwise and pointwise": (
        [("Conv", "x v b", "a", {"group": 4}), ("Relu", "a", "t"), KERNEL],
        {"v": (4, 1, 3, 3), "b": (4,), "w": (5, 4, 1, 1)},
        IMAGE,
        ["Conv"],
    ),
    "read depthwise": (
        [("Conv", "x v", "a"), ("LeakyRelu", "a", "t"), ("Conv", "t w", "y", {"group": 6})],
        {"v": (6, 4, 1, 1), "w": (6, 1, 3, 3)},
        IMAGE,
        ["Conv"],
    ),
    "grouped ConvTransposes": (
        [("ConvTranspose", "x v b", "t", {"group": 2}), ("ConvTranspose", "t w", "y", {"group": 3})],
        {"v": (4, 3, 2, 2), "b": (6,), "w": (6, 2, 2, 2)},
        IMAGE,
        ["ConvTranspose"],
    ),
    "LayerNormalization": (
        [("LayerNormalization", "x g b", "t"), DENSE],
        {"g": (8,), "b": (8,), "w": (8, 5)},
        TOKENS,
        ["LayerNormalization"],
    ),
    "LayerNormalization, siblings": (
        [("LayerNormalization", "x g", "t"), ("MatMul", "t w", "q"), ("MatMul", "t v", "k"), ("Add", "q k", "y")],
        {"g": (8,), "w": (8, 5), "v": (8, 5)},
        TOKENS,
        ["LayerNormalization"],
    ),
    "LayerNormalization over two axes": (
        [("LayerNormalization", "x g b", "t", {"axis": 1}), DENSE],
        {"g": (5, 8), "b": (5, 8), "w": (8, 4)},
        TOKENS,
        ["LayerNormalization"],
    ),
    "LayerNormalization written out": (
        [*NORM, ("Mul", "n g", "ng"), ("Add", "ng b", "t"), DENSE],
        {**LAST, "g": (8,), "b": (8,), "w": (8, 5)},
        TOKENS,
        ["Add", "Mul"],
    ),
    "RMSNormalization": (
        [("RMSNormalization", "x g", "t"), DENSE],
        {"g": (8,), "w": (8, 5)},
        TOKENS,
        ["RMSNormalization"],
    ),
    "RMSNormalization written out": (
        [
            ("Mul", "x x", "x2"),
            ("ReduceMean", "x2 last", "v"),
            ("Add", "v eps", "ve"),
            ("Sqrt", "ve", "r"),
            ("Reciprocal", "r", "rr"),
            ("Mul", "x rr", "n"),
            ("Mul", "g n", "t"),
            DENSE,
        ],
        {**LAST, "g": (8,), "w": (8, 5)},
        TOKENS,
        ["Mul"],
    ),
    "BatchNormalization": (
        [("BatchNormalization", "x g b m v", "t"), KERNEL],
        {"g": (4,), "b": (4,), "m": (4,), "v": positive(4), "w": (5, 4, 1, 1)},
        IMAGE,
        ["BatchNormalization"],
    ),
    "InstanceNormalization": (
        [("InstanceNormalization", "x g b", "t"), KERNEL],
        {"g": (4,), "b": (4,), "w": (5, 4, 1, 1)},
        IMAGE,
        ["InstanceNormalization"],
    ),
    "GLU": (
        [
            ("MatMul", "x v", "gate"),
            ("Sigmoid", "gate", "s"),
            ("Mul", "gate s", "silu"),
            ("MatMul", "x u", "up"),
            ("Mul", "silu up", "t"),
            DENSE,
        ],
        {"v": (8, 6), "u": (8, 6), "w": (6, 8)},
        TOKENS,
        ["MatMul"],
    ),
    "GELU, halved last": (
        [("MatMul", "x v", "h"), *GELU, ("Mul", "h e3", "e4"), ("Mul", "e4 half", "t"), DENSE],
        {**CONSTANTS, "v": (8, 6), "w": (6, 5)},
        TOKENS,
        ["Mul"],
    ),
    "GELU, halved before": (
        [("MatMul", "x v", "h"), *GELU, ("Mul", "half e3", "e4"), ("Mul", "h e4", "t"), DENSE],
        {**CONSTANTS, "v": (8, 6), "w": (6, 5)},
        TOKENS,
        ["Mul"],
    ),
    "HardSwish, divided last": (
        [
            ("Conv", "x v", "h"),
            ("Add", "h three", "a"),
            ("Clip", "a zero six", "c"),
            ("Mul", "h c", "p"),
            ("Div", "p six", "t"),
            KERNEL,
        ],
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "v": (6, 4, 3, 3), "w": (5, 6, 1, 1)},
        IMAGE,
        ["Div"],
    ),
    "Div of a computed divisor": (
        [("MatMul", "x v", "a"), ("Exp", "x8", "e"), ("Div", "a e", "t"), DENSE],
        {"v": (8, 8), "w": (8, 5)},
        {**TOKENS, "x8": (2, 5, 8)},
        ["MatMul"],
    ),
    "constant over a tensor": (
        [("Exp", "x", "e"), ("Div", "c e", "t"), DENSE],
        {"c": np.float32(2), "w": (8, 5)},
        TOKENS,
        ["Div"],
    ),
    "through all that is homogeneous": (
        [
            ("Conv", "x v b", "a", PADS),
            ("PRelu", "a slope", "c1"),
            ("MaxPool", "c1", "c2", {"kernel_shape": [2, 2]}),
            ("Neg", "c2", "c3"),
            ("Abs", "c3", "c4"),
            ("Pad", "c4 pads", "c5"),
            ("Clip", "c5 zero", "c6"),
            ("AveragePool", "c6", "c7", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Resize", "c7 _ zoom", "c8", {"mode": "linear"}),
            ("Identity", "c8", "c9"),
            ("Dropout", "c9", "c10"),
            ("GlobalAveragePool", "c10", "c11"),
            ("Flatten", "c11", "t"),
            ("Gemm", "t w", "y"),
        ],
        {
            "v": (6, 4, 3, 3),
            "b": (6,),
            "slope": positive(6, 1, 1),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "zero": np.float32(0),
            "zoom": np.array([1, 1, 2, 2], np.float32),
            "w": (6, 5),
        },
        IMAGE,
        ["Conv"],
    ),
    "reductions, views and a product with a mask": (
        [
            ("MatMul", "x v", "a"),
            ("Unsqueeze", "a one", "b"),
            ("ReduceMax", "b two", "c", {"keepdims": 0}),
            ("Squeeze", "c one", "d"),
            ("Where", "mask d zero", "e"),
            ("Max", "e low", "t"),
            DENSE,
        ],
        {
            "v": (8, 6),
            "one": np.array([1]),
            "two": np.array([2]),
            "mask": np.array([True, False, True, True, False, True]),
            "zero": np.float32(0),
            "low": np.float32(-0.5),
            "w": (6, 5),
        },
        TOKENS,
        ["MatMul", "Max", "Where"],
    ),
    "Concat of channels": (
        [("MatMul", "x v", "a"), ("MatMul", "x u", "b"), ("Concat", "a b", "t", {"axis": -1}), DENSE],
        {"v": (8, 2), "u": (8, 4), "w": (6, 5)},
        TOKENS,
        ["MatMul", "MatMul"],
    ),
    "Concat along another axis": (
        [("MatMul", "x v", "a"), ("Concat", "a start", "t", {"axis": 1}), DENSE],
        {"v": (8, 6), "start": (2, 1, 6), "w": (6, 5)},
        TOKENS,
        ["Concat", "MatMul"],
    ),
    "a residual sum of convolutions": (
        [("Conv", "x v", "a"), ("Relu", "a", "r"), ("Conv", "r u", "b", PADS), ("Add", "r b", "t"), KERNEL],
        {"v": (6, 4, 1, 1), "u": (6, 6, 3, 3), "w": (5, 6, 1, 1)},
        IMAGE,
        ["Conv", "Conv"],
    ),
    "squeeze and excite": (
        [
            ("Conv", "x v", "a"),
            ("Relu", "a", "r"),
            ("GlobalAveragePool", "r", "p"),
            ("Conv", "p u", "g0"),
            ("Sigmoid", "g0", "g"),
            ("Mul", "r g", "t"),
            KERNEL,
        ],
        {"v": (6, 4, 1, 1), "u": (6, 6, 1, 1), "w": (5, 6, 1, 1)},
        IMAGE,
        ["Conv"],
    ),
    "the same tensor on two ways": (
        [("MatMul", "x v", "a"), ("Relu", "a", "r"), ("Neg", "a", "n"), ("Add", "r n", "t"), DENSE],
        {"v": (8, 6), "w": (6, 5)},
        TOKENS,
        ["MatMul"],
    ),
    "a part of a fused projection": (
        [
            ("MatMul", "x v", "qkv"),
            ("Split", "qkv", "q k t", {"axis": -1, "num_outputs": 3}),
            DENSE,
            ("Add", "q k", "z"),
        ],
        {"v": (8, 12), "w": (4, 5)},
        TOKENS,
        ["MatMul"],
    ),
    "a slice of a fused projection": (
        [("Gemm", "x v b", "qv"), ("Slice", "qv four eight last", "t"), ("Slice", "qv zero four last", "z"), DENSE],
        {
            "v": (4, 8),
            "b": (8,),
            "w": (4, 5),
            **{name: np.array([k]) for name, k in (("zero", 0), ("four", 4), ("eight", 8), ("last", -1))},
        },
        VECTORS,
        ["Gemm"],
    ),
    "a slice of the rows": (
        [("MatMul", "x v", "a"), ("Slice", "a one three one", "t"), DENSE],
        {"v": (8, 6), "w": (6, 5), "one": np.array([1]), "three": np.array([3])},
        TOKENS,
        ["MatMul"],
    ),
    "embedding": (
        [("Gather", "e ids", "t"), DENSE],
        {"e": (9, 8), "w": (8, 5)},
        {"ids": (np.int64, (2, 3))},
        ["Gather"],
    ),
    "one of three stacked projections": (
        [
            ("MatMul", "x v", "a"),
            ("Reshape", "a shape", "b"),
            ("Transpose", "b", "c", {"perm": [2, 0, 1, 3]}),
            ("Gather", "c two", "t"),
            ("Gather", "c zero", "z"),
            DENSE,
        ],
        {"v": (8, 12), "shape": np.array([0, 0, 3, 4]), "two": np.array(2), "zero": np.array(0), "w": (4, 5)},
        TOKENS,
        ["MatMul"],
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_taken(case: str) -> None:
    nodes, weights, inputs, expected = TAKEN[case]
    outputs = ["y", "z"] if any("z" in spec[2].split() for spec in nodes) else ["y"]
    _, plan = divide(build(nodes, weights, inputs, outputs), "t")
    assert takers(plan) == expected
    assert plan.classes.tolist() == list(range(plan.classes.size))


@pytest.mark.parametrize(
    ("norm", "reader"),
    [
        (("GroupNormalization", "x g b", "t", {"num_groups": 2}), KERNEL),
        (("SkipLayerNormalization", "h s g b", "t", {}, "com.microsoft"), DENSE),
        (("SkipSimplifiedLayerNormalization", "h s g", "t", {}, "com.microsoft"), DENSE),
        (("SimplifiedLayerNormalization", "h g", "t", {"axis": -1}), DENSE),
    ],
    ids=lambda spec: spec[0],
)
def test_norms_whose_shape_onnx_does_not_infer(norm: Any, reader: Any) -> None:
    weights = {"g": normal(4), "b": normal(4), "w": normal(5, 4, 1, 1) if reader is KERNEL else normal(4, 5)}
    inputs = IMAGE if reader is KERNEL else {"h": (2, 3, 4), "s": (2, 3, 4)}
    proto = model(norm, reader, inputs=inputs, weights=weights, opset=23, domains=["com.microsoft"])
    graph = to_graph(proto)
    assert "number of channels of 't' is not known" in absorb.can(graph, find(graph, "t"), 1)
    feeds = random_feeds(graph)
    shapes.run_once(graph, feeds)
    axis = absorb.channel_axis(find(graph, "t"))
    assert axis is not None
    plan = absorb.find_moves(graph, find(graph, "t"), axis)
    before = run(graph, feeds)
    assert absorb.apply(graph, plan, factors(plan), Names(graph)) == ""
    assert takers(plan) == [norm[0]]
    assert max(differences(before, run(graph, feeds)).values()) <= 1e-5
