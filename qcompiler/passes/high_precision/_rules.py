"""What cannot run in FP16 or BF16: rules over one node, its constants and the ranges that were observed around it.

Each rule is a function of (node, view) that returns a `Verdict` or None; `RULES` lists them, the first that speaks
wins. A node that no rule speaks of computes in the lower type.

Chosen on measurements and on how the arithmetic works, not on operator lists alone:

* matrix products, convolutions, Softmax, LayerNormalization, GELU, Sigmoid and Tanh run in half: their kernels
  accumulate in FP32 and their outputs are of the size of their inputs;
* sums over many terms that are written out (`ReduceMean`, `ReduceSum`, `CumSum`, ...) stay FP32, because a squared
  activation of 256 already overflows and nothing says what a generated kernel accumulates in;
* pooled averages run in half while the sum that they divide fits: a window of 128 by 128 does not;
* `Exp`, `Log`, `Sqrt`, `Reciprocal` and roots by `Pow` amplify the rounding of their input, so they stay FP32: they are
  computed in registers inside a generated kernel, where FP32 costs nothing. `Pow` by 2 or 3 is a product and is judged
  by its range like one, with the margin squared, because a value that is 8 times larger than any seen has a square
  that is 64 times larger;
* integers that are held as floats (positions, counts, ids) stay FP32 where they are beyond what the type counts to;
* 65504 must hold the observed |x| eight times over: calibration data is a sample. A constant is exactly known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import FP32
from qcompiler.ir.operators import ACCUMULATES, AMPLIFIES, COORDINATES, PICKS, RECURRENT, SATURATES
from qcompiler.passes.high_precision._view import CHUNK, LOST, MARGIN, Loss, TypingView, Verdict
from qcompiler.target import DType

_WHOLE = frozenset({"Range", "Floor", "Ceil", "Round"})  # results are integers
_KEEPS_WHOLE = frozenset({"CumSum", "Add", "Sub", "Neg", "Abs", "ReduceSum", "ReduceMax", "ReduceMin", "Max", "Min"})
_POOLS = frozenset({"GlobalAveragePool", "AveragePool"})
_MOST_TERMS = 2048  # a running sum of so many equal terms is 2^11 times each of them: the next one is lost in FP16
_DIVISOR = {"Div": 1, "Mod": 1, "Sqrt": 0, "Log": 0, "Reciprocal": 0}
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2}


Rule = Callable[[gs.Node, TypingView], Verdict | None]


# --- Rules ------------------------------------------------------------------------------------------------------------


def subgraph(node: gs.Node, view: TypingView) -> Verdict | None:
    """If, Loop and Scan, recurrent layers, operators that ONNX does not define."""
    if graphs.subgraphs(node):
        return Verdict("control-flow", f"{node.op} hands values on to and from its nested graphs in FP32")
    owner = view.homes[id(node)]
    if owner is not view.graph and id(owner) not in view.typed_bodies:
        return Verdict("control-flow", "it stands in a nested graph that is not of If, Loop or Scan")
    if graphs.is_op(node, *RECURRENT):
        return Verdict("recurrent", f"the state of {node.op} accumulates rounding from step to step")
    if not graphs.is_standard(node):
        return Verdict("custom", f"{node.op} of domain '{node.domain}' is not ONNX's own: its types are not known")
    return None


def schema(node: gs.Node, view: TypingView) -> Verdict | None:
    """The operator has no form in this type, or its neighbours' types are not known."""
    unknown = next((t for t in (*node.inputs, *node.outputs) if t.name and id(t) not in view.types), None)
    if unknown is not None:
        return Verdict("untyped", f"the type of '{unknown.name}' is not known")
    obstacle = view.slots(node).obstacle
    return Verdict("no-kernel", obstacle) if obstacle else None


def accumulate(node: gs.Node, view: TypingView) -> Verdict | None:
    """Arithmetic that is harmful in half when written out by hand."""
    if graphs.is_op(node, *ACCUMULATES):
        return Verdict("accumulate", f"{node.op} adds up many terms; in {view.dtype} the sum loses digits or overflows")
    if graphs.is_op(node, "Einsum") and len(node.inputs) == 1:
        return Verdict("accumulate", f"{node.op} of one operand adds up many terms")
    if graphs.is_op(node, *_POOLS):
        return _pooled(node, view)
    if graphs.is_op(node, *AMPLIFIES) and not _is_product(node):
        return Verdict("accumulate", f"{node.op} amplifies the rounding of its input; FP32 costs nothing here")
    if graphs.is_op(node, *COORDINATES):
        return Verdict("coordinates", f"{node.op} reads coordinates, which {view.dtype} rounds to whole pixels")
    return None


