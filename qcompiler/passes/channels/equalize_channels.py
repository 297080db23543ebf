"""Conv(W₁) → Relu → Conv(W₂)  ⇒  Conv(W₁/s) → Relu → Conv(s·W₂): channels of both layers get one range of weights.

    s_i = sqrt(r1_i · r2_i) / r2_i     r1_i = max |W₁[i]|, r2_i = max |W₂[:, i]|

After Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1, repeated over
all pairs until nothing moves. It needs no data. Depthwise layers profit most: their few weights per channel differ
widely. What may stand between the layers, and what else may read the channels, is for `qcompiler.passes.absorb.absorb`
to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import is_linear, is_op, producer, tensors, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.passes.absorb.edits import Edit
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_SWEEPS = 50
_SETTLED = 1e-3  # of a factor, as logarithm, between sweeps
_WORTH = 1e-2  # below that a pair counts as equal already
_DEAD = 1e-4  # of the largest channel: blowing up what never mattered would ruin the range of the activation
Weights = dict[tuple[int, int], "Array"]


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Equalize the weight ranges of consecutive convolutions, channel by channel."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 1e-5

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor between a convolution and another layer."""
        pairs: list[absorb.Absorption] = []
        for plan, why in _looked_at(graph):
            if not why:
                pairs.append(plan)
            elif any(is_op(node, "Conv", "ConvTranspose") for node, _ in absorb.readers(plan.tensor, plan.axis)):
                yield Skipped(plan.tensor.name, why)
        names = Names(graph)
        for tensor, axis, scale in _factors(pairs):
            # Planned anew: the pairs before it have replaced constants.
            why = absorb.apply(graph, absorb.find_moves(graph, tensor, axis), scale, names)
            yield Skipped(tensor.name, why) if why else Changed(tensor.name, _spell(scale))


def factors(graph: gs.Graph) -> dict[str, NDArray[np.float32]]:
    """What the pass would divide the channels of each tensor by, float32 [C], by name; the graph is not changed."""
    pairs = [plan for plan, why in _looked_at(graph) if not why]
    return {tensor.name: scale for tensor, _, scale in _factors(pairs)}


def _looked_at(graph: gs.Graph) -> Iterator[tuple[absorb.Absorption, str]]:
    """Every tensor that a linear layer reads, with what dividing it would take, and why that is no pair."""
    for tensor in tensors(graph):
        axis = absorb.channel_axis(tensor)
        if axis is None or producer(tensor) is None:
            continue
        plan = absorb.find_moves(graph, tensor, axis)
        yield plan, plan.why or _not_a_pair(plan)


def _not_a_pair(plan: absorb.Absorption) -> str:
    other = [node for node in plan.takers if not is_linear(node) and not is_op(node, "Add", "Sub")]
    if other:
        return f"'{other[0].name}' ({other[0].op}) would take the factors, not the weights of a layer"
    if not any(is_op(node, "Conv", "ConvTranspose") for node in plan.takers):
        return "no convolution makes it"
    return ""


def _factors(pairs: Sequence[absorb.Absorption]) -> list[tuple[gs.Tensor, int, NDArray[np.float32]]]:
    """The factors of each pair that needs some, float32 [C]; sweeps over magnitudes instead of weights."""
    weights = _magnitudes(pairs)
    totals = [np.ones(plan.classes.size) for plan in pairs]
    for _ in range(_SWEEPS):
        moved = 0.0
        for plan, total in zip(pairs, totals, strict=True):
            step = _step(plan, weights)
            moved = max(moved, float(np.abs(np.log(step)).max(initial=0.0)))
            total *= step
            for edit in plan.edits:
                if (key := (id(edit.node), edit.input)) in weights:
                    weights[key] *= step[edit.index] if edit.multiply else 1 / step[edit.index]
        if moved < _SETTLED:
            break
    worth = [float(np.abs(np.log(total)).max(initial=0.0)) >= _WORTH for total in totals]
    found = zip(pairs, totals, worth, strict=True)
    return [(plan.tensor, plan.axis, total.astype(np.float32)) for plan, total, does in found if does]


def _magnitudes(pairs: Sequence[absorb.Absorption]) -> Weights:
    """|W| of every layer, float64, reduced over the axes (kernels) on which no factor depends."""
    edits: dict[tuple[int, int], list[Edit]] = {}
    for edit in (edit for plan in pairs for edit in plan.edits):
        if is_linear(edit.node) and not (edit.input == 2 and is_op(edit.node, "Conv", "ConvTranspose", "Gemm")):
            edits.setdefault((id(edit.node), edit.input), []).append(edit)
    found: Weights = {}
    for key, same in edits.items():
        values = np.abs(values_of(same[0].constant)).astype(np.float64)
        idle = tuple(axis for axis in range(values.ndim) if all(edit.index.shape[axis] == 1 for edit in same))
        found[key] = values.max(axis=idle, keepdims=True)
    return found


def _step(plan: absorb.Absorption, weights: Mapping[tuple[int, int], Array]) -> Array:
    r1, r2 = (_ranges(plan, weights, multiply) for multiply in (False, True))
    alive = (r1 > _DEAD * r1.max(initial=0.0)) & (r2 > _DEAD * r2.max(initial=0.0))
    return np.where(alive, np.sqrt(np.where(alive, r1, 1) / np.where(alive, r2, 1)), 1.0)


def _ranges(plan: absorb.Absorption, weights: Mapping[tuple[int, int], Array], multiply: bool) -> Array:
    """The largest weight of each channel, float64 [C]; channels of a class share it."""
    largest = np.zeros(plan.classes.size)
    for edit in plan.edits:
        held = weights.get((id(edit.node), edit.input))
        if held is None or edit.multiply is not multiply:
            continue
        idle = tuple(axis for axis in range(held.ndim) if edit.index.shape[axis] == 1)
        reduced = held.max(axis=idle, keepdims=True)
        index, reduced = np.broadcast_arrays(edit.index, reduced)
        np.maximum.at(largest, index[index >= 0], reduced[index >= 0])
    shared = np.zeros(largest.size)
    np.maximum.at(shared, plan.classes, largest)
    return np.asarray(shared[plan.classes])


def _spell(scale: NDArray[np.float32]) -> str:
    return f"divided by factors from {scale.min():.3g} to {scale.max():.3g}"
