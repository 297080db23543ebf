"""Attention masks that overflow FP16: softmax(s + m) = softmax(s + max(m, -30000)).

Exporters write "not allowed" as -3.4e38, -1e9 or -inf and add it to the logits. None of them fits FP16, and keeping
the sum in FP32 would split the fused attention kernel. What the softmax sees is a weight of exp(m) = 0 either way:
exp(x) is 0 in FP32 from -104 down, so -30000 is as good as -1e9 as long as the logits themselves are far smaller. Two
such masks may be added up and still do not reach -65504. In a row whose every element is masked the float model
spreads its attention evenly; so does this one, because at -30000 FP16 cannot tell the logits apart either.

A row that is masked as a whole with -inf gives NaN instead, and many a model tells such rows by that: IsNaN, a
comparison or a Max behind the softmax puts 0 there. Where anything of the kind stands behind it, infinity stays
infinity, which FP16 has. A mask that mixes both kinds of "not allowed" is then left in FP32. Where a softmax is an
output of the model, no mask in front of it is clamped: its logits are what the result is judged by.

Proven structure only: the sum goes to nothing but a Softmax, on the way to which its values are only moved, and the
mask does not descend from a matrix product. Calibration data without padding shows a mask of zeros, so the constants
that a mask is computed from count as much as what was observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import COMPARES, MOVES, REARRANGES, SATURATES
from qcompiler.passes.high_precision._view import MARGIN, TypingView
from qcompiler.statistics.ranges import Range

LOWEST = -30000.0
_NEGATIVE = -1000.0  # what an operand must at least reach to be taken for a mask
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum", "Softmax", "Attention")
_FAR = 200  # nodes behind a mask, at most
# What gives one number for NaN or infinity and another one for a finite value
_GUARDS = frozenset({*COMPARES, *SATURATES, "ReduceMax", "ReduceMin"})


@dataclass(frozen=True, slots=True)
class Mask:
    """Input `index` of `node` (Add or Where) is a mask.

    Attributes:
        node: what puts the mask on the logits.
        index: of its input.
        deep: it has to be clamped to `LOWEST`.
        infinite: its minus infinity stays, for something behind the softmax depends on it.
    """

    node: gs.Node
    index: int
    deep: bool
    infinite: bool = False


@dataclass(frozen=True, slots=True)
class _Bottom:
    """The lowest finite value of a mask, or of what it is computed from, and whether there is minus infinity too."""

    lowest: float = math.inf
    infinite: bool = False

    def __or__(self, other: _Bottom) -> _Bottom:
        return _Bottom(min(self.lowest, other.lowest), self.infinite or other.infinite)

    @property
    def masks(self) -> bool:
        return self.infinite or self.lowest <= _NEGATIVE

    @property
    def mixed(self) -> bool:
        return self.infinite and self.lowest < LOWEST


@dataclass
class _Trail:
    """What was met on the way up from one Softmax: the masks, and the tensors passed."""

    guarded: bool
    masks: list[Mask] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    @property
    def finite(self) -> int:
        """How many of the masks have a finite bottom in half."""
        return sum(not mask.infinite for mask in self.masks)


def find_masks(view: TypingView) -> list[Mask]:
    """The masks in graph order; the ranges of the logits behind them are noted in `view.known`."""
    found: list[Mask] = []
    guarded = _lead_to_guards(view)
    for node in view.nodes:
        if not graphs.is_op(node, "Softmax"):
            continue
        shown = _is_shown(node.outputs[0], view)
        trail = _Trail(shown or id(node) in guarded)
        scores = _scores(node.inputs[0], view, trail)
        if scores is None or not trail.masks or _overflows(trail, view):
            continue
        low = LOWEST * trail.finite - MARGIN * scores.absmax
        clamped = any(mask.deep for mask in trail.masks)
        if low >= -view.format.largest and not (shown and clamped):
            found += trail.masks
            # Exact bounds already: divided by the margin that the range rule is going to multiply with.
            view.known.update(dict.fromkeys(trail.passed, Range(low / MARGIN, scores.high)))
    return found


def _is_shown(tensor: gs.Tensor, view: TypingView) -> bool:
    """Whether a softmax is an output of the model, whose logits people compare: clamped, they would differ."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        one = waiting.pop()
        if view.is_output(one):
            return True
        ahead = [t for node, _ in graphs.consumers(one) if graphs.is_op(node, *MOVES, "Cast") for t in node.outputs]
        waiting += [t for t in ahead if id(t) not in seen]
        seen.update(map(id, ahead))
    return False


