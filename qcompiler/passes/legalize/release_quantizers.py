"""Quantizers that the target cannot have are dropped, so that what they held can be quantized again its way.

    Q(x, zero point 37) → DQ                 ⇒  Clip(x, what the integers could hold)
    DQ(w₈, zero point 5), does not fit INT8  ⇒  float weight
    DynamicQuantizeLinear, MatMulInteger     ⇒  float MatMul, the weight stays INT8

For `compile` with data only: the numbers change, on purpose and mostly for the better, and the tensors get ranges of
ours. A saturating quantizer may be all that is left of an activation: ONNX Runtime drops a Relu or Clip in front of
an asymmetric quantizer, because the integers end where the activation did. That bound has to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import (
    FP8,
    INT4,
    INT8,
    Region,
    block_size,
    dequantized,
    dequantizer,
    integer_of,
    is_dq,
    is_q,
    is_weight,
    pairs,
    readers,
    region,
    scale_of,
    stored_type,
    zero_point_of,
)
from qcompiler.passes.base import Changed, Fact, Note, Pass, Released
from qcompiler.passes.legalize import _release_dynamic as release_dynamic
from qcompiler.passes.legalize._refuse_quantized import wrong_axis
from qcompiler.passes.legalize._release_dynamic import become_identity
from qcompiler.passes.legalize.legalize import repaired
from qcompiler.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FLOATS = (FP8, np.dtype(ml_dtypes.float8_e5m2), np.dtype(ml_dtypes.float4_e2m1fn))
_COMPUTES = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization")  # a Clip behind these is often dropped
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus")
_KEEPS_SIGN = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze",
    "Unsqueeze", "Slice", "Gather", "Identity",
)  # fmt: skip


@dataclass(frozen=True)
class ReleaseQuantizers(Pass):
    """Drop quantizers that the target cannot have; their tensors are quantized again.

    Attributes:
        target: what it cannot have.
    """

    target: Target = field(default_factory=lambda: Target("tensorrt-rtx"))

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per quantizer, and a Released one per tensor; ONNX Runtime can have all of them."""
        if self.target.engine == "onnxruntime":
            return
        released: set[str] = set()
        for one in list(graphs.graphs(graph)):
            for note in self._notes(one, released):
                if isinstance(note, Released):
                    released.add(note.node)
                yield note
            edit.sort(one)

    def _notes(self, graph: gs.Graph, released: Container[str]) -> Iterator[Note]:
        """The rules over one graph, in order; `released` grows with the notes that they yield."""
        for rule in (release_dynamic.integer_products, release_dynamic.float_inputs, release_dynamic.dynamic_pairs):
            yield from rule(graph)
        yield from repaired(graph, self.target)  # of the weights that were behind them
        yield from _activations(graph)
        yield from _lonely(graph, released)
        yield from _meeting_blocks(graph)
        yield from _weights(graph)


# --- Activations ------------------------------------------------------------------------------------------------------


def _activations(graph: gs.Graph) -> Iterator[Note]:
    if next(pairs(graph), None) is None:
        return
    names = Names(graph)
    types = element_types.infer(graph)
    seen: set[int] = set()
    for node in pairs(graph):
        if not is_q(node) or is_weight(node) or id(integer_of(node)) in seen:
            continue
        found = region(graph, integer_of(node), stored_type(node))
        seen.update(map(id, found.tensors if found else [integer_of(node)]))
        why = next((text for end in found.ends if (text := _why(end))), "") if found else ""
        if not why or found is None:
            continue
        yield from _release(graph, names, found, types, why)


def _why(node: gs.Node) -> str:
    """Why no engine can have this Q or DQ of an activation; empty where it can, or where only a refusal helps."""
    dtype, scale, zero = stored_type(node), scale_of(node), zero_point_of(node)
    if dtype in _FLOATS:
        return ""
    if scale is None or (graphs.is_present(node, 2) and zero is None):
        return "its scale is found at run time"
    if not np.all(np.isfinite(scale) & (scale > 0)):
        return ""
    if dtype not in (INT8, INT4) or (dtype == INT4 and not is_weight(node)):
        return f"it is {dtype.name} with zero point {_first(zero)}"
    if zero is not None and np.any(zero.astype(np.int32)):
        return f"its zero point is {_first(zero)}"
    return f"it has {scale.size} scales" if scale.size > 1 else ""


def _first(zero: NDArray[Any] | None) -> int:
    return 0 if zero is None else int(zero.astype(np.int32).reshape(-1)[0])


def _release(graph: gs.Graph, names: Names, found: Region, types: element_types.Types, why: str) -> Iterator[Note]:
    inner = next((types.get(id(end.inputs[0])) for end in found.ends if is_q(end)), None) or element_types.FP32
    back = next((end for end in found.ends if is_dq(end)), None)
    for tensor in found.tensors:
        if not isinstance(tensor, gs.Constant):
            tensor.dtype = inner
        elif back is not None:
            _float_constant(names, tensor, back)
    for end in sorted(found.ends, key=is_dq):
        if is_dq(end):
            outer = types.get(id(end.outputs[0])) or inner
            become_identity(end)
            if outer != inner:
                end.op, end.attrs["to"] = "Cast", graphs.onnx_type(outer)
            yield Released(end.outputs[0].name, why)
            continue
        bounds = _bounds(end)
        become_identity(end)
        if bounds is not None:
            _clip(names, end, bounds, inner)
        kept = "" if bounds is None else f"; what it held, {bounds[0]:.4g} to {bounds[1]:.4g}, is kept as a bound"
        yield Changed(end.name, f"pair dropped because {why}{kept}")
        yield Released(end.inputs[0].name, why)
        yield Released(end.outputs[0].name, why)


