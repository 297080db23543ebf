"""A few rows of activations as they are, for choices that need the values themselves and not only their statistics.

A row is what one token sends into a product: all channels at one position. Of every sample the rows that spike most are
taken, each standing for itself, and others at even distances, each standing for as many as were passed over. So sums
over the rows estimate sums over all tokens, and the rare tokens that decide about ranges are never missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import model as models
from qcompiler.outliers import fold_of
from qcompiler.session import Session
from qcompiler.signature import Feeds

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


def rows(model: Model, tensors: Mapping[str, int], feeds: Many) -> dict[str, Rows]:
    """Runs the feeds and records rows of `tensors`, by name with the axis of their channels.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    if not tensors or not feeds:
        return {}
    inputs = {tensor.name for tensor in model.graph.inputs}
    tapped = [name for name in tensors if name not in inputs]
    session = Session(model, outputs=tapped) if tapped else None
    parts: dict[str, list[Rows]] = {name: [] for name in tensors}
    each = 0
    for feed in feeds:
        values: Mapping[str, NDArray[np.float32]] = {**feed, **(session.run(feed) if session is not None else {})}
        each = each or _rows_each([values[name].shape[axis] for name, axis in tensors.items()], len(feeds))
        fold = fold_of(feed)
        for name, axis in tensors.items():
            parts[name].append(_sample(np.moveaxis(np.asarray(values[name], np.float32), axis, -1), each, fold))
    return {name: _joined(found) for name, found in parts.items()}


def _rows_each(channels: Sequence[int], feeds: int) -> int:
    """Rows of each feed, so that all of them fit the memory that is allowed."""
    affordable = MOST_BYTES // (4 * max(sum(channels), 1))
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