def _lead_to_guards(view: TypingView) -> set[int]:
    """Ids of the nodes whose results reach something that tells NaN or infinity from other numbers."""
    waiting = [node for node in view.nodes if graphs.is_op(node, *_GUARDS)]
    found: set[int] = set()
    while waiting:
        node = waiting.pop()
        ends = [output for inner in graphs.subgraphs(node) for output in inner.outputs]
        for tensor in (*node.inputs, *ends):
            before = graphs.producer(tensor)
            if before is not None and id(before) not in found:
                found.add(id(before))
                waiting.append(before)
    return found


def _overflows(trail: _Trail, view: TypingView) -> bool:
    """Whether finite masks add up to the infinity that something behind depends on: clamped they would not."""
    if not trail.guarded or trail.finite < len(trail.masks):
        return False
    return any(name in view.ranges and view.ranges[name].low == -math.inf for name in trail.passed)


def _scores(tensor: gs.Tensor, view: TypingView, trail: _Trail) -> Range | None:
    """The range of the logits without their masks; None where it is not known."""
    node = graphs.producer(tensor)
    alone = node is not None and view.only_consumer(tensor) is not None
    if node is None or not alone or not graphs.is_op(node, "Add", "Where", *REARRANGES):
        return view.range(tensor)
    if graphs.is_op(node, *REARRANGES):
        trail.passed.append(tensor.name)
        return _scores(node.inputs[0], view, trail)
    first = len(node.inputs) - 2
    for index, other in ((first, first + 1), (first + 1, first)):
        bottom = _mask_bottom(node.inputs[index], view)
        if not bottom.masks or (trail.guarded and bottom.mixed):
            continue
        infinite = trail.guarded and bottom.infinite
        deep = not infinite and (bottom.infinite or bottom.lowest < LOWEST)
        trail.masks.append(Mask(node, index, deep, infinite))
        trail.passed.append(tensor.name)
        return _scores(node.inputs[other], view, trail)
    return view.range(tensor)


def _mask_bottom(tensor: gs.Tensor, view: TypingView) -> _Bottom:
    """How low a mask, or what it is computed from, goes; the default where the tensor is no mask."""
    seen = _seen(tensor, view)
    if seen is not None and seen.high > -_NEGATIVE:
        return _Bottom()
    found = _Bottom() if seen is None else _of(seen.low)
    waiting, known = [tensor], {id(tensor)}
    while waiting:
        one = waiting.pop()
        node = graphs.producer(one)
        if graphs.is_op(node, *_PRODUCTS) or len(known) > _FAR:
            return _Bottom()
        if isinstance(one, gs.Constant) and graphs.is_float(one):
            found |= _of_constant(one)
        filled = node.attrs.get("value") if graphs.is_op(node, "ConstantOfShape") and node is not None else None
        if isinstance(filled, gs.Constant):
            found |= _of_constant(filled)
        sources = [] if node is None else [source for source in node.inputs if id(source) not in known]
        known.update(map(id, sources))
        waiting += sources
    return found


def _seen(tensor: gs.Tensor, view: TypingView) -> Range | None:
    if not isinstance(tensor, gs.Constant):
        return view.range(tensor)
    values = graphs.values_of(tensor)
    return Range(float(values.min()), float(values.max())) if values.size and values.dtype.kind == "f" else None


def _of(lowest: float) -> _Bottom:
    return _Bottom(infinite=True) if lowest == -math.inf else _Bottom(lowest)


def _of_constant(constant: gs.Constant) -> _Bottom:
    values = graphs.values_of(constant)
    if not values.size or values.dtype.kind != "f":
        return _Bottom()
    infinite = np.isneginf(values)
    return _Bottom(float(np.min(values, initial=math.inf, where=~infinite)), bool(infinite.any()))