def _pooled(node: gs.Node, view: TypingView) -> Verdict | None:
    """An average whose sum does not fit, or has so many terms that the last ones are lost."""
    seen = view.range(node.inputs[0])
    if seen is None:
        return None
    window = node.attrs.get("kernel_shape", (graphs.shape_of(node.inputs[0]) or ())[2:])
    known = bool(window) and all(isinstance(size, int) for size in window)
    terms = math.prod(window) if known else _MOST_TERMS
    total = terms * seen.absmax
    if terms <= _MOST_TERMS and (total <= view.format.largest or view.dtype is not DType.FP16):
        return None
    return Verdict(
        "accumulate",
        f"{node.op} adds up {'' if known else 'perhaps '}{terms} values of up to {seen.absmax:.4g} before it divides",
        {"terms": float(terms), "absmax": seen.absmax},
    )


def _is_product(node: gs.Node) -> bool:
    exponent = graphs.constant_value(node.inputs[1]) if node.op == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in (1.0, 2.0, 3.0)


def constant_range(node: gs.Node, view: TypingView) -> Verdict | None:
    """A constant is larger than the type holds. Bounds of Clip, Min and Max saturate instead: no value is beyond."""
    for i, constant in _constants(node, view):
        largest = view.loss(constant).largest
        if graphs.is_op(node, *SATURATES):
            view.clamps[id(node), i] = (-view.format.largest, view.format.largest)
        elif (id(node), i) not in view.clamps and largest > view.format.largest:
            return Verdict(
                f"{view.dtype}-range",
                f"its constant '{constant.name}' reaches {largest:.4g}, {view.dtype} ends at {view.format.largest:.6g}",
                {"largest": largest},
            )
    return None


def constant_small(node: gs.Node, view: TypingView) -> Verdict | None:
    """A constant loses its useful values below 2^-14: an epsilon becomes 0, a tiny factor a step function."""
    if view.dtype is not DType.FP16:
        return None
    for i, constant in _constants(node, view):
        loss = view.loss(constant)
        if loss.relative <= LOST or _drowned(node, i, constant, loss, view):
            continue
        return Verdict(
            "fp16-small",
            f"its constant '{constant.name}' (largest {loss.largest:.3g}) loses {loss.relative:.1%} below FP16's 2^-14",
            {"largest": loss.largest, "relative": loss.relative},
        )
    return None


def _drowned(node: gs.Node, index: int, constant: gs.Constant, loss: Loss, view: TypingView) -> bool:
    """Whether what a bias loses is far below what it is added to; never of a scalar, which may guard a division."""
    added = _BIAS.get(node.op) == index or (node.op in ("Add", "Sub") and math.prod(constant.shape) > 1)
    total = view.range(node.outputs[0])
    return added and total is not None and loss.absolute <= LOST * total.absmax


def observed(node: gs.Node, view: TypingView) -> Verdict | None:
    """A value seen at run time is too large with a margin, too small, or was never seen."""
    slots = view.slots(node)
    read = [node.inputs[i] for i in slots.inputs if (id(node), i) not in view.clamps]
    for tensor in read + [node.outputs[i] for i in slots.outputs]:
        if isinstance(tensor, gs.Constant) or not tensor.name:
            continue
        seen = view.range(tensor)
        if seen is None and view.dtype is not DType.FP16:
            continue
        if seen is None:
            return Verdict("unobserved", f"no value of '{tensor.name}' was observed, so nothing says that it fits")
        margin = MARGIN**2 if tensor is node.outputs[0] and _is_power(node) else MARGIN
        if seen.absmax * margin > view.format.largest and view.dtype is DType.FP16:
            return Verdict(
                "fp16-range",
                f"|{tensor.name}| reaches {seen.absmax:.4g}, times a margin of {margin:g} more than FP16's 65504",
                {"absmax": seen.absmax},
            )
        if 0 < seen.absmax < view.format.normal:
            return Verdict(
                f"{view.dtype}-small",
                f"|{tensor.name}| never exceeds {seen.absmax:.3g}, below the smallest normal {view.dtype} number",
                {"absmax": seen.absmax},
            )
    return None


