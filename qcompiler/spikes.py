"""Where activations spike: figures of each tensor that say how well one INT8 scale can hold it, from one data run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import graph as graphs
from qcompiler.calibrators import MSE
from qcompiler.equivalence import first_not_finite
from qcompiler.numerics import quantization_error, signal_power
from qcompiler.session import Session
from qcompiler.statistics import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.data import Feeds, Source

EXACT_DB = 200.0  # for a tensor that the grid holds exactly


@dataclass(frozen=True, slots=True)
class Spike:
    """One activation that linear nodes read.

    Attributes:
        tensor: its name.
        readers: the candidates that read it.
        int8_db: SQNR in dB that INT8 with the range of least mean squared error leaves in this tensor; 200 stands for
            a tensor that is constant zero.
        amax: largest |x|.
        p99_99: |x| that 99.99 % of the elements do not exceed.
        crest: amax over the root mean square; 4 or 5 for a bell curve.
        over_positions: the largest |x| of a position (token, pixel), largest over median; much above 10 means that a
            few positions spike, and a clipped range may serve the others.
        over_channels: the same for channels; much above 10 means that a few channels do, which a scale per tensor
            cannot mend but smoothing can. None where the number of channels varies.
    """

    tensor: str
    readers: tuple[str, ...]
    int8_db: float
    amax: float
    p99_99: float
    crest: float
    over_positions: float
    over_channels: float | None


@dataclass
class Watched:
    """What one run over the data shows.

    Attributes:
        spikes: those whose INT8 error is largest first.
        feeds: how many feeds were run.
        overflow: where the float model itself stops being finite, as a sentence; empty where it never does.
    """

    spikes: list[Spike] = field(default_factory=list)
    feeds: int = 0
    overflow: str = ""


class _Tally:
    """Counts one tensor. `channel` is the axis that the reader multiplies along: positions are all other axes."""

    def __init__(self, channel: int) -> None:
        self.all = Histogram()
        self.positions = Histogram()
        self.channels: NDArray[np.float64] | None = None
        self._channel, self._fixed = channel, True

    def add(self, value: NDArray[Any]) -> None:
        self.all.update(value)
        if value.ndim < 2 or not value.size:
            return
        x = np.abs(value)
        self.positions.update(np.asarray(x.max(axis=self._channel)))
        others = tuple(axis for axis in range(x.ndim) if axis != self._channel % x.ndim)
        now = np.asarray(x.max(axis=others), np.float64)
        self._fixed = self._fixed and (self.channels is None or self.channels.shape == now.shape)
        if self._fixed:
            self.channels = now if self.channels is None else np.maximum(self.channels, now)

    def spike(self, tensor: str, readers: Sequence[str]) -> Spike:
        power = signal_power(self.all)
        error = quantization_error(self.all, MSE().range(self.all), "int8") if power else 0.0
        median = None if self.channels is None or not self._fixed else float(np.median(self.channels))
        return Spike(
            tensor,
            tuple(readers),
            min(10 * math.log10(power / error), EXACT_DB) if error else EXACT_DB,
            self.all.amax,
            self.all.quantile(99.99),
            self.all.amax / math.sqrt(power) if power else 0.0,
            _over(self.positions.amax, self.positions.quantile(50)),
            None if median is None else _over(self.all.amax, median),
        )


def _over(largest: float, median: float) -> float:
    if not largest:
        return 1.0
    return largest / median if median else math.inf


def watch(
    graph: gs.Graph,
    activations: dict[str, list[gs.Node]],
    source: Source,
    advance: Callable[[float], None],
) -> Watched:
    """Runs all feeds through `graph`; stops at the first one that makes an activation or an output not finite.

    Args:
        graph: the float graph, normalised.
        activations: the tensors to look at, with the nodes that read each.
        source: feeds.
        advance: called with 1 after each feed.

    Raises:
        DataError: a feed does not fit.
        ModelError: ONNX Runtime refuses the graph, or a node fails.
    """
    fed = {tensor.name for tensor in graph.inputs}
    results = [tensor.name for tensor in graph.outputs if graphs.is_float(tensor)]
    tapped = list(dict.fromkeys(name for name in (*activations, *results) if name not in fed))
    session = Session(graph, outputs=tapped) if tapped else None
    tallies = {name: _Tally(1 if readers[0].op.startswith("Conv") else -1) for name, readers in activations.items()}
    found = Watched()
    for feeds in source:
        values = {**feeds, **(session.run(feeds) if session is not None else {})}
        found.overflow = _overflow(graph, {name: values[name] for name in tapped}, feeds, found.feeds)
        if found.overflow:
            break
        for name, tally in tallies.items():
            tally.add(np.asarray(values[name]))
        found.feeds += 1
        advance(1)
    if found.feeds:
        rows = [tally.spike(name, [node.name for node in activations[name]]) for name, tally in tallies.items()]
        found.spikes = sorted(rows, key=lambda row: row.int8_db)
    return found


def _overflow(graph: gs.Graph, values: dict[str, NDArray[Any]], feeds: Feeds, index: int) -> str:
    """Which tensor is not finite on this feed, and which node made it; empty where all are finite."""
    bad = next((n for n, v in values.items() if v.dtype.kind == "f" and not np.isfinite(v).all()), None)
    if bad is None:
        return ""
    node = first_not_finite(graph, feeds)
    where = f"; node '{node.name}' ({node.op}) is the first that computes one" if node is not None else ""
    return f"tensor '{bad}' has NaN or infinite values on feed {index}{where}"
