"""Zero points and stored integers in the form that TensorRT takes, with the same numbers.

* u8 with zero point 128 ⇒ i8 with zero point 0, q' = q - 128; constants with any zero point, where q - z fits
* omitted zero point ⇒ written out (omitted, it means uint8 to the parser whatever the data is)
* Q(float constant) ⇒ the integers that it gives
* quantized constant into an operator ⇒ Q(DQ(constant)), which is the constant again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import CARRIES
from qcompiler.ir.qdq import (
    FP8,
    INT4,
    INT8,
    LIMITS,
    MICROSOFT,
    SIGNED,
    UINT8,
    block_size,
    integer_of,
    is_dq,
    is_q,
    pairs,
    readers,
    region,
    scale_of,
    stored_type,
    zero_point_of,
)
from qcompiler.passes.base import Changed, Note
from qcompiler.target import Target

Rule = Callable[[gs.Graph, Target], Iterator[Note]]

_FP32 = np.dtype(np.float32)
_TYPED_Q = 21  # the opset that gave QuantizeLinear `output_dtype`
_INTEGERS = (INT8, UINT8, np.dtype(np.int16), np.dtype(np.uint16))


def standard_domain(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """ONNX Runtime's own Q/DQ are ONNX's."""
    for node in pairs(graph):
        if node.domain == MICROSOFT:
            node.domain = None
            yield Changed(node.name, "moved from domain com.microsoft to ONNX's own")


def written_zero_points(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """An omitted zero point means uint8 to the parser, whatever the data is."""
    names = Names(graph)
    for node in pairs(graph):
        if graphs.is_present(node, 2):
            continue
        dtype, scale = stored_type(node), scale_of(node)
        if dtype not in (INT8, UINT8, INT4, FP8) or scale is None or _typed_fp8(node):
            continue
        zero = gs.Constant(names.fresh(f"{node.name}/zero_point"), np.zeros(scale.shape, dtype))
        if len(node.inputs) > 2:
            edit.set_input(node, 2, zero)
        else:
            node.inputs.append(zero)
        if is_q(node):
            node.attrs.pop("output_dtype", None)
        yield Changed(node.name, f"{dtype.name} zero point written out")


def typed_fp8(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """A Q of FP8 behind a Relu says its type by `output_dtype` (opset 21) and has no zero point.

    ONNX Runtime 1.31 takes the zero point for the lowest value of the type, as it is of uint8, and drops the Relu
    without a word: the file that is written would give something else there.
    """
    if graph.opset < _TYPED_Q:
        return
    for node in pairs(graph):
        before, zero = graphs.producer(node.inputs[0]), zero_point_of(node)
        if not is_q(node) or stored_type(node) != FP8 or zero is None or not graphs.is_op(before, "Relu", "Clip"):
            continue
        edit.set_input(node, 2, gs.Variable(""))
        list.pop(node.inputs)
        node.attrs["output_dtype"] = graphs.onnx_type(FP8)
        yield Changed(node.name, "its type is an attribute in place of the zero point, which ONNX Runtime misreads")


def _typed_fp8(node: gs.Node) -> bool:
    return is_q(node) and graphs.np_dtype(node.attrs.get("output_dtype")) == FP8


def stored_constants(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """A float constant behind Q, as training tools write weights, is stored as the integers that it gives."""
    names = Names(graph)
    for node in pairs(graph):
        values, scale, zero = graphs.constant_value(node.inputs[0]), scale_of(node), zero_point_of(node)
        dtype = stored_type(node)
        if not is_q(node) or values is None or values.dtype != _FP32 or dtype not in _INTEGERS or block_size(node):
            continue
        if scale is None or scale.dtype != _FP32 or not (np.isfinite(scale) & (scale > 0)).all():
            continue
        if (graphs.is_present(node, 2) and zero is None) or graphs.is_output(graph, node.outputs[0]):
            continue
        if any(not is_dq(reader) for reader, _ in graphs.consumers(node.outputs[0])):
            continue  # an operator that reads integers needs the Q, see `bare_constants`
        shape = [1] * values.ndim
        if scale.size > 1:
            shape[int(node.attrs.get("axis", 1))] = scale.size
        steps = np.rint(values / scale.reshape(shape)) + (0 if zero is None else zero.astype(np.float32).reshape(shape))
        limits = np.iinfo(dtype)
        stored = np.asarray(np.clip(steps, limits.min, limits.max), dtype).reshape(values.shape)
        constant = gs.Constant(names.fresh(f"{node.inputs[0].name}/stored"), stored)
        for reader, index in graphs.consumers(node.outputs[0]):
            edit.set_input(reader, index, constant)
        name = node.name
        edit.remove_node(graph, node)
        yield Changed(name, f"constant stored as {dtype.name}")


def signed_constants(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Constants with an offset, where the values minus the offset fit the signed type: usual for weights."""
    names = Names(graph)
    for node in pairs(graph):
        values, zero = graphs.constant_value(node.inputs[0]), zero_point_of(node)
        old = stored_type(node)
        dtype = SIGNED.get(old, old)
        if not is_dq(node) or values is None or zero is None or dtype not in LIMITS or block_size(node):
            continue
        if old == dtype and not np.any(zero.astype(np.int32)):
            continue
        shape = [1] * values.ndim
        if zero.size > 1:
            shape[int(node.attrs.get("axis", 1))] = zero.size
        shifted = values.astype(np.int32) - zero.astype(np.int32).reshape(shape)
        low, high = LIMITS[dtype]
        if shifted.size and (shifted.min() < low or shifted.max() > high):
            continue
        edit.set_input(node, 0, gs.Constant(names.fresh(f"{node.inputs[0].name}/signed"), shifted.astype(dtype)))
        edit.set_input(node, 2, gs.Constant(names.fresh(f"{node.name}/zero"), np.zeros(zero.shape, dtype)))
        yield Changed(node.name, f"constant moved from {old.name} with an offset to {dtype.name} without")


