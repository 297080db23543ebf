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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import bodies, element_types
from qcompiler import graph as graphs
from qcompiler.element_types import FP32, Slots, Types
from qcompiler.operators import ACCUMULATES, AMPLIFIES, COORDINATES, PICKS, RECURRENT, SATURATES
from qcompiler.ranges import Range, Ranges
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 8.0
LOST = 1e-3  # relative error above which a constant counts as lost; rounding alone costs 3e-4
_CHUNK = 1 << 20

_WHOLE = frozenset({"Range", "Floor", "Ceil", "Round"})  # results are integers
_KEEPS_WHOLE = frozenset({"CumSum", "Add", "Sub", "Neg", "Abs", "ReduceSum", "ReduceMax", "ReduceMin", "Max", "Min"})
_POOLS = frozenset({"GlobalAveragePool", "AveragePool"})
_MOST_TERMS = 2048  # a running sum of so many equal terms is 2^11 times each of them: the next one is lost in FP16
_DIVISOR = {"Div": 1, "Mod": 1, "Sqrt": 0, "Log": 0, "Reciprocal": 0}
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2}


@dataclass(frozen=True, slots=True)
class Format:
    """Largest finite value, smallest normal value, and the integer up to which all integers are exact."""

    largest: float
    normal: float
    exact: int


