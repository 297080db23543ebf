"""Attention masks that overflow FP16: softmax(s + m) = softmax(s + max(m, -30000)).

Exporters write "not allowed" as -3.4e38, -1e9 or -inf and add it to the logits. None of them fits FP16, and keeping
the sum in FP32 would split the fused attention kernel. What the softmax sees is a weight of exp(m) = 0 either way:
exp(x) is 0 in FP32 from -104 down, so -30000 is as good as -1e9 as long as the logits themselves are far smaller. Two
such masks may be added up and still do not reach -65504. In a row whose every element is masked the float model
spreads its attention evenly; so does this one, because at -30000 FP16 cannot tell the logits apart either.

Proven structure only: the sum goes to nothing but a Softmax, on the way to which its values are only moved, and the
mask does not descend from a matrix product. Calibration data without padding shows a mask of zeros, so the constants
that a mask is computed from count as much as what was observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import REARRANGES
from qcompiler.passes.high_precision._view import MARGIN, TypingView
from qcompiler.statistics.ranges import Range

LOWEST = -30000.0
_NEGATIVE = -1000.0  # what an operand must at least reach to be taken for a mask
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum", "Softmax", "Attention")
_FAR = 200  # nodes behind a mask, at most


@dataclass(frozen=True, slots=True)
class Mask:
    """Input `index` of `node` (Add or Where) is a mask; `deep` says whether it has to be clamped to `LOWEST`."""

    node: gs.Node
    index: int
    deep: bool


@dataclass
class _Trail:
    """What was met on the way up from one Softmax: the masks, and the tensors passed."""

    masks: list[Mask] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def find_masks(view: TypingView) -> list[Mask]:
    """The masks in graph order; the ranges of the logits behind them are noted in `view.known`."""
    found: list[Mask] = []
    for node in view.nodes:
        if not graphs.is_op(node, "Softmax"):
            continue
        trail = _Trail()
        scores = _scores(node.inputs[0], view, trail)
        if scores is None or not trail.masks:
            continue
        low = LOWEST * len(trail.masks) - MARGIN * scores.absmax
        if low >= -view.format.largest:
            found += trail.masks
            # Exact bounds already: divided by the margin that the range rule is going to multiply with.
            view.known.update(dict.fromkeys(trail.passed, Range(low / MARGIN, scores.high)))
    return found


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
        lowest = _mask_bottom(node.inputs[index], view)
        if lowest > _NEGATIVE:
            continue
        trail.masks.append(Mask(node, index, lowest < LOWEST))
        trail.passed.append(tensor.name)
        return _scores(node.inputs[other], view, trail)
    return view.range(tensor)


def _mask_bottom(tensor: gs.Tensor, view: TypingView) -> float:
    """The lowest value that a mask has, or is computed from; +inf where the tensor is no mask."""
    seen = _seen(tensor, view)
    if seen is not None and seen.high > -_NEGATIVE:
        return math.inf
    lowest = math.inf if seen is None else seen.low
    waiting, known = [tensor], {id(tensor)}
    while waiting:
        one = waiting.pop()
        node = graphs.producer(one)
        if graphs.is_op(node, *_PRODUCTS) or len(known) > _FAR:
            return math.inf
        if isinstance(one, gs.Constant) and graphs.is_float(one):
            lowest = min(lowest, _bottom(one))
        filled = node.attrs.get("value") if graphs.is_op(node, "ConstantOfShape") and node is not None else None
        if isinstance(filled, gs.Constant):
            lowest = min(lowest, _bottom(filled))
        sources = [] if node is None else [source for source in node.inputs if id(source) not in known]
        known.update(map(id, sources))
        waiting += sources
    return lowest


def _seen(tensor: gs.Tensor, view: TypingView) -> Range | None:
    if not isinstance(tensor, gs.Constant):
        return view.range(tensor)
    values = graphs.values_of(tensor)
    return Range(float(values.min()), float(values.max())) if values.size and values.dtype.kind == "f" else None


def _bottom(constant: gs.Constant) -> float:
    values = graphs.values_of(constant)
    return float(values.min()) if values.size and values.dtype.kind == "f" else math.inf
