"""x(fp16) → Conv(fp16 W) → Cast fp32 → y  ⇒  x → Conv(W) → y, all of it FP32: what is known of float models holds then.

FP16 and BF16 are widened exactly, numbers and arithmetic: weights, constants, inputs and outputs, the types that nodes
state, nested graphs and functions. A Cast between float types goes away, also one that was there to round: what is
computed afterwards in which type is decided with the ranges of the data. Doubles are rounded to FP32 in parts that
multiply (`_doubles.py`), and stay elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, TypeProto
from onnx_graphsurgeon.ir.tensor import SparseValues

from qcompiler.errors import ModelError
from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.gs_classes import Constant, SparseInitializer
from qcompiler.ir.operators import FINITE
from qcompiler.passes.base import Changed, Note, Pass
from qcompiler.passes.types import _doubles as doubles
from qcompiler.passes.types import _values as numbers
from qcompiler.passes.types._values import FP32, FP64, HALVES, OTHERS

# Attributes whose number is an element type
STATED = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision", "score_type"}
)
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_SEES_BITS = ("BitCast",)
_HAVE_NOT = frozenset({"complex64", "complex128"})


@dataclass(frozen=True)
class WidenFloats(Pass):
    """Make FP32 of FP16, BF16, and of double where it multiplies.

    Inputs and outputs become FP32, too, under their names. Whoever runs this remembers their types.
    """

    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note for each tensor and node that changes its type, and for each Cast that is gone.

        Raises:
            ModelError: a weight in double is beyond float32's range; an input or output has a type that nothing here
                computes in, or a node reads the bits of a float; names it.
        """
        _refuse_types(graph)
        types = element_types.infer_all(graph)
        wide = {key for key, dtype in types.items() if dtype in HALVES} | doubles.narrowed(graph, types)
        yield from _Widening(graph, types, wide).apply()


