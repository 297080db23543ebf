"""Bias correction: what quantization shifts an output by on average is given back to the bias.

    E[y] - E[ŷ] = W·E[x] - Ŵ·E[x̂],   x̂ = DQ(Q(x)), Ŵ = DQ(W₈)

The product is linear, so the mean of an output channel needs only the means of the input channels, taken over samples
and positions. It costs nothing at run time. Clipping an outlier channel that always points the same way, as residual
streams of transformers have, becomes harmless; so does the rounding of few weights in depthwise convolutions.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.2, with means
measured instead of derived. Padding at the border of a convolution is neglected.

Convolutions only. In transformers the error of a clipped activation comes from few tokens, its mean describes no token
at all, and correcting by it costs up to 20 dB (MiniLM's feed-forward layers) where it gives 5 dB on EfficientNet-Lite0,
in INT8 as in FP8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.padding import Padding
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.rounding import (
    E4M3_MAX,
    Span,
    format_of,
    grid,
    quantize_fp8_e4m3,
    quantize_weight,
    span,
    weight_scales,
)
from qcompiler.plan import Candidate
from qcompiler.runtime.stream import fill
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.runtime.stream import Part


INT8_MAX = 127.0


class Shifts:
    """Means of activations before and after quantization, and the corrections that follow from them.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation tensor they share.
        ranges: clipping ranges that may be asked for, by activation tensor.
        feeds: samples to take means over.
        per_channel: INT8 weight scales per output channel.
        spans: lowest and highest value seen of the activations whose INT8 grids are unsigned.
        fp8: the ranges that may be asked for in FP8, by activation tensor.
        fp8_per_channel: FP8 weight scales per output channel.
        scales: by node name, scales of its INT8 weight where they are not amax / 127.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Mapping[str, Sequence[Candidate]],
        ranges: Mapping[str, Sequence[float]],
        feeds: Sequence[Feeds],
        *,
        per_channel: bool = True,
        spans: Mapping[str, Span] | None = None,
        fp8: Mapping[str, Sequence[float]] | None = None,
        fp8_per_channel: bool = False,
        scales: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._nodes = {node.name: node for node in model.graph.nodes}
        self._per_channel, self.spans = {DType.INT8: per_channel, DType.FP8: fp8_per_channel}, spans
        self._scales = {DType.INT8: scales or {}, DType.FP8: {}}
        if fp8 and not fp8_per_channel:
            self._scales[DType.FP8] = shared_scales(model.graph, groups)
        self._known: dict[tuple[str, float, DType], NDArray[np.float32] | None] = {}
        asked = {
            name: [*((amax, DType.INT8) for amax in found), *((amax, DType.FP8) for amax in (fp8 or {}).get(name, ()))]
            for name, found in ranges.items()
        }
        self._means = _means(model, groups, asked, feeds, spans)

    def of(self, candidate: Candidate, amax: float, dtype: DType = DType.INT8) -> NDArray[np.float32]:
        """What to add to each output channel of a candidate, [channels]; zeros for all but Conv."""
        key = (candidate.node, amax, dtype)
        if key not in self._known:
            self._known[key] = self._shift(candidate, amax, dtype)
        found = self._known[key]
        return np.zeros(1, np.float32) if found is None else found

    def can(self, candidate: Candidate) -> bool:
        """Whether this layer is corrected."""
        node = self._nodes[candidate.node]
        fixed = not graphs.is_present(node, 2) or graphs.constant_value(node.inputs[2]) is not None
        return candidate.op == "Conv" and isinstance(node.inputs[1], gs.Constant) and fixed

    def _shift(self, candidate: Candidate, amax: float, dtype: DType) -> NDArray[np.float32] | None:
        if not self.can(candidate) or (candidate.activation, amax, dtype) not in self._means:
            return None
        node = self._nodes[candidate.node]
        plain, quantized = self._means[candidate.activation, amax, dtype]
        weight = np.asarray(node.inputs[1].values)
        given = self._scales[dtype].get(candidate.node)
        axis = candidate.axis if self._per_channel[dtype] else None
        stored, scales = quantize_weight(weight, axis, format_of(dtype), given)
        exact = _project(node, weight, plain)
        moved = _project(node, stored.astype(np.float32), quantized) * scales
        result: NDArray[np.float32] = (exact - moved).astype(np.float32)
        return result


