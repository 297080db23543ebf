"""Residual Adds: which ones are found, on which side the stream is, and what the branch is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.residual import Join, Residual, joins, measure, residuals
from tests.kit.rewrite import model

RNG = np.random.default_rng(5)


def weights(*names: str, shape: tuple[int, ...] = (8, 8)) -> dict[str, Any]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name in names}


def graph(*nodes: Any, shape: tuple[Any, ...] = ("n", 4, 8), **options: Any) -> gs.Graph:
    return gs.import_onnx(model(*nodes, inputs={"x": shape}, **options)).toposort()


@pytest.mark.parametrize("operands", ["c x", "x c"])
def test_a_branch_is_found_on_either_side(operands: str) -> None:
    found = joins(graph(("MatMul", "x v", "b"), ("Relu", "b", "c"), ("Add", operands, "y"), weights=weights("v")))
    assert found == [Join("Y", "feed-forward", "c", "x", "y")]


def test_blocks_in_a_row_are_found_in_graph_order_with_their_kinds() -> None:
    nodes = (
        ("LayerNormalization", "x g", "n1"),
        ("MatMul", "n1 wq", "q"),
        ("Transpose", "n1", "k", {"perm": [0, 2, 1]}),
        ("MatMul", "q k", "s"),
        ("Softmax", "s", "p"),
        ("MatMul", "p n1", "o"),
        ("Add", "x o", "h"),
        ("LayerNormalization", "h g", "n2"),
        ("MatMul", "n2 w1", "u"),
        ("Relu", "u", "r"),
        ("MatMul", "r w2", "f"),
        ("Add", "h f", "y"),
    )
    parameters = {**weights("wq", "w1", "w2"), "g": np.ones(8, np.float32)}
    assert [(one.add, one.kind, one.branch, one.stream) for one in joins(graph(*nodes, weights=parameters))] == [
        ("H", "attention", "o", "x"),
        ("Y", "feed-forward", "f", "h"),
    ]


def test_a_norm_behind_the_sum_becomes_the_next_stream() -> None:
    nodes = (
        ("MatMul", "x w1", "a"),
        ("Add", "a x", "s"),
        ("LayerNormalization", "s g", "n"),
        ("MatMul", "n w2", "b"),
        ("Add", "b n", "y"),
    )
    found = joins(graph(*nodes, weights={**weights("w1", "w2"), "g": np.ones(8, np.float32)}))
    assert [(one.stream, one.total) for one in found] == [("x", "s"), ("n", "y")]


def test_convolutions_are_branches_too() -> None:
    nodes = (("Conv", "x w", "c", {"pads": [1, 1, 1, 1]}), ("Add", "x c", "y"))
    found = joins(graph(*nodes, shape=(1, 8, 6, 6), weights=weights("w", shape=(8, 8, 3, 3))))
    assert [one.kind for one in found] == ["convolution"]


def test_a_mask_that_every_layer_adds_is_no_stream() -> None:
    nodes: list[Any] = [("Sub", "m one", "mask")]
    before = "x"
    for k in "12":
        nodes += [
            ("MatMul", f"{before} w", f"q{k}"),
            ("Transpose", before, f"k{k}", {"perm": [0, 2, 1]}),
            ("MatMul", f"q{k} k{k}", f"s{k}"),
            ("Add", f"s{k} mask", f"a{k}"),
            ("Softmax", f"a{k}", f"p{k}"),
            ("MatMul", f"p{k} {before}", f"o{k}"),
            ("Add", f"o{k} {before}", f"h{k}"),
        ]
        before = f"h{k}"
    proto = model(
        *nodes,
        inputs={"x": ("n", 4, 8), "m": ("n", 4, 4)},
        outputs=("h2",),
        weights={**weights("w"), "one": np.ones(1, np.float32)},
    )
    assert [one.total for one in joins(gs.import_onnx(proto).toposort())] == ["h1", "h2"]


@pytest.mark.parametrize(
    "nodes",
    [
        (("MatMul", "x w", "a"), ("Add", "a b", "y")),  # a bias
        (("Relu", "x", "a"), ("Add", "a x", "y")),  # nothing linear between
        (("MatMul", "x w", "a"), ("MatMul", "x v", "c"), ("Add", "a c", "y")),  # two branches and no stream
        (("MatMul", "x w", "a"), ("Relu", "x", "c"), ("Add", "a c", "y")),  # the shortcut is computed too
        (("MatMul", "x w", "a"), ("ReduceMax", "a", "c", {"axes": [2]}), ("MatMul", "c one", "d"), ("Add", "d a", "y")),
    ],
)
def test_other_additions_are_none(nodes: Any) -> None:
    parameters = {**weights("w", "v"), "b": np.ones(8, np.float32), "one": np.ones((1, 1), np.float32)}
    used = {name for node in nodes for name in node[1].split()}
    proto = graph(*nodes, weights={name: value for name, value in parameters.items() if name in used})
    for name, tensor in proto.tensors().items():
        if name == "d":
            tensor.shape = ["n", 4, 1]
        if name == "a":
            tensor.shape = ["n", 4, 8]
    assert joins(proto) == []


def test_ranges_are_read_off_the_histograms() -> None:
    small, large = RNG.standard_normal(5000).astype(np.float32), 40 * RNG.standard_normal(5000).astype(np.float32)
    known = {"b": Histogram.of(large), "s": Histogram.of(small), "t": Histogram.of(small + large)}
    join = Join("A", "feed-forward", "b", "s", "t")
    (one,) = residuals([join, Join("B", "attention", "missing", "s", "t")], known)
    assert one.ratio == np.abs(large).max().astype(float) / float(np.abs(small).max())
    assert (one.branch_p99_99, one.sum_amax) == (known["b"].quantile(99.99), known["t"].amax)
    (zero,) = residuals([join], {**known, "s": Histogram.of(small * 0)})
    assert isinstance(zero, Residual)
    assert zero.ratio is None


def test_a_run_over_samples_gives_the_ranges() -> None:
    found = graph(("MatMul", "x v", "b"), ("Relu", "b", "c"), ("Add", "x c", "y"), weights=weights("v"))
    samples = [{"x": RNG.standard_normal((1, 4, 8)).astype(np.float32)} for _ in range(3)]
    (row,) = measure(found, samples)
    assert row.stream_amax == pytest.approx(max(float(np.abs(one["x"]).max()) for one in samples))
    assert row.ratio == pytest.approx(row.branch_amax / row.stream_amax)
    assert measure(graph(("Relu", "x", "y")), samples) == []
