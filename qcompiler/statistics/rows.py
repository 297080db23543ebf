"""A few rows of activations as they are, for choices that need the values themselves and not only their statistics.

A row is what one token sends into a product: all channels at one position. Of every sample the rows that spike most are
taken, each standing for itself, and others at even distances, each standing for as many as were passed over. So sums
over the rows estimate sums over all tokens, and the rare tokens that decide about ranges are never missed. What an
attention mask of the feed excludes is no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import Part, fill, stream
from qcompiler.statistics.outliers import fold_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


Model = models.Model
Many = Sequence[Feeds]
SPIKES = 4  # rows of a sample that are always taken
MOST_ROWS = 512
MOST_BYTES = 96 << 20  # of all rows together


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one activation.

    Attributes:
        values: float32 [rows, channels].
        counts: how many rows of the data each one stands for, float32 [rows].
        folds: the part of the data that the sample of each row belongs to (`outliers.fold_of`), int64 [rows]; empty
            where nobody asks.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.float32]
    folds: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def record_rows(model: Model, tensors: Mapping[str, int], feeds: Many) -> dict[str, Rows]:
    """Runs the feeds and records rows of `tensors`, by name with the axis of their channels.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    if not tensors or not feeds:
        return {}
    seen = Recorder(tensors, channels(model, tensors, feeds[0]), len(feeds))
    fill(model, [seen], feeds)
    return seen.rows()


def channels(model: Model, tensors: Mapping[str, int], feed: Feeds) -> int:
    """Of all tensors together; by running the feed where the graph does not say it."""
    shapes = {tensor.name: graphs.shape_of(tensor) for tensor in graphs.tensors(model.graph)}
    known = [shape[axis] for name, axis in tensors.items() if (shape := shapes.get(name))]
    if len(known) == len(tensors) and all(isinstance(size, int) for size in known):
        return sum(size for size in known if isinstance(size, int))
    values = (item for part in stream(model, tensors, [feed]) for item in part.values.items())
    return sum(value.shape[tensors[name]] for name, value in values)


class Recorder:
    """Rows of some tensors, filled by `qcompiler.runtime.stream.fill`.

    Args:
        tensors: by name, the axis of their channels.
        channels: of all of them together, which together with `feeds` says how many rows the memory allows.
        feeds: how many there will be.
    """

    def __init__(self, tensors: Mapping[str, int], channels: int, feeds: int) -> None:
        self._axes = tensors
        self._each = rows_each(channels, feeds)
        self._parts: dict[str, dict[int, Rows]] = {name: {} for name in tensors}  # by the index of the feed

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the tensors."""
        return list(self._axes)

    def update(self, part: Part) -> None:
        """Records rows of those that are in the part."""
        fold, padding = fold_of(part.feed), Padding(part.feed)
        for name, axis in self._axes.items():
            if name in part.values:
                value = np.moveaxis(np.asarray(part.values[name], np.float32), axis, -1)
                self._parts[name][part.index] = _sample(padding.keep(value), self._each, fold)

    def merge(self, other: Recorder) -> None:
        """Takes in what another one has recorded of other feeds."""
        for name, parts in other._parts.items():
            self._parts[name].update(parts)

    def rows(self) -> dict[str, Rows]:
        """By name, in the order of the feeds."""
        return {name: _joined([parts[at] for at in sorted(parts)]) for name, parts in self._parts.items() if parts}


def rows_each(channels: int, feeds: int) -> int:
    """Rows of each feed, so that all of them fit the memory that is allowed."""
    affordable = MOST_BYTES // (4 * max(channels, 1))
    return max(SPIKES + 4, min(MOST_ROWS, affordable) // feeds)


def _sample(value: NDArray[np.float32], most: int, fold: int) -> Rows:
    flat = value.reshape(-1, value.shape[-1])
    if len(flat) <= most:
        return Rows(flat.copy(), np.ones(len(flat), np.float32), np.full(len(flat), fold))
    order = np.argsort(-np.abs(flat).max(axis=1), kind="stable")
    rest = np.sort(order[SPIKES:])
    spaced = rest[np.linspace(0, len(rest) - 1, most - SPIKES).round().astype(np.intp)]
    counts = np.ones(most, np.float32)
    counts[SPIKES:] = len(rest) / (most - SPIKES)
    return Rows(flat[np.concatenate([order[:SPIKES], spaced])], counts, np.full(most, fold))


def _joined(parts: Sequence[Rows]) -> Rows:
    width = parts[0].values.shape[1]
    same = [part for part in parts if part.values.shape[1] == width]
    return Rows(
        np.concatenate([part.values for part in same]),
        np.concatenate([part.counts for part in same]),
        np.concatenate([part.folds for part in same]),
    )


COLUMNS = 256  # outputs of a layer that errors are summed over: enough to tell alphas apart, however wide it is


def thinned(weight: NDArray[np.float32], most: int = COLUMNS) -> NDArray[np.float32]:
    """At most `most` columns at even distances."""
    step = -(-weight.shape[1] // most)
    return np.ascontiguousarray(weight[:, ::step])
