"""x · W  ⇒  (x/s) · (s·W) with the s that another graph of the same model has: its weights say which.

A graph that was smoothed or equalized holds W'[k, n] = s[k] · W[k, n], rounded. Every output n of an input channel k
shows its factor again. For a few stretches of outputs it is the one that explains them best,

    s[k] = median over stretches of  Σ W'[k, n] · W[k, n] / Σ W[k, n]²

which rounding does not bend, not even where it makes most of a small row zero. The median is for layers of which a part
is broken, which is perhaps what somebody is looking for. Layers that read the same activation were given the same
factors, so the median is also taken over them.

A channel that rounding has left nothing of (its factor was that small) is asked for where the factor went: the layer
that took the division holds W'[j, k] = t[j] · W[j, k] / s[k], and there it is large. Its bias was divided too, and no
scale of weights is part of it: where one common factor of s differs between weights and bias, the bias is right.

Factors are believed where they explain the weights of half of these layers at least: of most outputs the difference to
W' must fall to half of what one common factor leaves. Most, because a few of them may be broken. Rounding alone cannot
do that, and a scale that is wrong for a whole layer is one common factor. That one is not followed: it is an error, and
stays visible. Layers are looked at from the last to the
first, because the weight of a layer that took a division carries those factors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import is_linear, is_op, tensors, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.passes.absorb.edits import Edit
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


Constants = Mapping[tuple[str, int], "NDArray[np.float32]"]
_SEEN = 512  # weights of a channel that are looked at
_WORTH = 2.0  # by which the difference must fall
_STRETCHES, _SHORTEST = 8, 4  # stretches of outputs, and outputs of one
_SURE = 0.2  # standard error of a factor that can be told, relative to it
_ROUNDS = 4
_ALIKE, _ALIKE_LEAST = 0.8, 8  # correlation of factors that are the same, and channels that show it
_LIKE = 0.05  # what factors that are the same may differ by, relative


@dataclass(frozen=True)
class FollowScales(Pass):
    """Divide activations by the factors per channel that another graph's weights show.

    Attributes:
        weights: constants of the other graph, by the name of what a node computes and the index of its input: float, in
            the shape that they have here.
    """

    weights: Constants = field(default_factory=dict, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 1e-4  # as `smooth-quant`

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor that is divided in the other graph, from the last to the first."""
        names = Names(graph)
        for tensor in reversed(list(tensors(graph))):
            axis = absorb.channel_axis(tensor)
            shown = None if axis is None else _shown(absorb.reading_edits(tensor, axis), self.weights)
            if shown is None or axis is None:
                continue
            plan = absorb.find_moves(graph, tensor, axis)
            if plan.why:
                plan = absorb.find_moves(graph, tensor, axis, split=True)
            factors = _completed(shown, plan, self.weights)
            why = plan.why or absorb.apply(graph, plan, _tied(plan, factors), names)
            spelled = f"divided by factors from {factors.min():.3g} to {factors.max():.3g}"
            yield Skipped(tensor.name, why) if why else Changed(tensor.name, spelled)


