"""What dividing the channels of an activation would do to the error of the layers that read it, before anything is run.

    NSR = ( e · Σ_i ‖W_i‖²  +  Σ_o Δ_o²/12 · Σ_i P_i ) / Σ_i P_i ‖W_i‖²

e is the error of rounding and clipping the activation in its best range c, integrated over its histogram; Δ_o the step
of output channel o of the weight; P_i the power of input channel i, which is taken to go with the square of the largest
value m_i that the channel reached. Divided by s, the activation is rounded in a range that its divided channels need:

    e' · s_i² per channel,   e' = e · (r · max_i m_i/s_i / c)²,   r = min(1, c / m),   m² = Σ m_i²‖W_i‖² / Σ ‖W_i‖²

r is how far below what a channel reaches the best range lies anyway. So dividing gains nothing where no channel stands
out (c ≤ m: the range is as narrow as the channels ask for), and c²/m² at most where some do. The weights take s, so
their steps Δ_o grow. Nothing of this needs a run of the model: maxima of channels and histograms were kept of the one
run over the data. It predicts errors of single layers, not of the outputs: where a method can help, not what it gives.

Convolutions go by this. For products there is better: rows of what they read are recorded, and the layers are computed
(`smooth_quant/alpha.py`). Maxima say little of channels that lie less than tenfold apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.calibrators import mse
from qcompiler.calibrators.error_curve import ErrorCurve
from qcompiler.ir import linear
from qcompiler.ir.graph import is_op
from qcompiler.ir.operators import PRODUCTS
from qcompiler.numerics.rounding import LARGEST, Format
from qcompiler.plan import Candidate
from qcompiler.statistics.histogram import Histogram, signal_power
from qcompiler.statistics.outliers import Outliers
from qcompiler.statistics.rows import thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


# Mean squared error of E4M3 relative to the value, values being spread evenly over an octave in the logarithm: steps of
# 1/8 of the power of two below, (1/8)²/12 · E[m⁻²] with E[m⁻²] = (1 - 1/4) / (2 ln 2) of the significand m in [1, 2)
E4M3_ERROR = (1 / 8) ** 2 / 12 * 0.75 / (2 * math.log(2))


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weight of a layer as far as steps and powers go.

    Attributes:
        power: Σ w² over outputs and taps of each input channel, float64 [C].
        peaks: largest |w| over taps, float32 [groups, outputs of each, C / groups].
        taps: how many elements of the input an output reads of each channel.
        whole: the layer has one scale, else one for each output channel.
    """

    power: Floats
    peaks: NDArray[np.float32]
    taps: int
    whole: bool

    @staticmethod
    def of(node: gs.Node, candidate: Candidate, *, per_channel: bool) -> LayerWeights | None:
        """Those of a product or convolution; None where its weight is no float constant that can be laid out so."""
        laid = _laid(node)
        if laid is None:
            return None
        power = np.einsum("gock,gock->gc", laid, laid, dtype=np.float64).ravel()
        whole = candidate.axis is None or not per_channel
        return LayerWeights(power, np.abs(laid).max(axis=3), laid.shape[3], whole)

    def rounding(self, scales: Floats, powers: Floats, format: Format) -> float:
        """What rounding the weight adds to the power of all outputs, with input channels multiplied by `scales`."""
        groups, _, depth = self.peaks.shape
        if format == "fp8":
            return float(E4M3_ERROR * np.dot(powers, self.power))
        scaled = (self.peaks * scales.reshape(groups, 1, depth)).max(axis=2)
        steps = (np.full_like(scaled, scaled.max()) if self.whole else scaled) / LARGEST[format]
        read = (powers / scales**2).reshape(groups, depth).sum(axis=1) * self.taps
        return float(np.dot((steps.astype(np.float64) ** 2).sum(axis=1) / 12, read))


def _laid(node: gs.Node) -> NDArray[np.float32] | None:
    """The weight as [groups, outputs of each, channels of each, taps]; of wide products some outputs only."""
    if is_op(node, *PRODUCTS):
        matrix = linear.matrix(node)
        return None if matrix is None else thinned(matrix).T[None, :, :, None]
    weight = linear.weight_of(node) if is_op(node, "Conv") else None
    if weight is None or weight.chain or weight.tensor.values.dtype != np.float32:
        return None
    values, groups = weight.tensor.values, int(node.attrs.get("group", 1))
    laid: NDArray[np.float32] = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return laid