def _is_power(node: gs.Node) -> bool:
    """Whether a node multiplies a value with itself."""
    return node.op == "Pow" or (node.op == "Mul" and node.inputs[0] is node.inputs[1])


def divisor(node: gs.Node, view: TypingView) -> Verdict | None:
    """What is divided by, or rooted, comes close to 0: half has few digits there. Speaks of its producer as well."""
    near = [node] + [reader for tensor in node.outputs for reader, _ in graphs.consumers(tensor)]
    for reader in near:
        index = _DIVISOR.get(reader.op) if graphs.is_standard(reader) else None
        if index is None or index >= len(reader.inputs) or isinstance(reader.inputs[index], gs.Constant):
            continue
        tensor = reader.inputs[index]
        if reader is not node and graphs.producer(tensor) is not node:
            continue
        seen = view.range(tensor)
        if seen is not None and view.types.get(id(tensor)) == FP32 and 0 < seen.nearest_zero < view.format.normal:
            return Verdict(
                f"{view.dtype}-small",
                f"'{tensor.name}' comes as close to 0 as {seen.nearest_zero:.3g} and '{reader.name}' ({reader.op}) "
                "divides by it",
                {"nearest_zero": seen.nearest_zero},
            )
    return None


def integers(node: gs.Node, view: TypingView) -> Verdict | None:
    """Reads integers that are too large to be exact, or computes what is going to be an integer."""
    floats = [tensor for tensor in (*node.inputs, *node.outputs) if view.types.get(id(tensor)) == FP32]
    for tensor in floats:
        seen = view.range(tensor)
        if seen is None or seen.absmax <= view.format.exact or graphs.constant_value(tensor) is not None:
            continue
        if is_whole(tensor) or _becomes_integer(tensor):
            return Verdict(
                "integers",
                f"'{tensor.name}' counts to {seen.absmax:.6g}; {view.dtype} is exact to {view.format.exact}",
                {"absmax": seen.absmax},
            )
    return None


def is_whole(tensor: gs.Tensor, depth: int = 8) -> bool:
    """Whether a float tensor is known to hold integers: positions, counts, ids, and sums of them."""
    value = graphs.constant_value(tensor)
    if value is not None:
        return value.dtype.kind == "f" and 0 < value.size <= CHUNK and bool(np.all(value == np.rint(value)))
    node = graphs.producer(tensor)
    if node is None or not graphs.is_standard(node) or not depth:
        return False
    if graphs.is_op(node, "Cast") and not graphs.is_float(node.inputs[0]):
        return True
    if node.op == "Range":
        return all(is_whole(one, depth - 1) for one in node.inputs)
    if node.op in _WHOLE:
        return True
    first = node.inputs[:1] if node.op in (*PICKS, "CumSum", "ReduceSum", "ReduceMax", "ReduceMin") else node.inputs
    return node.op in (*PICKS, *_KEEPS_WHOLE) and all(is_whole(one, depth - 1) for one in first)


def _becomes_integer(tensor: gs.Tensor) -> bool:
    """Whether a Cast makes an integer of it, at once or behind a rounding."""
    for reader, _ in graphs.consumers(tensor):
        if graphs.is_op(reader, "Floor", "Ceil", "Round") and _becomes_integer(reader.outputs[0]):
            return True
        to = graphs.np_dtype(reader.attrs.get("to")) if graphs.is_op(reader, "Cast") else None
        if to is not None and to.kind in "iu":
            return True
    return False


def compared(node: gs.Node, view: TypingView) -> Verdict | None:
    """Equality with a number that the type does not have: what was different may become equal."""
    if not graphs.is_op(node, "Equal"):
        return None
    for _, constant in _constants(node, view):
        if view.loss(constant).absolute > 0:
            return Verdict("compare", f"it compares with '{constant.name}', which {view.dtype} cannot hold exactly")
    return None


RULES: tuple[Rule, ...] = (
    subgraph,
    schema,
    accumulate,
    constant_range,
    constant_small,
    observed,
    divisor,
    integers,
    compared,
)


def judge(node: gs.Node, view: TypingView) -> Verdict | None:
    """The verdict of the first rule that speaks; None where the node can compute in the lower type."""
    return next((verdict for rule in RULES if (verdict := rule(node, view)) is not None), None)


def _constants(node: gs.Node, view: TypingView) -> Iterator[tuple[int, gs.Constant]]:
    return ((i, node.inputs[i]) for i in view.slots(node).inputs if isinstance(node.inputs[i], gs.Constant))
