"""Where activations spike: figures of each tensor that say how well one INT8 scale can hold it, from one data run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.calibrators.error_curve import quantization_error
from qcompiler.calibrators.mse import MSE
from qcompiler.data.batches import BatchAxes, samples_of
from qcompiler.data.samples import ShapeRange
from qcompiler.ir import graph as graphs
from qcompiler.numerics.sqnr import EXACT_DB, sqnr_db
from qcompiler.runtime.finite import first_not_finite
from qcompiler.runtime.stream import Part, Stream
from qcompiler.statistics import residual
from qcompiler.statistics.histogram import Histogram, Histograms, signal_power
from qcompiler.statistics.outliers import AllOutliers, Outliers, kurtosis, top_channels, top_tokens

if TYPE_CHECKING:
    from qcompiler.data.source import Source


@dataclass(frozen=True, slots=True)
class Spike:
    """One activation that linear nodes read.

    Attributes:
        tensor: its name.
        readers: the candidates that read it.
        depth: its place among these activations in graph order, from 0.
        int8_db: SQNR in dB that INT8 with the range of least mean squared error leaves in this tensor; 200 stands for
            a tensor that is constant zero.
        amax: largest |x|.
        p99_99: |x| that 99.99 % of the elements do not exceed.
        crest: amax over the root mean square; 4 or 5 for a bell curve.
        kurtosis: fourth moment about zero over the square of the second; 3 for a bell curve.
        ratio: the largest |x| of a token (or pixel), the maximum over the median, mean over samples, which QFeM goes
            by; much above 10 means that single tokens spike, which no scales of channels mend.
        over_channels: the largest |x| of a channel, the maximum over the median; much above 10 means that few channels
            are loud in all tokens, which smoothing mends. None where the number of channels varies, or the median
            channel is zero.
        top_channels: the largest channels, each `channel`, `amax` and `over_median`.
        top_tokens: the largest tokens, each `position`, `id`, `channel`, `value`, `sample`, as in `outliers.records`.
    """

    tensor: str
    readers: tuple[str, ...]
    depth: int
    int8_db: float
    amax: float
    p99_99: float
    crest: float
    kurtosis: float
    ratio: float
    over_channels: float | None
    top_channels: tuple[Mapping[str, Any], ...] = ()
    top_tokens: tuple[Mapping[str, Any], ...] = ()


@dataclass
class Watched:
    """What one run over the data shows.

    Attributes:
        spikes: those whose INT8 error is largest first.
        residuals: the ranges at residual Adds, in graph order.
        feeds: how many feeds were run.
        shapes: of the inputs of these feeds.
        overflow: where the float model itself stops being finite, as a sentence; empty where it never does.
    """

    spikes: list[Spike] = field(default_factory=list)
    residuals: list[residual.Residual] = field(default_factory=list)
    feeds: int = 0
    overflow: str = ""
    shapes: ShapeRange = field(default_factory=ShapeRange)


def watch(
    graph: gs.Graph,
    activations: Mapping[str, Sequence[gs.Node]],
    source: Source,
    batch: BatchAxes,
    advance: Callable[[float], None],
) -> Watched:
    """Runs all feeds through `graph`; stops at the first one that makes an activation or an output not finite.

    Args:
        graph: the float graph, normalised.
        activations: the tensors to look at, with the nodes that read each, in graph order.
        source: feeds.
        batch: which axes of the inputs are a batch.
        advance: called with 1 after each feed.

    Raises:
        DataError: a feed does not fit.
        ModelError: ONNX Runtime refuses the graph, or a node fails.
    """
    joins = residual.joins(graph)
    streams = residual.tensors_of(joins)
    fed = {tensor.name for tensor in graph.inputs}
    results = [tensor.name for tensor in graph.outputs if graphs.is_float(tensor)]
    tapped = [name for name in dict.fromkeys((*activations, *streams, *results)) if name not in fed]
    axes = {name: _axis(readers) for name, readers in activations.items()}
    opened = Stream(graph, dict.fromkeys((*activations, *streams, *tapped)))
    seen = _Spikes([*activations, *streams], axes, batch)
    found = Watched()
    for index, feeds in enumerate(source):
        one = _Spikes([*activations, *streams], axes, batch)  # a feed that overflows counts in nothing
        for part in opened.parts(index, feeds):
            found.overflow = _overflow(graph, part, fed)
            if found.overflow:
                break
            one.update(part)
        if found.overflow:
            break
        seen.merge(one)
        found.feeds += 1
        found.shapes.watch(feeds)
        advance(1)
    if not found.feeds:
        return found
    spikes = [
        _spike(name, [node.name for node in activations[name]], depth, seen.histograms.found[name], one)
        for depth, (name, one) in enumerate(seen.outliers.found.items())
    ]
    found.spikes = sorted(spikes, key=lambda one: one.int8_db)
    found.residuals = residual.residuals(joins, seen.histograms.found)
    return found


def _axis(readers: Sequence[gs.Node]) -> int:
    """The axis of the channels: positions are all other ones."""
    return 1 if readers[0].op.startswith("Conv") else -1


class _Spikes:
    """Histograms and outliers together."""

    def __init__(self, tensors: Sequence[str], axes: Mapping[str, int], batch: BatchAxes) -> None:
        self.histograms = Histograms(tensors)
        self.outliers = AllOutliers(axes, lambda feed: samples_of(feed, batch))

    def update(self, part: Part) -> None:
        self.histograms.update(part)
        self.outliers.update(part)

    def merge(self, other: _Spikes) -> None:
        self.histograms.merge(other.histograms)
        self.outliers.merge(other.outliers)


def _spike(tensor: str, readers: Sequence[str], depth: int, seen: Histogram, found: Outliers) -> Spike:
    power = signal_power(seen)
    error = quantization_error(seen, MSE().range(seen), "int8") if power else 0.0
    channels = top_channels(found.channels)
    return Spike(
        tensor,
        tuple(readers),
        depth,
        min(sqnr_db(power, error), EXACT_DB),
        seen.amax,
        seen.quantile(99.99),
        seen.amax / math.sqrt(power) if power else 0.0,
        kurtosis(seen),
        found.ratio,
        channels[0]["over_median"] if channels else None,
        tuple(channels),
        tuple(top_tokens(found.top)),
    )


def _overflow(graph: gs.Graph, part: Part, fed: Collection[str]) -> str:
    """Which computed tensor is not finite on this feed, and which node made it; empty where all are finite."""
    computed = ((name, value) for name, value in part.values.items() if name not in fed)
    bad = next((n for n, v in computed if v.dtype.kind == "f" and not np.isfinite(v).all()), None)
    if bad is None:
        return ""
    node = first_not_finite(graph, part.feed)
    where = f"; node '{node.name}' ({node.op}) is the first that computes one" if node is not None else ""
    return f"tensor '{bad}' has NaN or infinite values on feed {part.index}{where}"