@dataclass(frozen=True, eq=False)
class Read:
    """An activation that layers read, with what is known of it.

    Attributes:
        channels: largest |x| of each channel, float64 [C].
        power: mean x².
        range: the best range for the whole tensor.
        error: mean squared error in it.
        layers: weights of its readers.
        format: what they will compute in.
    """

    channels: Floats
    power: float
    range: float
    error: float
    layers: Sequence[LayerWeights]
    format: Format

    @staticmethod
    def of(histogram: Histogram, seen: Outliers, layers: Sequence[LayerWeights | None], format: Format) -> Read | None:
        """None where nothing can be said: channels that vary, weights that are computed, or nothing but zeros."""
        known = [one for one in layers if one is not None]
        channels = np.asarray(seen.channels, np.float64)
        fits = len(known) == len(layers) and all(len(one.power) == len(channels) for one in known)
        if not fits or not known or not channels.any() or not histogram.amax:
            return None
        best = mse.MSE(format).range(histogram)
        error = ErrorCurve(histogram, format)(best)
        return Read(channels, signal_power(histogram), best, error, known, format)

    @property
    def _powers(self) -> Floats:
        """Of each channel."""
        squares = self.channels**2
        return np.asarray(squares * (self.power * len(squares) / squares.sum()))

    @property
    def _weight(self) -> Floats:
        """Σ w² of each channel, over all readers."""
        return np.asarray(sum(one.power for one in self.layers), np.float64)

    @property
    def signal(self) -> float:
        """Power of the outputs of all readers."""
        return float(np.dot(self._powers, self._weight))

    def noise(self) -> float:
        """NSR of the readers as they are."""
        return self._with(self._own, np.ones(len(self.channels)))

    def rounding(self) -> float:
        """The part of `noise` that rounding the weights makes."""
        return self._with(0.0, np.ones(len(self.channels)))

    @property
    def _own(self) -> float:
        """What rounding the activation adds to the power of the outputs: FP8 errs by the size of each value."""
        if self.format == "fp8":
            return self.error / max(self.power, 1e-300) * self.signal
        return self.error * float(self._weight.sum())

    def divided(self, scales: Floats) -> float:
        """NSR of the readers were the channels divided by `scales`, float64 [C]."""
        weight = self._weight
        if self.format == "fp8":
            return self._with(min(E4M3_ERROR * self.signal, self._own), scales)
        typical = np.sqrt(float(np.dot(self.channels**2, weight) / max(weight.sum(), 1e-300)))
        reach = min(1.0, self.range / max(typical, 1e-300)) * float((self.channels / scales).max())
        own = self.error * (reach / self.range) ** 2 * float(np.dot(scales**2, weight))
        return self._with(own, scales)

    def _with(self, own: float, scales: Floats) -> float:
        powers = self._powers
        rounding = sum(one.rounding(scales, powers, self.format) for one in self.layers)
        return (own + rounding) / max(self.signal, 1e-300)


def read(
    graph: gs.Graph,
    groups: Mapping[str, Sequence[Candidate]],
    histograms: Mapping[str, Histogram],
    outliers: Mapping[str, Outliers],
    *,
    per_channel: bool,
    format: Format,
) -> dict[str, Read]:
    """What is known of the activations, by name; those of which nothing can be said are missing.

    Args:
        graph: the normalised float graph.
        groups: candidates by the activation that they share.
        histograms: of the activations.
        outliers: their largest channels.
        per_channel: weights have a scale for each output channel.
        format: what the layers will compute in.
    """
    nodes = {node.name: node for node in graph.nodes}
    found: dict[str, Read] = {}
    for name, members in groups.items():
        if name in histograms and name in outliers:
            weights = [LayerWeights.of(nodes[one.node], one, per_channel=per_channel) for one in members]
            one = Read.of(histograms[name], outliers[name], weights, format)
            if one is not None:
                found[name] = one
    return found


def gain_db(before: Iterable[float], after: Iterable[float]) -> float:
    """By how many dB the sum of errors falls; all layers count alike, since nothing is known of their way outwards."""
    first, second = sum(before), sum(after)
    return float(10 * np.log10(first / second)) if first > 0 and second > 0 else 0.0
