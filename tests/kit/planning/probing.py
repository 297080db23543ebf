"""A probe of two products of which the first reads an outlier channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant.alpha import Layers
from qcompiler.planning.simulation.probe import Probe
from qcompiler.statistics.outliers import fold_of
from qcompiler.statistics.rows import Rows
from tests.kit.rewrite import model, to_graph

Array = np.ndarray[Any, np.dtype[Any]]


RANDOM = np.random.default_rng(0)


FIRST, SECOND = (RANDOM.standard_normal((16, 16)).astype(np.float32) for _ in range(2))


def feeds(count: int = 8) -> list[dict[str, Array]]:
    found = [{"x": np.random.default_rng(i).standard_normal((4, 16)).astype(np.float32)} for i in range(count)]
    for one in found:
        one["x"][:, 0] *= 60  # an outlier channel
    return found


def chained() -> onnx.ModelProto:
    """x → product with FIRST → Relu → product with SECOND → y."""
    nodes = [("MatMul", "x a", "h"), ("Relu", "h", "r"), ("MatMul", "r b", "y")]
    return model(*nodes, inputs={"x": (4, 16)}, weights={"a": FIRST, "b": SECOND})


def probe(samples: list[dict[str, Array]]) -> Probe:
    graph = to_graph(chained())
    return Probe(
        models.Model(graph, {}, None, 10), {"x": ["H"], "r": ["Y"]}, samples, [fold_of(one) for one in samples]
    )


def layers(name: str, one: Probe, weight: Array) -> Layers:
    """The one layer that reads an activation of the probe, with what each fold of the samples has reached."""
    values = np.concatenate(one.inputs[name])
    rows = Rows(values, np.ones(len(values), np.float32), np.repeat(one.folds, 4))
    channels = np.abs(values).max(axis=0).astype(np.float64)
    others = {fold: np.abs(values[rows.folds != fold]).max(axis=0).astype(np.float64) for fold in sorted({*one.folds})}
    return Layers(rows, [weight], [True], channels, others=others if len(others) > 1 else {})