FORMATS = {DType.FP16: Format(65504.0, 2.0**-14, 2048), DType.BF16: Format(3.3895e38, 2.0**-126, 256)}
NUMPY = {DType.FP16: np.dtype(np.float16), DType.BF16: np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a node stays FP32: the rule's id, a sentence with the figures, and the figures."""

    rule: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class View:
    """What the rules look at.

    Attributes:
        graph: the FP32 graph, Q/DQ pairs possibly in place.
        dtype: FP16 or BF16.
        ranges: as observed.
        types: element types by id(tensor).
        known: ranges that differ from the observed ones by tensor name: logits after their mask has been clamped.
        clamps: bounds that an input is clamped to on its way into half, by (id(node), input index).
        borders: ids of graph inputs and outputs that have the lower type themselves.
        nodes: of the graph and of all nested ones, those of a nested graph behind their owner.
        typed_bodies: ids of the nested graphs of If, Loop and Scan, as far as nothing else is around them.
        homes: the graph that each node stands in, by id(node), over all nested graphs.
    """

    graph: gs.Graph
    dtype: DType
    ranges: Ranges
    types: Types
    known: dict[str, Range] = field(default_factory=dict)
    clamps: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    borders: set[int] = field(default_factory=set)
    homes: dict[int, gs.Graph] = field(init=False)
    nodes: list[gs.Node] = field(init=False)
    typed_bodies: set[int] = field(init=False)
    _outputs: set[int] = field(init=False)
    _losses: dict[int, Loss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Walks the nested graphs once."""
        self.nodes = list(graphs.walk(self.graph))
        self.homes = {id(node): home for node, home in bodies.homes(self.graph)}
        self.typed_bodies = set()
        for node in self.nodes:  # owners come before what they nest
            home = self.homes[id(node)]
            if bodies.is_typed(node) and (home is self.graph or id(home) in self.typed_bodies):
                self.typed_bodies.update(map(id, graphs.subgraphs(node)))
        self._outputs = {id(tensor) for inner in graphs.graphs(self.graph) for tensor in inner.outputs}

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is an output of the graph or of a nested one."""
        return id(tensor) in self._outputs

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads a tensor, once; None where there are more or none, or where it is an output."""
        return None if self.is_output(tensor) else graphs.only_consumer(self.graph, tensor)

    @property
    def format(self) -> Format:
        """The limits of `dtype`."""
        return FORMATS[self.dtype]

    def slots(self, node: gs.Node) -> Slots:
        """What of the node would change type."""
        return element_types.slots(node, self.graph.opset, self.types, self.dtype)

    def range(self, tensor: gs.Tensor) -> Range | None:
        """What is known of the values of a tensor; Q/DQ and operators that only move values are looked through."""
        for _ in range(16):
            if tensor.name in self.known:
                return self.known[tensor.name]
            if tensor.name in self.ranges:
                return self.ranges[tensor.name]
            node = graphs.producer(tensor)
            if node is None or not (graphs.is_op(node, *PICKS, "QuantizeLinear", "DequantizeLinear", "Cast")):
                return None
            source = node.inputs[0]
            if isinstance(source, gs.Constant):
                return _dequantized_range(node) if node.op == "DequantizeLinear" else None
            tensor = source
        return None

    def loss(self, tensor: gs.Constant) -> Loss:
        """What converting a constant to `dtype` costs; computed once."""
        if id(tensor) not in self._losses:
            self._losses[id(tensor)] = loss_of(graphs.values_of(tensor), self.dtype)
        return self._losses[id(tensor)]


Rule = Callable[[gs.Node, View], Verdict | None]


# --- Constants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """Conversion of a constant: its largest finite |x|, largest absolute error and relative error (in the 2-norm).

    Values too large for the type are not counted in the errors; `largest` tells.
    """

    largest: float
    absolute: float
    relative: float


def loss_of(values: NDArray[Any], dtype: DType) -> Loss:
    """Measures the conversion piece by piece, so that no second copy of a large weight is made."""
    flat = values.reshape(-1)
    largest = absolute = squares = errors = 0.0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK].astype(np.float32)
        piece = piece[np.isfinite(piece)]
        if not piece.size:
            continue
        with np.errstate(over="ignore", under="ignore"):
            error = piece - piece.astype(NUMPY[dtype]).astype(np.float32)
        error[~np.isfinite(error)] = 0.0
        largest = max(largest, float(np.max(np.abs(piece))))
        absolute = max(absolute, float(np.max(np.abs(error))))
        squares += float(np.sum(np.square(piece, dtype=np.float64)))
        errors += float(np.sum(np.square(error, dtype=np.float64)))
    return Loss(largest, absolute, math.sqrt(errors / squares) if squares else 0.0)


def _dequantized_range(node: gs.Node) -> Range | None:
    """An upper bound on a dequantized constant: largest integer times largest scale."""
    scale = node.inputs[1]
    if not isinstance(scale, gs.Constant) or not isinstance(node.inputs[0], gs.Constant):
        return None
    stored = graphs.values_of(node.inputs[0])
    if not stored.size:
        return Range(0.0, 0.0)
    bound = max(abs(float(stored.min())), abs(float(stored.max()))) * float(graphs.values_of(scale).max())
    return Range(-bound, bound)


# --- Rules ------------------------------------------------------------------------------------------------------------


def subgraph(node: gs.Node, view: View) -> Verdict | None:
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


def schema(node: gs.Node, view: View) -> Verdict | None:
    """The operator has no form in this type, or its neighbours' types are not known."""
    unknown = next((t for t in (*node.inputs, *node.outputs) if t.name and id(t) not in view.types), None)
    if unknown is not None:
        return Verdict("untyped", f"the type of '{unknown.name}' is not known")
    obstacle = view.slots(node).obstacle
    return Verdict("no-kernel", obstacle) if obstacle else None


def accumulate(node: gs.Node, view: View) -> Verdict | None:
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


def _pooled(node: gs.Node, view: View) -> Verdict | None:
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


def constant_range(node: gs.Node, view: View) -> Verdict | None:
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


def constant_small(node: gs.Node, view: View) -> Verdict | None:
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


def _drowned(node: gs.Node, index: int, constant: gs.Constant, loss: Loss, view: View) -> bool:
    """Whether what a bias loses is far below what it is added to; never of a scalar, which may guard a division."""
    added = _BIAS.get(node.op) == index or (node.op in ("Add", "Sub") and math.prod(constant.shape) > 1)
    total = view.range(node.outputs[0])
    return added and total is not None and loss.absolute <= LOST * total.absmax


def observed(node: gs.Node, view: View) -> Verdict | None:
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


def divisor(node: gs.Node, view: View) -> Verdict | None:
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


def integers(node: gs.Node, view: View) -> Verdict | None:
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
        return value.dtype.kind == "f" and 0 < value.size <= _CHUNK and bool(np.all(value == np.rint(value)))
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


def compared(node: gs.Node, view: View) -> Verdict | None:
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


def judge(node: gs.Node, view: View) -> Verdict | None:
    """The verdict of the first rule that speaks; None where the node can compute in the lower type."""
    return next((verdict for rule in RULES if (verdict := rule(node, view)) is not None), None)


def _constants(node: gs.Node, view: View) -> Iterator[tuple[int, gs.Constant]]:
    return ((i, node.inputs[i]) for i in view.slots(node).inputs if isinstance(node.inputs[i], gs.Constant))