def _tied(plan: absorb.Absorption, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """One factor for channels that need a common one: each shows it with an error of its own."""
    if plan.classes.size != factors.size:
        return factors
    logs = np.bincount(plan.classes, np.log(factors)) / np.maximum(np.bincount(plan.classes), 1)
    return np.exp(logs)[plan.classes].astype(np.float32)


def _shown(edits: Sequence[Edit], weights: Constants) -> Array | None:
    """What the other graph divides a tensor by, float64 [C], NaN where the weights behind it do not tell.

    None where they show no factors.
    """
    pairs = [pair for edit in edits if (pair := _rows(edit, weights)) is not None]
    if not pairs or len({own.shape[0] for own, _ in pairs}) != 1:
        return None
    readings = [_Reading(own, other) for own, other in pairs]
    told = [one for one in readings if one.common > 0]  # of the others at least half is left nothing of
    shape = np.full(pairs[0][0].shape[0], np.nan)
    known = ~np.isnan([one.shape for one in told]).all(0) if told else np.zeros(shape.shape, bool)
    if known.any():
        shape[known] = np.exp(np.nanmedian(np.log([one.shape[known] for one in told]), axis=0))
    if 2 * sum(one.agrees or one.explained(shape) for one in told) < len(readings) or not known.any():
        return None
    return np.asarray(shape * np.exp(np.median(np.log([one.common for one in told]))))


class _Reading:
    """What the weight of one layer shows: a common factor, and how that of each channel differs from it, [C].

    Args:
        own: weight here, a row for each channel.
        other: weight in the other graph.
    """

    def __init__(self, own: Array, other: Array) -> None:
        self._own, self._other = own, other
        ratios = _ratios(own, other)
        self.common = _middle(ratios, own)
        self.shape = np.where(ratios > 0, ratios / self.common, np.nan) if self.common > 0 else ratios

    @property
    def agrees(self) -> bool:
        """Whether one half of the outputs shows the same factors as the other half."""
        width = self._own.shape[1]
        odd = np.arange(width) * _STRETCHES // width % 2 == 1
        if min(odd.sum(), (~odd).sum()) < _SHORTEST:
            return False
        first, second = (_ratios(self._own[:, half], self._other[:, half]) for half in (odd, ~odd))
        both = (first > 0) & (second > 0)
        if both.sum() < _ALIKE_LEAST:
            return False
        weight = np.square(self._own[both]).sum(1)
        x, y = (np.log(one[both]) for one in (first, second))
        x, y = (one - np.average(one, weights=weight) for one in (x, y))
        size = float(np.average(x * x, weights=weight) * np.average(y * y, weights=weight))
        return size > 0 and float(np.average(x * y, weights=weight)) > _ALIKE * size**0.5

    def explained(self, shape: Array) -> bool:
        """Whether the weights of most outputs agree much better with factors of this shape than without."""
        width = self._own.shape[1]
        if width < 2:
            return False
        bent = np.where(np.isnan(shape), 1.0, shape)[:, None] * self._own * self.common
        before = np.square(self._other - self.common * self._own).sum(0)
        after = np.square(self._other - bent).sum(0) * width / (width - 1)  # the factor uses up one value of a channel
        return bool(2 * np.count_nonzero(before > _WORTH * after) > np.count_nonzero(before))


def _completed(shown: Array, plan: absorb.Absorption, weights: Constants) -> NDArray[np.float32]:
    """The factors with those that only the layers before the tensor can tell, float32 [C]."""
    unknown = np.isnan(shown)
    factors = np.where(unknown, np.nanmedian(shown), shown)
    if plan.why:
        return factors.astype(np.float32)
    doubled = {id(node) for node in plan.copies}
    before = [edit for edit in plan.edits if not edit.reads and id(edit.node) not in doubled]
    for edit in before:
        pair = _rows(edit, weights) if is_linear(edit.node) and not _is_bias(edit) else None
        if pair is None or pair[0].shape[0] != shown.size:
            continue
        taken = _taken(*pair)
        known = ~unknown & (taken > 0)
        if known.any():
            level = float(np.exp(np.median(np.log(shown[known] * taken[known]))))
            factors = np.where(unknown & (taken > 0), level / np.where(taken > 0, taken, 1.0), factors)
    return (factors * _level([edit for edit in before if _is_bias(edit)], factors, weights)).astype(np.float32)


def _is_bias(edit: Edit) -> bool:
    return is_op(edit.node, "Add", "Sub") or (is_op(edit.node, "Conv", "ConvTranspose", "Gemm") and edit.input == 2)


def _level(biases: Sequence[Edit], factors: Array, weights: Constants) -> float:
    """By what all factors must be multiplied to be those of the biases; 1 where these do not tell."""
    for edit in biases:
        own, other = values_of(edit.constant), weights.get((edit.node.outputs[0].name, edit.input))
        if other is None or other.shape != own.shape or edit.index.size < 2:
            continue
        index = np.broadcast_to(edit.index, own.shape)
        divided = index >= 0
        own, other = own[divided], other[divided]
        whole = own.astype(np.float64) / factors[index[divided]]
        alive = np.abs(whole) > np.abs(whole).mean()
        ratios = whole[alive] / np.where(other[alive] == 0, np.nan, other[alive])
        level = float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else 1.0
        close = np.abs(ratios / level - 1) < _LIKE if level > 0 else np.zeros(1, bool)
        if close.mean() > 0.5 and abs(np.log(level)) > _LIKE:
            return level
    return 1.0


def _taken(own: Array, other: Array) -> Array:
    """What the outputs of a layer were multiplied by, each a row, where its inputs have factors too; 0 if not known."""
    along = _ratios(own, other)
    for _ in range(_ROUNDS):
        scaled = own * along[:, None]
        energy = np.square(scaled).sum(0)
        across = np.divide((other * scaled).sum(0), energy, out=np.ones_like(energy), where=energy > 0)
        along = _ratios(own * across, other)
    return along


def _middle(ratios: Array, own: Array) -> float:
    """The factor that a layer as a whole shows: the median over its channels by their energy."""
    order = np.argsort(ratios)
    weights = np.cumsum(np.square(own).sum(1)[order])
    return float(ratios[order][np.searchsorted(weights, weights[-1] / 2).clip(max=ratios.size - 1)])


def _rows(edit: Edit, weights: Constants) -> tuple[Array, Array] | None:
    """Own and other weight, a row for each input channel, float64 [C, weights of it]; None where they do not fit."""
    own, other, index = values_of(edit.constant), weights.get((edit.node.outputs[0].name, edit.input)), edit.index
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
    """How often each row of `own` goes into that of `other`, [C]; 0 where it cannot be told."""
    parts = min(_STRETCHES, max(1, own.shape[1] // _SHORTEST))
    starts = np.arange(parts) * own.shape[1] // parts
    both, alone = (np.add.reduceat(own * one, starts, axis=1) for one in (other, own))
    found = np.divide(both, alone, out=np.full_like(both, np.nan), where=alone > 0)
    known = ~np.isnan(found).all(1)
    ratios = np.zeros(own.shape[0])
    ratios[known] = np.nanmedian(found[known], axis=1)
    size = np.square(own).sum(1)
    counts = np.diff(starts, append=own.shape[1])
    spread = np.median(np.add.reduceat(np.square(other - ratios[:, None] * own), starts, axis=1) / counts, axis=1)
    return np.where(np.square(_SURE * ratios) * size > spread, np.maximum(ratios, 0.0), 0.0)