def signed_activations(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """uint8 around zero point 128 is int8 around 0, on the whole way from the Qs to the DQs."""
    names = Names(graph)
    seen: set[int] = set()
    for node in pairs(graph):
        if stored_type(node) != UINT8 or id(integer_of(node)) in seen:
            continue
        found = region(graph, integer_of(node), UINT8)
        seen.update(map(id, found.tensors if found else [integer_of(node)]))
        if found is None or not all(_around_128(one) for one in found.ends):
            continue
        for one in found.ends:
            zero = zero_point_of(one)
            shape = () if zero is None else zero.shape
            edit.set_input(one, 2, gs.Constant(names.fresh(f"{one.name}/zero"), np.zeros(shape, np.int8)))
            yield Changed(one.name, "moved from uint8 around 128 to int8 around 0")
        for tensor in found.tensors:
            _make_signed(tensor, names)


def _around_128(node: gs.Node) -> bool:
    zero = zero_point_of(node)
    return zero is not None and bool(np.all(zero.astype(np.int32) == 128))


def _make_signed(tensor: gs.Tensor, names: Names) -> None:
    if not isinstance(tensor, gs.Constant):
        tensor.dtype = INT8
        return
    values = (graphs.values_of(tensor).astype(np.int32) - 128).astype(np.int8)
    copy = gs.Constant(names.fresh(f"{tensor.name}/signed"), values)
    for node, index in graphs.consumers(tensor):
        edit.set_input(node, index, copy)


def bare_constants(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """A quantized constant that an operator reads before any DQ, which does not build, goes through DQ and Q first."""
    names = Names(graph)
    for tensor in [one for one in graphs.tensors(graph) if isinstance(one, gs.Constant)]:
        if graphs.dtype_of(tensor) not in (INT8, FP8):
            continue
        bare = [(n, i) for n, i in graphs.consumers(tensor) if graphs.is_op(n, *CARRIES)]
        ends = [end for node, _ in bare for out in node.outputs for end, _, _ in readers(out, CARRIES) if is_dq(end)]
        scale = scale_of(ends[0]) if ends else None
        if scale is None or scale.size != 1:
            continue
        real = gs.Variable(names.fresh(f"{tensor.name}/float"), _FP32, tensor.shape)
        back = gs.Variable(names.fresh(f"{tensor.name}/quantized"), graphs.dtype_of(tensor), tensor.shape)
        parameters = ends[0].inputs[1:3]
        made = [
            gs.Node(
                "DequantizeLinear", names.fresh(f"{tensor.name}/DequantizeLinear"), {}, [tensor, *parameters], [real]
            ),
            gs.Node("QuantizeLinear", names.fresh(f"{tensor.name}/QuantizeLinear"), {}, [real, *parameters], [back]),
        ]
        graph.nodes[:0] = made
        for node, index in bare:
            edit.set_input(node, index, back)
        yield Changed(tensor.name, f"quantized constant put through DQ and Q in front of '{bare[0][0].name}'")
