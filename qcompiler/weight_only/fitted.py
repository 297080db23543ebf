"""INT8 weights beside INT8 activations, whose integers are fitted to what their layers read (GPTQ, `gptq.py`).

    minimise Σ_x ‖x·W - x·Ŵ‖²   in place of   ‖W - Ŵ‖²,   Ŵ = scale · integers, a scale for each output channel

Eight bits are enough for most weights. They are not where a few input channels carry most of the power: what smoothing
took from an outlier channel of the activation is in the weight then, whose steps grow for all other channels, and an
error in the weight of that channel points the same way in every token. GPTQ moves it to where inputs are small. It
costs nothing where the model runs, and the float weights stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.ir.graph import is_op
from qcompiler.ir.operators import PRODUCTS
from qcompiler.ir.signature import Feeds
from qcompiler.plan import Candidate, FittedWeight
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.statistics import hessian
from qcompiler.weight_only import gptq

if TYPE_CHECKING:
    from numpy.typing import NDArray


_OPERATIONS = 3  # products of K · K · N that rounding a weight takes: once down the rows, and a sweep


def fittable(graph: gs.Graph, found: Sequence[Candidate]) -> dict[str, NDArray[np.float32]]:
    """By node name, the weights [K, N] that can be fitted: float, with a scale for each output, and ours to round."""
    nodes = {node.name: node for node in graph.nodes}
    matrices = {one.node: _matrix(nodes[one.node], one) for one in found if one.scales is None}
    return {name: matrix for name, matrix in matrices.items() if matrix is not None}


def work_of(graph: gs.Graph, found: Sequence[Candidate]) -> float:
    """Multiply-accumulates that fitting takes, beside those of the runs that show what layers read."""
    sizes = [matrix.shape for matrix in fittable(graph, found).values()]
    factors = (float(depth) ** 3 / 3 for depth in _depths(graph, found).values())
    return float(sum(_OPERATIONS * k * k * n for k, n in sizes)) + sum(factors)


def passes(graph: gs.Graph, found: Sequence[Candidate]) -> int:
    """How often the samples are run: more than once where Hessians are too large to be summed together."""
    return len(hessian.batches(_depths(graph, found)))


def fitted(
    model: models.Model, layers: Candidates, feeds: Sequence[Feeds], advance: Callable[[int], None] | None = None
) -> Candidates:
    """The same layers, with weights fitted to some samples where that can be done.

    Args:
        model: the float model.
        layers: of it.
        feeds: samples to fit to.
        advance: called with the number of runs of the model since the last call.

    Raises:
        DataError: a feed does not fit the model, or what a layer reads is not finite.
        ModelError: a weight is not finite, or ONNX Runtime cannot run the model.
    """
    matrices = fittable(model.graph, layers.found)
    groups: dict[str, list[Candidate]] = {}
    for one in layers.found:
        if one.node in matrices:
            groups.setdefault(one.activation, []).append(one)
    weights: dict[str, FittedWeight] = {}
    for part in hessian.hessians(model, _depths(model.graph, layers.found), feeds, advance=advance):
        for name, (moments,) in part.items():
            factor = gptq.factor(moments.hessian, size=None, shrink=moments.shrinkage)
            weights.update({one.node: _fitted(matrices[one.node], one, factor) for one in groups[name]})
    found = tuple(replace(one, fitted=weights.get(one.node)) for one in layers.found)
    return Candidates(found, layers.refused)


def _depths(graph: gs.Graph, found: Sequence[Candidate]) -> dict[str, int]:
    """Input channels by activation."""
    matrices = fittable(graph, found)
    return {one.activation: len(matrices[one.node]) for one in found if one.node in matrices}


def _fitted(matrix: NDArray[np.float32], one: Candidate, factor: gptq.Factor) -> FittedWeight:
    blocks = gptq.gptq(matrix, factor, size=None, format="int8", half=False)
    stored_so = one.axis is not None and one.axis % 2 == 1
    return FittedWeight(blocks.values if stored_so else np.ascontiguousarray(blocks.values.T), blocks.scales)


def _matrix(node: gs.Node, one: Candidate) -> NDArray[np.float32] | None:
    """The weight, a row for each input channel; None where it is none, or not stored as one, perhaps turned."""
    weight = linear.weight_of(node) if one.op in PRODUCTS and one.axis is not None else None
    if weight is None or len(weight.tensor.shape) != 2 or node.attrs.get("transA", 0):
        return None
    return linear.matrix(node) if all(is_op(link, "Transpose", "Identity") for link in weight.chain) else None