def shared_scales(graph: gs.Graph, groups: Mapping[str, Sequence[Candidate]]) -> dict[str, NDArray[np.float32]]:
    """FP8 scales by node where several weights are multiplied by one activation: they share the largest, as in Q/DQ."""
    weights = {tensor.name: tensor for tensor in graphs.tensors(graph) if graphs.is_constant(tensor)}
    shared: dict[str, NDArray[np.float32]] = {}
    for members in groups.values():
        if len(members) > 1:
            own = [weight_scales(weights[c.weight].values, None, "fp8") for c in members]
            shared.update(dict.fromkeys((c.node for c in members), np.array(np.max(own))))
    return shared


def _project(node: gs.Node, weight: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each output channel, [M], from that of each input channel, [C]; the weight is [M, C / groups, ...]."""
    groups = int(node.attrs.get("group", 1))
    taps = weight.astype(np.float64).sum(axis=tuple(range(2, weight.ndim)))
    parts = mean.reshape(groups, -1)
    return np.asarray(np.einsum("gmc,gc->gm", taps.reshape(groups, -1, taps.shape[1]), parts).ravel())


def _means(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    asked: Mapping[str, Sequence[tuple[float, DType]]],
    feeds: Sequence[Feeds],
    spans: Mapping[str, Span] | None,
) -> dict[tuple[str, float, DType], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """By (tensor, amax, format): mean of x and of DQ(Q(x)) per channel, over all samples and positions."""
    groups = {name: members for name, members in groups.items() if any(c.op == "Conv" for c in members)}
    if not groups:
        return {}
    seen = _Sums({name: list(dict.fromkeys(asked[name])) for name in groups}, spans)  # calibrators may agree
    fill(model, [seen], feeds, quick=True)
    return {
        key: (plain / max(seen.counts[key[0]], 1), quantized / max(seen.counts[key[0]], 1))
        for key, (plain, quantized) in seen.sums.items()
    }


class _Sums:
    """Sums of x and of DQ(Q(x)) per channel of the inputs of convolutions, by (tensor, amax, format)."""

    def __init__(self, asked: Mapping[str, Sequence[tuple[float, DType]]], spans: Mapping[str, Span] | None) -> None:
        self._asked, self._spans = asked, spans
        self.sums: dict[tuple[str, float, DType], list[NDArray[np.float64]]] = {}
        self.counts = dict.fromkeys(asked, 0)

    @property
    def tensors(self) -> Sequence[str]:
        return list(self._asked)

    def update(self, part: Part) -> None:
        padding = Padding(part.feed)
        for name in (name for name in self._asked if name in part.values):
            x = padding.keep(np.moveaxis(np.asarray(part.values[name], np.float32), 1, -1))
            x = x.reshape(-1, x.shape[-1])
            self.counts[name] += len(x)
            total = x.sum(0, dtype=np.float64)
            observed = None if self._spans is None else self._spans.get(name)
            for amax, dtype in self._asked[name]:
                pair = self.sums.setdefault((name, amax, dtype), [np.zeros(x.shape[1]), np.zeros(x.shape[1])])
                pair[0] += total
                pair[1] += _quantized_sum(x, amax, dtype, observed)


def _quantized_sum(x: NDArray[np.float32], amax: float, dtype: DType, observed: Span | None) -> NDArray[np.float64]:
    """Sum of DQ(Q(x)) per column."""
    if dtype is DType.FP8:
        step = amax / E4M3_MAX
        return np.asarray(quantize_fp8_e4m3(x, step).astype(np.float32).sum(0, dtype=np.float64) * step)
    scale, low = np.float32(amax / INT8_MAX), -128
    if observed is not None:
        scale, zero = grid(*span(amax, observed))
        low = -zero
    steps = np.rint(x / scale)
    np.clip(steps, low, low + 255, out=steps)
    return np.asarray(steps.sum(0, dtype=np.float64) * float(scale))
