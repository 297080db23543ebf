"""A chain of convolutions over a large picture, run or observed in this process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.source import open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import shapes
from qcompiler.runtime.stream import BUDGET, OpenModel
from qcompiler.statistics.observe import Observations, observe
from qcompiler.statistics.points import Points

NO_LIMIT = 1 << 60


def run(way: str, layers: int, channels: int, size: int, feeds: int) -> int:
    """One of the ways of `benchmarks.observe_memory`; 1 where statistics that must be equal are not."""
    if way == "imports":
        return 0
    model = chain(layers, channels, size)
    if way == "float":
        session = OpenModel(model)
        for feed in _feeds(size, feeds):
            session.run(feed)
        return 0
    if way != "same":
        _observed(model, size, feeds, NO_LIMIT if way == "whole" else BUDGET)
        return 0
    whole, parts = (_observed(model, size, feeds, budget) for budget in (NO_LIMIT, BUDGET))
    return int((whole.histograms, whole.outliers) != (parts.histograms, parts.outliers))


def chain(layers: int, channels: int, size: int) -> models.Model:
    """`layers` 3 x 3 convolutions with ReLU from 3 channels to `channels`, on pictures of `size` x `size`."""
    rng = np.random.default_rng(0)
    at = x = gs.Variable("x0", np.float32, [1, 3, size, size])
    nodes = []
    for layer in range(layers):
        depth = 3 if layer == 0 else channels
        values = rng.standard_normal((channels, depth, 3, 3)) * np.sqrt(2 / (9 * depth))
        weight = gs.Constant(f"w{layer}", values.astype(np.float32))
        product, after = gs.Variable(f"y{layer}", np.float32), gs.Variable(f"x{layer + 1}", np.float32)
        nodes.append(
            gs.Node("Conv", f"conv{layer}", {"kernel_shape": [3, 3], "pads": [1] * 4}, [at, weight], [product])
        )
        nodes.append(gs.Node("Relu", f"relu{layer}", {}, [product], [after]))
        at = after
    graph = gs.Graph(nodes, [x], [at], opset=17)
    shapes.infer(graph)
    return models.Model(graph, {}, None, 8)


def _observed(model: models.Model, size: int, feeds: int, budget: int) -> Observations:
    inputs: Inputs = {"x0": (np.dtype(np.float32), (1, 3, size, size))}
    read = {node.inputs[0].name: 1 for node in model.graph.nodes if node.op == "Conv"}
    source = open_source(lambda: _feeds(size, feeds), inputs)
    return observe(model, Points.of(histograms=read, outliers=read), source, budget=budget)


def _feeds(size: int, count: int) -> Iterator[Feeds]:
    for index in range(count):
        yield {"x0": np.random.default_rng(index).standard_normal((1, 3, size, size)).astype(np.float32)}
