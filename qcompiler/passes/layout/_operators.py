"""Which operators compute the same in another order of axes, given that what names their axes is reordered too.

| kind        | operators                                                                                     |
|-------------|-----------------------------------------------------------------------------------------------|
| elementwise | Relu, Clip, Cast, …; Add, Mul, PRelu, Where, … of constants, scalars and operands of one rank |
| along axes  | Concat, Split, Softmax, Slice, Pad, Resize, Tile, Gather, TopK, reductions that keep the axes |
| ends        | Shape, Squeeze, reductions that drop axes, a Reshape that moves nothing: they read any order  |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import (
    axes_of,
    constant_value,
    is_constant,
    is_present,
    is_standard,
    shape_of,
)
from qcompiler.ir.operators import REDUCTIONS
from qcompiler.ir.qdq import block_size
from qcompiler.passes.layout._axes import Layout, back

UNARY = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu".split()
)
BROADCASTING = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where "
    "Xor".split()
)
SOFT = ("Softmax", "LogSoftmax", "Hardmax")
AXIS = {**dict.fromkeys(SOFT, -1), "Concat": 0, "Split": 0, "TopK": -1, "Gather": 0}  # with what it is by default
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
PICKERS = ("ArgMax", "ArgMin")
REDUCERS = (*REDUCTIONS, "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", *PICKERS)
SAMPLED = ("Resize", "Upsample")


@dataclass(frozen=True, slots=True)
class Ordered:
    """Indexes of the inputs and outputs of a node that have the order of axes in question."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def parts(node: gs.Node, rank: int) -> Ordered | None:
    """What of a node would be reordered with it; None where it cannot be, or is not known to have this rank."""
    if not is_standard(node) or not node.inputs or not node.outputs:
        return None
    if node.op in BROADCASTING:
        return _broadcasting(node, rank)
    if node.op == "Concat":
        return _broadcasting(node, rank) if _same_ranks(node, rank) else None
    if node.op in ("Split", "TopK"):
        return Ordered((0,), tuple(range(len(node.outputs))))
    rule = _RULES.get(node.op)
    if rule is None or is_constant(node.inputs[0]) or not rule(node, rank):
        return None
    return Ordered((0,), () if ends(node) else (0,))


def ends(node: gs.Node) -> bool:
    """Whether what a node gives has no order of axes of its own."""
    drops = node.op in REDUCERS and not node.attrs.get("keepdims", 1)
    return drops or node.op in ("Shape", "Squeeze", "Reshape", "Flatten")


def fits(node: gs.Node, order: Layout) -> bool:
    """Whether a node of which there are `parts` can read axis `order[i]` as axis i."""
    if node.op in SAMPLED:
        return _sampled_well(node, order)
    if node.op in ("Reshape", "Flatten"):
        return _moves_nothing(node, order)
    if not ends(node) or node.op == "Shape":
        return True
    gone = axes_of(node) if node.op not in PICKERS else (int(node.attrs.get("axis", 0)),)
    gone = tuple(axis % len(order) for axis in gone or range(len(order)))
    left = [axis for axis in order if axis not in gone]
    return left == sorted(left)


def _broadcasting(node: gs.Node, rank: int) -> Ordered | None:
    moving = []
    for index, tensor in enumerate(node.inputs):
        shape = shape_of(tensor)
        if is_constant(tensor) and shape is not None and len(shape) <= rank:
            continue
        if shape is None or len(shape) not in (0, rank):
            return None
        if shape:
            moving.append(index)
    return Ordered(tuple(moving), (0,)) if moving else None


def _same_ranks(node: gs.Node, rank: int) -> bool:
    return all(len(shape_of(tensor) or ()) == rank for tensor in node.inputs)


def _moves_nothing(node: gs.Node, order: Layout) -> bool:
    """Whether elements lie in the same order in memory, and what names axes of the input names the same ones."""
    shape = shape_of(node.inputs[0]) or ()
    long = [axis for axis in order if axis >= len(shape) or shape[axis] != 1]
    if long != sorted(long) or order[0] != 0:
        return False
    if node.op == "Flatten":
        return int(node.attrs.get("axis", 1)) in (0, 1)
    wanted = constant_value(node.inputs[1])
    copied = (
        [] if wanted is None or node.attrs.get("allowzero", 0) else [i for i, size in enumerate(wanted) if not size]
    )
    return wanted is not None and all(i < len(order) and order[i] == i for i in copied)


def _sampled_well(node: gs.Node, order: Layout) -> bool:
    """ONNX Runtime samples all modes in the last two axes, and between the axes of an image no other but `nearest`."""
    if node.attrs.get("mode", "nearest") in ("nearest", b"nearest"):
        return True
    scales = constant_value(node.inputs[2]) if is_present(node, 2) else None
    if "axes" in node.attrs or scales is None or len(scales) != len(order):
        return order == tuple(range(len(order)))
    moved = [float(scales[axis]) for axis in order]
    return all(scale == 1 for scale in moved[:-2])


def _sampled(node: gs.Node, rank: int) -> bool:
    given = [i for i in (2, 3) if is_present(node, i)]
    cropping = node.attrs.get("coordinate_transformation_mode") in ("tf_crop_and_resize", b"tf_crop_and_resize")
    return node.op == "Resize" and len(given) == 1 and not cropping and rank > 1


def _padded(node: gs.Node, rank: int) -> bool:
    known = constant_value(node.inputs[1]) if is_present(node, 1) else None
    if is_present(node, 3):
        return constant_value(node.inputs[3]) is not None
    return known is not None and len(known) == 2 * rank


def _sliced(node: gs.Node, rank: int) -> bool:
    listed = node.inputs[3] if is_present(node, 3) else node.inputs[1] if len(node.inputs) > 2 else None
    return listed is not None and constant_value(listed) is not None


def _reduced(node: gs.Node, rank: int) -> bool:
    return node.op in PICKERS or not is_present(node, 1) or axes_of(node) is not None


def _quantized(node: gs.Node, rank: int) -> bool:
    return not block_size(node)


def _gathered(node: gs.Node, rank: int) -> bool:
    shape = shape_of(node.inputs[1])
    return shape is not None and len(shape) == 1


def _known(node: gs.Node, rank: int) -> bool:
    return shape_of(node.inputs[0]) is not None and constant_value(node.inputs[-1]) is not None


_Rule = Callable[[gs.Node, int], bool]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(UNARY, lambda node, rank: len(node.outputs) == 1),
    **dict.fromkeys(SOFT, lambda node, rank: True),
    **dict.fromkeys(QUANTIZERS, _quantized),
    **dict.fromkeys(REDUCERS, _reduced),
    **dict.fromkeys(SAMPLED, _sampled),
    "Pad": _padded,
    "Slice": _sliced,
    "Gather": _gathered,
    "Tile": lambda node, rank: constant_value(node.inputs[1]) is not None,
    "Shape": lambda node, rank: not node.attrs.get("start", 0) and node.attrs.get("end") is None,
    "Squeeze": lambda node, rank: bool(axes_of(node)),
    "Reshape": _known,
    "Flatten": lambda node, rank: shape_of(node.inputs[0]) is not None,
}


def moved_axis(axis: Any, order: Layout) -> int:
    """Where an axis, perhaps counted from the end, is when axis i is what `order[i]` was."""
    return back(order)[int(axis) % len(order)]