def _float_constant(names: Names, tensor: gs.Constant, like: gs.Node) -> None:
    node = gs.Node("DequantizeLinear", "like", dict(like.attrs), [tensor, *like.inputs[1:]])
    copy = gs.Constant(names.fresh(f"{tensor.name}/float"), dequantized(node, element_types.FP32))
    edit.detach(node)
    for reader, index in graphs.consumers(tensor):
        edit.set_input(reader, index, copy)


def _bounds(node: gs.Node) -> tuple[float, float] | None:
    """What the integers of a Q can hold, where that may have taken the place of a Relu or Clip; else None."""
    dtype, scale, zero = stored_type(node), scale_of(node), zero_point_of(node)
    if scale is None or scale.size != 1 or dtype.kind not in "iu":
        return None
    limits, offset, step = np.iinfo(dtype), _first(zero), float(scale.reshape(-1)[0])
    low, high = (limits.min - offset) * step, (limits.max - offset) * step
    if low == 0:
        return None if _never_negative(node.inputs[0]) else (0.0, high)
    return (low, high) if graphs.is_op(graphs.producer(node.inputs[0]), *_COMPUTES) else None


def _never_negative(tensor: gs.Tensor) -> bool:
    node = graphs.producer(tensor)
    while graphs.is_op(node, *_KEEPS_SIGN) and node is not None:
        node = graphs.producer(node.inputs[0])
    if graphs.is_op(node, "Clip") and node is not None:
        low = graphs.constant_value(node.inputs[1]) if graphs.is_present(node, 1) else None
        return low is not None and float(low) >= 0
    return graphs.is_op(node, *_NEVER_NEGATIVE)


def _clip(names: Names, node: gs.Node, bounds: tuple[float, float], dtype: np.dtype[Any]) -> None:
    node.op = "Clip"
    for value, kind in zip(bounds, ("low", "high"), strict=True):
        node.inputs.append(gs.Constant(names.fresh(f"{node.name}/{kind}"), np.array(value).astype(dtype)))


def _lonely(graph: gs.Graph, released: Container[str]) -> Iterator[Note]:
    """A product of two activations, of which one lost its pair, reads the other one in float too.

    With one operand quantized it runs in float all the same, but outside of the attention kernel that it belongs to.
    """
    for node in graph.nodes:
        if not graphs.is_op(node, "MatMul") or any(map(is_weight, filter(is_dq, map(dequantizer, node.inputs)))):
            continue
        for index in (0, 1):
            pair = graphs.producer(node.inputs[index])
            before = graphs.producer(pair.inputs[0]) if is_dq(pair) and pair is not None else None
            other = node.inputs[1 - index]
            if before is None or not is_q(before) or other.name not in released:
                continue
            edit.set_input(node, index, before.inputs[0])
            yield Changed(node.name, f"reads '{before.inputs[0].name}' in float, as it does its other operand")


def _meeting_blocks(graph: gs.Graph) -> Iterator[Note]:
    """An activation that meets a weight in blocks stays float there: together they are compiled into wrong results."""
    for node in pairs(graph):
        if not is_dq(node) or not block_size(node):
            continue
        for reader, index, _ in list(readers(node.outputs[0])):
            if not graphs.is_linear(reader) or index > 1:
                continue
            pair = graphs.producer(reader.inputs[1 - index])
            before = graphs.producer(pair.inputs[0]) if is_dq(pair) and pair is not None else None
            if before is None or not is_q(before):
                continue
            source = before.inputs[0]
            edit.set_input(reader, 1 - index, source)
            yield Changed(reader.name, "reads its activation in float, because its weight has blocked scales")
            yield Released(source.name, f"the weight of '{reader.name}' has blocked scales")


# --- Weights ----------------------------------------------------------------------------------------------------------


def _weights(graph: gs.Graph) -> Iterator[Note]:
    if next(pairs(graph), None) is None:
        return
    names = Names(graph)
    for node in pairs(graph):
        why = _why_not_weight(node) if is_dq(node) and graphs.constant_value(node.inputs[0]) is not None else ""
        if not why or graphs.is_output(graph, node.outputs[0]):
            continue
        out = node.outputs[0]
        values = dequantized(node, graphs.dtype_of(out) or element_types.FP32)
        copy = gs.Constant(names.fresh(f"{node.inputs[0].name}/float"), values)
        for reader, index in graphs.consumers(out):
            edit.set_input(reader, index, copy)
        edit.remove_node(graph, node)
        yield Changed(node.name, f"constant became its float values because {why}; where it pays it is stored anew")


def _why_not_weight(node: gs.Node) -> str:
    dtype, scale = stored_type(node), scale_of(node)
    if dtype in _FLOATS or scale is None or not np.all(np.isfinite(scale) & (scale > 0)):
        return ""
    checks: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: dtype not in (INT8, INT4), f"it is {dtype.name}"),
        (lambda: _first_nonzero(node), f"its zero point is {_first_nonzero(node)}"),
        (lambda: wrong_axis(node), "its scales run along another axis than the output channels"),
    )
    return next((why for applies, why in checks if applies()), "")


def _first_nonzero(node: gs.Node) -> int:
    zero = zero_point_of(node)
    values = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32).reshape(-1)
    return int(values[np.flatnonzero(values)[0]]) if values.any() else 0


def warning(released: Mapping[str, str]) -> str:
    """What a user should know about pairs that were dropped."""
    name, why = next(iter(released.items()))
    return (
        f"this model came with quantizers that the target cannot have: '{name}' and others "
        f"lost theirs ({why}) and get ranges from your data; the plan and the notes of release-quantizers tell which"
    )
