"""Weight range search: a smaller range than the largest weight, per output channel, where the outputs err less.

    c* = argmin_c Σ_j E[x_j²] · (ŵ_j(c) - w_j)²,   ŵ(c) = DQ(Q(w; scale = c · max|w| / 127))

Rounding gets finer and the largest weights are clipped; weighed by the second moment of the input channel the sum is
the error of the layer's output, as far as channels are uncorrelated. (MSE clipping as in Banner et al. 2019, "Post
training 4-bit quantization", §3, with the input's moments as weights.) Where rows of the input are at hand, the choice
is then held against the true output error, channel by channel, and taken back where it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.padding import Padding
from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.ir.operators import PRODUCTS
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.rounding import dequantize, quantize_weight, weight_scales
from qcompiler.plan import Candidate
from qcompiler.planning.search.safety_net import best_start
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulation
from qcompiler.runtime.stream import fill
from qcompiler.statistics import rows as recorded
from qcompiler.statistics.rows import Rows
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.runtime.stream import Part


FACTORS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
WORTH = 0.99  # of the error at full range; less is not worth a scale that differs from everybody's


def find_scales(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    rows: Mapping[str, Rows],
    feeds: Sequence[Feeds],
) -> dict[str, NDArray[np.float32]]:
    """Weight scales of the candidates, by node name, where any channel gains.

    Args:
        model: the float model, normalised and smoothed.
        groups: candidates by the activation they share; those without a channel axis keep one scale per tensor.
        rows: recorded rows of the activations of products.
        feeds: samples for the second moments.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    moments = second_moments(model, groups, feeds)
    found = {}
    for name, members in groups.items():
        for candidate in members:
            if candidate.fitted is not None:  # its scales belong to its integers
                continue
            scales = _of(nodes[candidate.node], candidate, moments.get(name), rows.get(name))
            if scales is not None:
                found[candidate.node] = scales
    return found


def narrowed(simulation: Simulation, few: Sequence[Feeds]) -> Simulation:
    """The simulation with narrower weight ranges, where the outputs then err less with all layers in INT8.

    Args:
        simulation: scales that it has already stay.
        few: samples to compare on.
    """
    groups = simulation.groups
    axes = {name: -1 for name, members in groups.items() if members[0].op in PRODUCTS}
    rows = recorded.record_rows(simulation.model, axes, simulation.feeds)
    found = find_scales(simulation.model, groups, rows, simulation.feeds)
    narrower = simulation.scaled({**found, **simulation.scales})
    noises = [
        best_start(Measure(one.simulator, few, len(few), None), one.offers, DType.INT8)[1]
        for one in (narrower, simulation)
    ]
    return narrower if noises[0] < noises[1] else simulation


def second_moments(
    model: models.Model, groups: Mapping[str, Sequence[Candidate]], feeds: Sequence[Feeds]
) -> dict[str, NDArray[np.float64]]:
    """E[x²] of each input channel over all positions of the feeds, float64 [C], by tensor name."""
    seen = _Squares({name: 1 if members[0].op.startswith("Conv") else -1 for name, members in groups.items()})
    fill(model, [seen], feeds, quick=True)
    found = {name: seen.sums[name] for name in groups if name in seen.sums}
    return {name: total / max(seen.counts[name], 1) for name, total in found.items()}


class _Squares:
    """Sums of squares of each channel of some tensors, by name with the axis of the channels."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._axes = axes
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts = dict.fromkeys(axes, 0)

    @property
    def tensors(self) -> Sequence[str]:
        return list(self._axes)

    def update(self, part: Part) -> None:
        padding = Padding(part.feed)
        for name in (name for name in self._axes if name in part.values):
            x = padding.keep(np.moveaxis(np.asarray(part.values[name], np.float32), self._axes[name], -1))
            flat = x.reshape(-1, x.shape[-1])
            squares = np.einsum("rc,rc->c", flat, flat).astype(np.float64)
            known = self.sums.get(name)
            if known is None or known.shape == squares.shape:
                self.sums[name] = squares if known is None else known + squares
                self.counts[name] += len(flat)


def best_scales(weight: NDArray[np.float32], axis: int, importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each output channel that errs least.

    Args:
        weight: of any rank.
        axis: its output channels.
        importance: how much a squared error counts, broadcastable to `weight`.

    Returns:
        float32 [channels], at most `weight_scales`.
    """
    over = tuple(dim for dim in range(weight.ndim) if dim != axis)
    whole = weight_scales(weight, axis)
    best = whole.copy()
    least = WORTH * _errors(weight, axis, whole, importance, over)
    for factor in FACTORS:
        scales = np.asarray(whole * np.float32(factor), np.float32)
        error = _errors(weight, axis, scales, importance, over)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best


def _errors(
    weight: NDArray[np.float32],
    axis: int,
    scales: NDArray[np.float32],
    importance: NDArray[np.float32],
    over: tuple[int, ...],
) -> NDArray[np.float64]:
    values, _ = quantize_weight(weight, axis, scales=scales)
    gap = dequantize(values, scales, axis)
    gap -= weight
    gap *= gap
    gap *= importance
    return np.asarray(gap.sum(axis=over, dtype=np.float64))


def _of(
    node: gs.Node, candidate: Candidate, moments: NDArray[np.float64] | None, rows: Rows | None
) -> NDArray[np.float32] | None:
    """Scales for the stored weight of one layer; None where nothing is gained or nothing can be known."""
    weight = linear.weight_of(node)
    if weight is None or candidate.axis is None or moments is None or not moments.any():
        return None
    stored = np.asarray(weight.tensor.values)
    importance = _importance(node, candidate, stored, moments)
    if importance is None:
        return None
    best = best_scales(stored, candidate.axis, importance)
    product = linear.matrix(node)
    if rows is not None and product is not None:
        best = _confirmed(product, best, weight_scales(stored, candidate.axis), rows)
    return best if np.any(best < weight_scales(stored, candidate.axis)) else None


def _importance(
    node: gs.Node, candidate: Candidate, stored: NDArray[Any], moments: NDArray[np.float64]
) -> NDArray[np.float32] | None:
    """The second moments along the input channels of the stored weight; None where they cannot be laid on it."""
    scaled = np.asarray(moments / moments.max(), np.float32)
    if candidate.op in PRODUCTS:
        if stored.ndim != 2 or stored.shape[1 - candidate.axis % 2] != len(scaled):  # type: ignore[operator]
            return None
        return scaled[:, None] if candidate.axis in (1, -1) else scaled[None, :]
    if candidate.op != "Conv" or candidate.chain:
        return None
    # Output channel m of a grouped convolution reads the input channels of its group.
    groups = int(node.attrs.get("group", 1))
    parts = scaled.reshape(groups, 1, -1)
    laid = np.broadcast_to(parts, (groups, stored.shape[0] // groups, parts.shape[2]))
    return np.ascontiguousarray(laid).reshape(stored.shape[0], -1, *[1] * (stored.ndim - 2))


def _confirmed(
    product: NDArray[np.float32], best: NDArray[np.float32], whole: NDArray[np.float32], rows: Rows
) -> NDArray[np.float32]:
    """The scales that also lower the error of the product on recorded rows; the whole range for other channels."""
    errors = []
    for scales in (best, whole):
        values, _ = quantize_weight(product, 1, scales=scales)
        gap = rows.values @ (dequantize(values, scales, 1) - product)
        errors.append(np.einsum("r,rn,rn->n", rows.counts, gap, gap))
    return np.asarray(np.where(errors[0] < errors[1], best, whole), np.float32)
