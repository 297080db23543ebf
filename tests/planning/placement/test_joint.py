"""Products that give several things at once, and the ways of cutting them apart that need one weight scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.planning.placement.candidates import find_candidates
from qcompiler.planning.placement.joint import is_joint
from qcompiler.target import parse_target
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(4)
D = 32
SHAPES: dict[str, Any] = {
    "heads": np.array([2, 6, 4, 8]), "heads2": np.array([2, 6, 8, 8]), "three": np.array([2, 6, 3, D]),
    "unflat": np.array([2, 6, 3 * D]), "one": np.array([1]), "i0": np.array(0), "last": np.array([-1]),
    "rows": np.array([1]), "at0": np.array([0]), "at1": np.array([D]), "at2": np.array([2 * D]),
    "end": np.array([np.iinfo(np.int64).max]), "m": np.array([3]), "m3": np.array([3, 3]),
    "even": np.array([D] * 3), "uneven": np.array([2 * D, D // 2, D // 2]), "one_each": np.array([1, 1, 1]),
    "bias": np.ones(3 * D, np.float32),
}  # fmt: skip
HEADS: tuple[Spec, ...] = tuple(("Reshape", f"{part} heads", f"{part}h") for part in "qkv")
SPLIT: Spec = ("Split", "a even", "q k v", {"axis": -1})
SLICES: tuple[Spec, ...] = (
    ("Slice", "a at0 at1 last", "q"), ("Slice", "a at1 at2 last", "k"), ("Slice", "a at2 end last", "v")
)  # fmt: skip


def product(*behind: Spec, width: int = 3 * D, depth: int = D, first: Spec = ("MatMul", "x w", "a")) -> gs.Node:
    """The product of a graph in which all that nothing reads is an output."""
    read = {name for spec in behind for name in spec[1].split()}
    outputs = [name for spec in behind for name in spec[2].split() if name not in read]
    weights = {"w": RNG.standard_normal((depth, width)).astype(np.float32), **SHAPES}
    used = {name: weights[name] for name in weights if name in {"w", *read}}
    dims = (12, depth) if first[0] == "Gemm" else (2, 6, depth)
    graph = to_graph(model(first, *behind, inputs={"x": dims}, outputs=outputs, weights=used, opset=18))
    return graph.nodes[0]


@pytest.mark.parametrize(
    "behind",
    [
        (SPLIT, *HEADS),
        (("Split", "a", "q k v", {"axis": 2, "num_outputs": 3}), *HEADS),
        (*SLICES, *HEADS),
        (("Add", "a bias", "b"), ("Split", "b even", "q k v", {"axis": -1}), *HEADS),
        (("Identity", "a", "b"), ("Split", "b even", "q k v", {"axis": -1}), *HEADS),
        (("Reshape", "a three", "b"), ("Transpose", "b", "t", {"perm": [2, 0, 1, 3]}), ("Gather", "t i0", "q")),
        (("Reshape", "a three", "b"), ("Split", "b one_each", "q k v", {"axis": 2})),
        (("Unsqueeze", "a one", "b"), ("Squeeze", "b one", "c"), ("Split", "c even", "q k v", {"axis": -1})),
        (("Reshape", "a three", "b"), ("Slice", "b rows m rows", "q")),
    ],
)
def test_what_becomes_heads_is_joint_however_it_is_cut(behind: tuple[Spec, ...]) -> None:
    assert is_joint(product(*behind))


def test_a_gemm_is_cut_like_a_matmul() -> None:
    first: Spec = ("Gemm", "x w", "a")
    shaped = (("Reshape", "a unflat", "b"), ("Split", "b even", "q k v", {"axis": -1}))
    assert is_joint(product(*shaped, *HEADS, first=first))
    assert is_joint(product(("Split", "a even", "q k v", {"axis": 1}), *HEADS, first=first))


GATES: tuple[Spec, ...] = (("Sigmoid", "q", "s"), ("Mul", "s k", "g"), ("Add", "g v", "y"))


@pytest.mark.parametrize(
    ("behind", "width"),
    [
        ((SPLIT, *GATES), 3 * D),  # gates
        ((("Split", "a", "g u", {"axis": -1, "num_outputs": 2}), ("Sigmoid", "g", "s"), ("Mul", "s u", "y")), 6 * D),
        ((("Split", "a", "q k", {"axis": -1, "num_outputs": 2}), *HEADS[:2]), 2 * D),  # two parts
        ((("Split", "a uneven", "q k v", {"axis": -1}), ("Reshape", "q heads2", "y")), 3 * D),  # several widths
        ((("Split", "a", "q k v", {"axis": -1, "num_outputs": 3}), *HEADS), 6 * D),  # wider than the input
        ((("Split", "a m3", "q k", {"axis": 1}), ("Relu", "q", "y")), 3 * D),  # rows are cut, not channels
        ((SPLIT, *HEADS, ("Relu", "a", "y")), 3 * D),  # somebody reads all of it
        ((("Relu", "a", "b"), ("Split", "b even", "q k v", {"axis": -1}), *HEADS), 3 * D),
        ((SPLIT, *HEADS[:2], ("Relu", "v", "y")), 3 * D),  # one of them does not become heads
        ((("Relu", "a", "y"),), 3 * D),
    ],
)
def test_what_the_compiler_keeps_in_int8_has_a_scale_per_channel(behind: tuple[Spec, ...], width: int) -> None:
    assert not is_joint(product(*behind, width=width))


def test_only_tensorrt_rtx_needs_one_scale() -> None:
    weights = {
        "w": RNG.standard_normal((D, 3 * D)).astype(np.float32),
        "even": SHAPES["even"],
        "heads": SHAPES["heads"],
    }
    nodes = (("MatMul", "x w", "a"), SPLIT, *HEADS)
    graph = to_graph(model(*nodes, inputs={"x": (2, 6, D)}, outputs=["qh", "kh", "vh"], weights=weights, opset=18))
    axes = {name: find_candidates(graph, parse_target(name))[0][0].axis for name in ("tensorrt-rtx", "tensorrt")}
    assert axes == {"tensorrt-rtx": None, "tensorrt": 1}
