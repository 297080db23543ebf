"""The comparison with AutoCast: what is counted as half, and how the accuracy is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.autocast import main
from benchmarks.children.judge_typing import typing_of, worst_sqnr
from benchmarks.measure import BenchmarkError
from qcompiler.ir import graph as graphs
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.statistics import ranges
from tests.kit.rewrite import model, random_feeds, to_graph, whole
from tests.kit.typed import weight

PROTO = model(
    ("MatMul", "x w", "m"),
    ("Shape", "m", "s"),
    ("Relu", "m", "r"),
    ("Sqrt", "r", "e"),
    ("MatMul", "e v", "y"),
    weights={"w": weight(4, 8), "v": weight(8, 2)},
)


def test_nodes_macs_and_casts_are_counted() -> None:
    graph = to_graph(PROTO)
    feeds = random_feeds(graph)
    plain = typing_of(graph, feeds)
    assert (plain.nodes, plain.half_nodes, plain.macs, plain.half_macs, plain.casts) == (
        5,
        0,
        2 * 4 * 8 + 2 * 8 * 2,
        0,
        0,
    )
    HighPrecision(ranges=ranges.measure(graph, [feeds]), keep=("M",))(graph)
    found = typing_of(graph, feeds)
    assert (found.nodes, found.half_nodes, found.half_macs) == (5, 1, 2 * 8 * 2)
    assert found.casts == sum(node.op == "Cast" for node in graphs.walk(graph)) == 2


def test_sqnr_is_that_of_the_worst_output_and_minus_infinity_where_half_overflows(tmp_path: Path) -> None:
    reference, half = tmp_path / "float.onnx", tmp_path / "half.onnx"
    reference.write_bytes(PROTO.SerializeToString())
    graph = to_graph(PROTO)
    feeds = random_feeds(graph)
    HighPrecision(ranges=ranges.measure(graph, [feeds]), keep=("E", "Y"))(graph)
    half.write_bytes(whole(graph).SerializeToString())
    assert 50 < worst_sqnr(reference, half, [feeds]) < 90
    assert worst_sqnr(reference, reference, [feeds]) == np.inf
    loud = {"x": np.where(weight(2, 4) > 0, np.float32(1e6), np.float32(-1e6))}
    assert worst_sqnr(reference, half, [loud]) == -np.inf


def test_without_models_it_says_how_it_is_called() -> None:
    assert "python -m benchmarks.autocast MODELS CACHE NAME" in str(main([]))
    with pytest.raises(BenchmarkError, match="no model.onnx"):
        main(["nowhere", "nowhere", "none"])
