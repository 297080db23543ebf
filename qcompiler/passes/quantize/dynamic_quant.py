"""x·W  ⇒  s · (Q(x/s)·W₈), s a number for each row of x, found at run time: INT8 with a scale per token.

A static scale has to hold the largest value that any token of any text reaches; here every row (token) brings its own,
s = max|x| / 127, so that no calibration is needed and a token that spikes hurts nobody else. Since s multiplies whole
rows, it factors out of the product. Two forms of the same numbers:

    integer     x → Div(s) → uint8 with zero point 128 → MatMulInteger(W₈) → float → · s → · scales of W₈
    pairs       x → Div(max|x|) → Q/DQ with the static scale 1/127 → MatMul(DQ(W₈)) → · max|x|

ONNX Runtime runs the first form in its INT8 kernels (signed activations would take its slow path, hence 128); TensorRT
knows static scales only and fuses the second. Layers that read one activation share what is left of the product.

Source: per-token quantization, Yao et al. 2022, "ZeroQuant", section 4.1; also Xiao et al. 2023, "SmoothQuant", O1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.ir.edit import add_constant, detach
from qcompiler.ir.graph import constant_value, is_constant, is_op, is_present
from qcompiler.ir.names import Names
from qcompiler.numerics.rounding import INT8_MAX, quantize_weight
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.plan import Plan
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Shape = Sequence[int | str | None] | None


RULE: Final = "dynamic"
MIDDLE: Final = 128  # zero point that makes uint8 of int8
SMALLEST: Final = {"integer": 2.0**-100, "pairs": 2.0**-14}  # a row of zeros needs a scale too, in halves if need be


@dataclass(frozen=True)
class DynamicQuant(Pass):
    """Quantize products with a scale per row that is found at run time.

    Attributes:
        plan: nodes whose decision is INT8 by rule `dynamic`, and the axis of their weight that has a scale per index.
        form: integer (ONNX Runtime) or pairs (TensorRT).
    """

    plan: Plan = field(default_factory=Plan, repr=False)
    form: str = "integer"

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Edits the nodes that the plan names, in graph order."""
        names = Names(graph)
        rows: dict[int, tuple[gs.Tensor, gs.Tensor]] = {}
        written: list[gs.Node] = []
        for node in graph.nodes:
            decision = self.plan.decisions.get(node.name)
            if decision is None or decision.rule != RULE or decision.precision is not DType.INT8:
                written.append(node)
                continue
            why = refusal(node)
            if why:
                written.append(node)
                yield Skipped(node.name, why)
                continue
            new = _Nodes(names)
            x = node.inputs[0]
            if id(x) not in rows:
                rows[id(x)] = _rows(new, x, graph.opset, self.form)
            (_integer if self.form == "integer" else _pairs)(
                new, node, *rows[id(x)], per_channel=self.plan.axes.get(node.name) is not None
            )
            written += new.nodes
            yield Changed(node.name, f"INT8 x INT8, a scale per row at run time ({self.form})")
        graph.nodes[:] = written


def refusal(node: gs.Node) -> str:
    """Why a node cannot have a scale per row; empty where it can."""
    if not is_op(node, "MatMul", "Gemm"):
        return f"{node.op} has no rows that a scale could be taken out of"
    if is_constant(node.inputs[0]) or node.attrs.get("transA", 0) or float(node.attrs.get("alpha", 1.0)) != 1.0:
        return "its rows do not lie on the last axis of an activation"
    if linear.matrix(node) is None:
        return "it has no constant float matrix on its right"
    if is_present(node, 2) and not is_constant(node.inputs[2]) and float(node.attrs.get("beta", 1.0)) != 1.0:
        return "what it adds is computed and has a factor"
    return ""


