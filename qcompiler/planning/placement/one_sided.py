"""Activations that lie to one side of zero, and whose layers can do with a shifted grid (see `passes.shifts`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import PRODUCTS
from qcompiler.passes.shifts import bias_behind
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.statistics.histogram import Histogram

WORTH_DB = 1.0  # by which rounding must get finer: half of the range unused are 6 dB
_FUSED = ("Relu", "Clip", "MatMul", "Gemm", "Conv", "ConvTranspose")  # a pair behind them is in the kernel of the layer


def gain_db(histogram: Histogram) -> float:
    """By how many dB rounding errs less on a grid that ends where the values do; 0 where they reach both ways alike."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    largest = max(-low, high)
    return 20 * math.log10(2 * largest / (high - low)) if math.isfinite(high - low) and largest > 0 else 0.0


def one_sided(graph: gs.Graph, layers: Candidates, histograms: Mapping[str, Histogram]) -> Candidates:
    """The same layers, marked as shifted where that is worth it and costs nothing.

    All readers must be products with a constant bias behind them, a range must be ours to choose, and the activation
    must come out of a kernel of its own: an Add between a layer and its Relu would keep these from being one.

    Args:
        graph: normalised.
        layers: of it.
        histograms: of their activations.
    """
    nodes, tensors = {node.name: node for node in graph.nodes}, graph.tensors()
    shifted: set[str] = set()
    for name, members in layers.by_activation.items():
        tensor = tensors[name]
        readers = {id(node) for node, _ in graphs.consumers(tensor)}
        able = all(
            one.op in PRODUCTS and one.axis is not None and one.scales is None and one.amax is None is one.known
            for one in members
        )
        whole = readers == {id(nodes[one.node]) for one in members}
        maker = graphs.producer(tensor)
        if not able or not whole or maker is None or graphs.is_op(maker, *_FUSED) or name not in histograms:
            continue
        if gain_db(histograms[name]) >= WORTH_DB and all(bias_behind(graph, nodes[one.node]) for one in members):
            shifted.add(name)
    found = tuple(replace(one, shifted=one.activation in shifted) for one in layers.found)
    return Candidates(found, layers.refused)