@dataclass
class _Widening:
    """One run.

    Attributes:
        graph: edited in place.
        types: of its tensors as they were, by id.
        wide: ids of the tensors that become FP32.
    """

    graph: gs.Graph
    types: element_types.Types
    wide: set[int]
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # old and new values, by id of the old

    def apply(self) -> Iterator[Note]:
        for inner in graphs.graphs(self.graph):
            for node in inner.nodes:
                yield from self._node(node)
            for tensor in graphs.tensors(inner):
                yield from self._tensor(tensor)
        for function in self.graph.functions:
            yield from _function(function)
        for inner in list(graphs.graphs(self.graph)):
            yield from self._drop_casts(inner)

    def _tensor(self, tensor: gs.Tensor) -> Iterator[Note]:
        if isinstance(tensor, gs.Constant):
            if id(tensor) not in self.wide or graphs.dtype_of(tensor) == FP32:
                return
            before = graphs.dtype_of(tensor)
            tensor._values = self._converted(tensor._values, tensor)
            yield Changed(tensor.name, f"constant widened from {before} to float32")
            return
        carried: onnx.ValueInfoProto | None = vars(tensor).get("carried")
        if carried is not None and _mentions(carried.type):
            tensor.carried = _rewritten_info(carried)
            yield Changed(tensor.name, "its elements are float32")
        before = graphs.dtype_of(tensor)
        if id(tensor) in self.wide and before in OTHERS:
            tensor.dtype = FP32
            yield Changed(tensor.name, f"float32, was {before}")

    def _converted(self, held: Any, tensor: gs.Constant) -> Any:
        """The values as float32; constants that share an array share what becomes of it."""
        if id(held) not in self._made:
            self._made[id(held)] = (held, self._new(held, tensor))
        return self._made[id(held)][1]

    def _new(self, held: Any, tensor: gs.Constant) -> Any:
        if isinstance(held, SparseValues):
            return _sparse(held)
        values = graphs.values_of(tensor)
        outside = numbers.beyond(values) if values.size > 1 else 0
        reader = next((node for node in tensor.outputs if node.op in FINITE), None)
        if outside and reader is not None:
            raise ModelError(
                f"weight '{tensor.name}' of node '{reader.name}' ({reader.op}) is double, and {outside} of its "
                f"{values.size} values are beyond float32, which ends at 3.4e38: engines compute in FP32 at most. "
                "Scale the weights of this layer down."
            )
        return numbers.held_wide(values)

    def _node(self, node: gs.Node) -> Iterator[Note]:
        becomes = any(id(tensor) in self.wide for tensor in node.outputs)
        if graphs.is_op(node, *_SEES_BITS) and (becomes or any(id(tensor) in self.wide for tensor in node.inputs)):
            raise ModelError(
                f"node '{node.name}' ({node.op}) reads or writes the bits of a float that is not float32, which has "
                "other bits here. Export the model in float32."
            )
        for name, value in list(node.attrs.items()):
            new = self._attribute(name, value, becomes)
            if new is not value:
                node.attrs[name] = new
                yield Changed(node.name, f"{node.op} states float32 in '{name}'")

    def _attribute(self, name: str, value: Any, becomes: bool) -> Any:
        if isinstance(value, gs.Constant):
            dtype = graphs.dtype_of(value)
            if dtype in HALVES or (dtype == FP64 and becomes):
                return Constant(value.name, self._converted(value._values, value))
        if isinstance(value, int) and name in STATED:
            return TensorProto.FLOAT if value in _HALVES or (value == TensorProto.DOUBLE and becomes) else value
        if isinstance(value, AttributeProto) and value.type == AttributeProto.TYPE_PROTO and _mentions(value.tp):
            after = AttributeProto()
            after.CopyFrom(value)
            _rewrite_type(after.tp)
            return after
        return value

    def _is_fp32(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self.wide or self.types.get(id(tensor)) == FP32

    def _drop_casts(self, graph: gs.Graph) -> Iterator[Note]:
        """Casts from FP32 to FP32 that were none before, so that a weight stands at the layer that reads it."""
        gone: list[gs.Node] = []
        for node in [one for one in graph.nodes if self._idle(one)]:  # before any of them reads something else
            source, out = node.inputs[0], node.outputs[0]
            if edit.why_not_replace(graph, out, source):
                continue
            edit.replace_uses(graph, out, source)
            gone.append(node)
            yield Changed(node.name, f"{node.op} removed: '{source.name}' is float32")
        edit.remove_nodes(graph, gone)

    def _idle(self, node: gs.Node) -> bool:
        if not graphs.is_op(node, "Cast", "CastLike"):
            return False
        ends = (node.inputs[0], node.outputs[0])
        return any(id(one) in self.wide for one in ends) and all(self._is_fp32(one) for one in ends)


def _sparse(held: SparseValues) -> SparseInitializer:
    proto = onnx.SparseTensorProto()
    proto.CopyFrom(held.tensor)
    values = numbers.widened(onnx.numpy_helper.to_array(proto.values))
    proto.values.CopyFrom(onnx.numpy_helper.from_array(values, proto.values.name))
    return SparseInitializer(proto)


# --- What is known as protobuf only -----------------------------------------------------------------------------------


def _mentions(kind: TypeProto) -> bool:
    """Whether a type is, or holds, a 16-bit float."""
    return _element(kind) in _HALVES


def _element(kind: TypeProto) -> int:
    inner = _leaf(kind)
    return 0 if inner is None else int(inner.elem_type)


def _leaf(kind: TypeProto) -> Any:
    """The tensor type in sequences and optionals; None for other types."""
    what = kind.WhichOneof("value")
    if what in ("tensor_type", "sparse_tensor_type"):
        return getattr(kind, what)
    return _leaf(getattr(kind, what).elem_type) if what in ("sequence_type", "optional_type") else None


def _rewrite_type(kind: TypeProto) -> None:
    if _mentions(kind):
        _leaf(kind).elem_type = TensorProto.FLOAT


def _rewritten_info(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    after = onnx.ValueInfoProto()
    after.CopyFrom(info)
    _rewrite_type(after.type)
    return after


def _function(function: gs.Function) -> Iterator[Note]:
    """The body of a function that stayed a call: 16-bit floats in it become FP32."""
    carried: onnx.FunctionProto | None = vars(function).get("carried")
    if carried is None:
        return
    after = onnx.FunctionProto()
    after.CopyFrom(carried)
    for info in after.value_info:
        _rewrite_type(info.type)
    _rewrite_nodes(after.node)
    for default in after.attribute_proto:
        _rewrite_attribute(default)
    if after != carried:
        function.carried = after
        yield Changed(function.name, "the body of this function is float32")


def _rewrite_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _rewrite_attribute(attribute)


def _rewrite_attribute(attribute: AttributeProto) -> None:
    if attribute.name in STATED and attribute.i in _HALVES:
        attribute.i = TensorProto.FLOAT
    if attribute.t.data_type in _HALVES:
        values = numbers.widened(onnx.numpy_helper.to_array(attribute.t))
        attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
    if attribute.HasField("tp"):
        _rewrite_type(attribute.tp)
    if not attribute.HasField("g"):
        return
    for info in (*attribute.g.input, *attribute.g.output, *attribute.g.value_info):
        _rewrite_type(info.type)
    for tensor in attribute.g.initializer:
        if tensor.data_type in _HALVES:
            values = numbers.widened(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    _rewrite_nodes(attribute.g.node)


def _refuse_types(graph: gs.Graph) -> None:
    """Numbers that no stage can feed, compare or compute with."""
    for tensor in (*graph.inputs, *graph.outputs):
        dtype = graphs.dtype_of(tensor)
        if dtype is None or not dtype.name.startswith(("float8", "float4", "float6_", "complex")):
            continue
        kind = "output" if graphs.is_output(graph, tensor) else "input"
        raise ModelError(
            f"{kind} '{tensor.name}' of the model is {dtype.name}, which no engine gives or takes here: export the "
            "model with float32 there (FP8 and FP4 belong between QuantizeLinear and DequantizeLinear)."
        )
    for node in graphs.walk(graph):
        for tensor in (*node.inputs, *node.outputs):
            dtype = graphs.dtype_of(tensor)
            if dtype is not None and dtype.name in _HAVE_NOT:
                raise ModelError(
                    f"node '{node.name}' ({node.op}) computes with '{tensor.name}', which is {dtype.name}: complex "
                    "numbers are computed by no engine. Export the model with real and imaginary parts in float32."
                )