class _Nodes:
    """New nodes, in order."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.nodes: list[gs.Node] = []

    def add(self, op: str, name: str, inputs: Sequence[gs.Tensor], output: gs.Tensor, **attrs: Any) -> gs.Tensor:
        """A node of that name, which writes `output`."""
        self.nodes.append(gs.Node(op, name, attrs, list(inputs), [output]))
        return output

    def op(
        self, op: str, stem: str, inputs: Sequence[gs.Tensor], shape: Shape, dtype: Any = np.float32, **attrs: Any
    ) -> gs.Tensor:
        """A node with a result of its own, both named after `stem` and the operator."""
        output = gs.Variable(self.names.fresh(f"{stem}/{op}/y"), np.dtype(dtype), shape)
        return self.add(op, self.names.fresh(f"{stem}/{op}"), inputs, output, **attrs)

    def constant(self, name: str, values: Any) -> gs.Constant:
        """An initializer."""
        return add_constant(self.names.fresh(name), np.asarray(values))


def _rows(new: _Nodes, x: gs.Tensor, opset: int, form: str) -> tuple[gs.Tensor, gs.Tensor]:
    """The rounded rows, and what the product of each row has to be multiplied by."""
    stem, shape = x.name, None if x.shape is None else list(x.shape)
    column = None if shape is None else [*shape[:-1], 1]
    magnitude = new.op("Abs", stem, [x], shape)
    if opset < 18:
        size = new.op("ReduceMax", stem, [magnitude], column, axes=[-1], keepdims=1)
    else:
        axes = new.constant(f"{stem}/axes", np.array([-1], np.int64))
        size = new.op("ReduceMax", stem, [magnitude, axes], column, keepdims=1)
    size = new.op("Max", stem, [size, new.constant(f"{stem}/smallest", np.float32(SMALLEST[form]))], column)
    integer = form == "integer"
    if integer:
        size = new.op("Mul", stem, [size, new.constant(f"{stem}/step", np.float32(1 / INT8_MAX))], column)
    divided = new.op("Div", stem, [x, size], shape)
    scale = new.constant(f"{stem}/scale", np.float32(1 if integer else 1 / INT8_MAX))
    zero = new.constant(f"{stem}/zero_point", np.uint8(MIDDLE) if integer else np.int8(0))
    stored = new.op("QuantizeLinear", stem, [divided, scale, zero], shape, np.uint8 if integer else np.int8)
    if integer:
        return stored, size
    return new.op("DequantizeLinear", stem, [stored, scale, zero], shape), size


def _integer(new: _Nodes, node: gs.Node, rows: gs.Tensor, size: gs.Tensor, *, per_channel: bool) -> None:
    """MatMulInteger, with the scales behind it."""
    values, scales = _weight(node, per_channel=per_channel)
    stem, y, bias = node.inputs[1].name, node.outputs[0], _bias(new, node)
    detach(node)
    weight = new.constant(f"{stem}/int8", values)
    middle = new.constant(f"{node.name}/zero_point", np.uint8(MIDDLE))
    total = gs.Variable(new.names.fresh(f"{y.name}/sums"), np.int32, y.shape)
    new.add("MatMulInteger", node.name, [rows, weight, middle], total)
    product = new.op("Cast", node.name, [total], y.shape, to=onnx.TensorProto.FLOAT)
    product = new.op("Mul", node.name, [product, size], y.shape)
    _finish(new, node.name, product, new.constant(f"{stem}/scale", scales), bias, y)


def _pairs(new: _Nodes, node: gs.Node, rows: gs.Tensor, size: gs.Tensor, *, per_channel: bool) -> None:
    """MatMul between pairs with static scales, and the rows' own behind it."""
    values, scales = _weight(node, per_channel=per_channel)
    stem, y, bias = node.inputs[1].name, node.outputs[0], _bias(new, node)
    detach(node)
    stored, scale = new.constant(f"{stem}/int8", values), new.constant(f"{stem}/scale", scales)
    zero = new.constant(f"{stem}/zero_point", np.zeros(scales.shape, np.int8))
    along = {"axis": 1} if per_channel else {}
    weight = new.op("DequantizeLinear", stem, [stored, scale, zero], values.shape, **along)
    product = gs.Variable(new.names.fresh(f"{y.name}/rows"), np.float32, y.shape)
    new.add("MatMul", node.name, [rows, weight], product)
    _finish(new, node.name, product, size, bias, y)


def _finish(
    new: _Nodes, stem: str, product: gs.Tensor, factor: gs.Tensor, bias: gs.Tensor | None, y: gs.Tensor
) -> None:
    if bias is None:
        new.add("Mul", new.names.fresh(f"{stem}/Mul"), [product, factor], y)
        return
    scaled = new.op("Mul", stem, [product, factor], y.shape)
    new.add("Add", new.names.fresh(f"{stem}/Add"), [scaled, bias], y)


def _weight(node: gs.Node, *, per_channel: bool) -> tuple[NDArray[Any], NDArray[np.float32]]:
    matrix = linear.matrix(node)
    if matrix is None:
        raise ValueError(f"'{node.name}' has no constant matrix")
    return quantize_weight(np.ascontiguousarray(matrix), 1 if per_channel else None)


def _bias(new: _Nodes, node: gs.Node) -> gs.Tensor | None:
    """What a Gemm adds, with its factor."""
    if not is_present(node, 2):
        return None
    bias: gs.Tensor = node.inputs[2]
    beta, value = float(node.attrs.get("beta", 1.0)), constant_value(bias)
    return bias if beta == 1.0 or value is None else new.constant(f"{bias.name}/beta", value * np.float32(beta))
