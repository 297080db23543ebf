"""x · W  ⇒  (x/s) · (s·W) with the s that another graph of the same model has: its weights say which.

A graph that was smoothed or equalized holds W'[k, n] = s[k] · W[k, n], rounded. The factor of an input channel is
therefore a ratio of weights, and every output shows it again:

    s[k] = median over n of W'[k, n] / W[k, n], weighted by |W[k, n]|

The median, because a part of a layer may be broken, which is perhaps what somebody is looking for. Layers that read the
same activation were given the same factors, so the median is also taken over them.

Factors are believed where they explain the weights: the difference to W' must fall to half of what one common factor
leaves. Rounding alone cannot do that, and a scale that is wrong for a whole layer is one common factor. That one is not
followed: it is an error, and stays visible. Layers are looked at from the last to the first, because the weight of a
layer that took a division carries those factors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import tensors, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.passes.absorb.edits import Edit
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_SEEN = 512  # weights of a channel that are looked at
_WORTH = 2.0  # by which the difference must fall
_LEAST = 1e-12


@dataclass(frozen=True)
class FollowScales(Pass):
    """Divide activations by the factors per channel that another graph's weights show.

    Attributes:
        weights: of the other graph, by the name of what a linear node computes: float, in the shape of its weight here.
    """

    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 1e-4  # as `smooth-quant`

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor that is divided in the other graph, from the last to the first."""
        names = Names(graph)
        for tensor in reversed(list(tensors(graph))):
            axis = absorb.channel_axis(tensor)
            factors = None if axis is None else _factors(absorb.reading_edits(tensor, axis), self.weights)
            if factors is None or axis is None:
                continue
            plan = absorb.find_moves(graph, tensor, axis)
            if plan.why:
                plan = absorb.find_moves(graph, tensor, axis, split=True)
            why = plan.why or absorb.apply(graph, plan, _tied(plan, factors), names)
            spelled = f"divided by factors from {factors.min():.3g} to {factors.max():.3g}"
            yield Skipped(tensor.name, why) if why else Changed(tensor.name, spelled)


def _tied(plan: absorb.Absorption, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """One factor for channels that need a common one: each shows it with an error of its own."""
    if plan.classes.size != factors.size:
        return factors
    logs = np.bincount(plan.classes, np.log(factors)) / np.maximum(np.bincount(plan.classes), 1)
    return np.exp(logs)[plan.classes].astype(np.float32)


def _factors(edits: Sequence[Edit], weights: Mapping[str, Array]) -> NDArray[np.float32] | None:
    """What the other graph divides a tensor by, float32 [C]; None where its weights show no factors."""
    pairs = [pair for edit in edits if (pair := _rows(edit, weights)) is not None]
    if not pairs or len({own.shape[0] for own, _ in pairs}) != 1:
        return None
    shown = [np.log(np.maximum(_ratios(own, other), _LEAST)) for own, other in pairs]
    common = [_middle(logs, own) for logs, (own, _) in zip(shown, pairs, strict=True)]
    shape = np.median([logs - one for logs, one in zip(shown, common, strict=True)], axis=0)
    before = after = 0.0
    for (own, other), one in zip(pairs, common, strict=True):
        flat, bent = (np.exp(one) * own, np.exp(one + shape)[:, None] * own)
        before += float(np.square(other - flat).sum()) / own.size
        free = max(own.shape[1] - 1, 0) * own.shape[0]  # one value of each channel is used up by its factor
        after += float(np.square(other - bent).sum()) / free if free else np.inf
    if not before > _WORTH * after or not np.isfinite(shape).all():
        return None
    return np.exp(shape + np.median(common)).astype(np.float32)


def _middle(logs: Array, own: Array) -> float:
    """The factor that a layer as a whole shows, as logarithm: the median over its channels by their energy."""
    order = np.argsort(logs)
    weights = np.cumsum(np.square(own).sum(1)[order])
    return float(logs[order][np.searchsorted(weights, weights[-1] / 2)])


def _rows(edit: Edit, weights: Mapping[str, Array]) -> tuple[Array, Array] | None:
    """Own and other weight, a row for each input channel, float64 [C, weights of it]; None where they do not fit."""
    own, other, index = values_of(edit.constant), weights.get(edit.node.outputs[0].name), edit.index
    if other is None or other.shape != own.shape or index.size < 2 or (index < 0).any():
        return None
    axes = [axis for axis, size in enumerate(index.shape) if size > 1]
    ids = index.reshape(-1)
    if len(axes) == 1 and np.array_equal(ids, np.arange(own.shape[axes[0]])):
        rows = [np.moveaxis(one, axes[0], 0).reshape(ids.size, -1) for one in (own, other)]
    else:
        ids = np.broadcast_to(index, own.shape).reshape(-1)
        counts = np.bincount(ids)
        if counts.min() != counts.max():
            return None
        order = np.argsort(ids, kind="stable")
        rows = [one.reshape(-1)[order].reshape(counts.size, -1) for one in (own, other)]
    step = -(-rows[0].shape[1] // _SEEN)
    first, second = (one[:, ::step].astype(np.float64) for one in rows)
    return first, second


def _ratios(own: Array, other: Array) -> Array:
    """The weighted median of other / own of each row; 1 where the row is zero."""
    weight = np.abs(own)
    ratio = np.divide(other, own, out=np.ones_like(own), where=weight > 0)
    order = np.argsort(ratio, axis=1)
    sums = np.cumsum(np.take_along_axis(weight, order, 1), axis=1)
    middle = (sums < sums[:, -1:] / 2).sum(1).clip(max=own.shape[1] - 1)
    found = np.take_along_axis(np.take_along_axis(ratio, order, 1), middle[:, None], 1)[:, 0]
    return np.where(sums[:, -1] > 0, found, 1.0)
