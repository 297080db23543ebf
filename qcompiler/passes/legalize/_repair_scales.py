"""Scales in the form that TensorRT takes, with the same numbers.

* FP16 or BF16 scales ⇒ FP32 (in half, raw accumulators are stored as half and overflow), except of weights beside
  float activations
* scales of weights beside float activations ⇒ FP16 or BF16, where that is what they are dequantized to
* `output_dtype` ⇒ Cast, for targets that do not read it
* a list of one scale ⇒ a scalar (with an axis the compiler takes it for a per-channel scale)
* scale 0 of channels that are all zero ⇒ 1
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import block_size, is_dq, is_q, is_weight_only, pairs, scale_of, zero_point_of
from qcompiler.passes.base import Changed, Note
from qcompiler.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FP32 = np.dtype(np.float32)
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_SMALLEST_HALF, _LARGEST_HALF = 2.0**-14, 65504.0


def wide_scales(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Scales in half become FP32; Casts keep the types around."""
    names = Names(graph)
    types = element_types.infer(graph)
    casts: dict[int, gs.Variable] = {}
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None or scale.dtype == _FP32 or block_size(node) or is_weight_only(node):
            continue
        half = scale.dtype
        edit.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/fp32"), scale.astype(np.float32)))
        if is_q(node):
            _read_fp32(graph, names, node, types.get(id(node.inputs[0]), half), casts)
        elif "output_dtype" not in node.attrs:
            _write(graph, names, node, half, target)
        yield Changed(node.name, f"scale widened from {half.name} to float32")


def _read_fp32(
    graph: gs.Graph, names: Names, node: gs.Node, dtype: np.dtype[Any], casts: dict[int, gs.Variable]
) -> None:
    tensor = node.inputs[0]
    if dtype == _FP32:
        return
    if isinstance(tensor, gs.Constant):
        wide = gs.Constant(names.fresh(f"{tensor.name}/fp32"), graphs.values_of(tensor).astype(np.float32))
        edit.set_input(node, 0, wide)
        return
    if id(tensor) not in casts:
        casts[id(tensor)] = gs.Variable(names.fresh(f"{tensor.name}/fp32"), _FP32, tensor.shape)
        attrs = {"to": graphs.onnx_type(_FP32)}
        cast = gs.Node("Cast", names.fresh(f"{tensor.name}/Cast_fp32"), attrs, [tensor], [casts[id(tensor)]])
        edit.insert_before(graph, node, cast)
    edit.set_input(node, 0, casts[id(tensor)])


def _write(graph: gs.Graph, names: Names, node: gs.Node, dtype: np.dtype[Any], target: Target) -> None:
    """Makes a DQ with an FP32 scale write `dtype`."""
    if target.typed_dequantize and graph.opset >= 23:
        node.attrs["output_dtype"] = graphs.onnx_type(dtype)
        return
    _cast_behind(graph, names, node, dtype)


def _cast_behind(graph: gs.Graph, names: Names, node: gs.Node, dtype: np.dtype[Any]) -> None:
    node.attrs.pop("output_dtype", None)
    out = node.outputs[0]
    wide = gs.Variable(names.fresh(f"{out.name}/fp32"), _FP32, out.shape)
    edit.set_output(node, 0, wide)
    cast = gs.Node("Cast", names.fresh(f"{out.name}/Cast"), {"to": graphs.onnx_type(dtype)}, [wide], [out])
    edit.insert_after(graph, node, cast)


def typed_dequantize(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """`output_dtype` becomes a Cast where the target does not read it."""
    names = Names(graph)
    for node in pairs(graph):
        dtype = graphs.np_dtype(node.attrs.get("output_dtype")) if is_dq(node) else None
        if dtype is None or target.typed_dequantize:
            continue
        if dtype == _FP32:
            node.attrs.pop("output_dtype")
        else:
            _write(graph, names, node, dtype, target)
        yield Changed(node.name, f"output_dtype {dtype.name} became a Cast")


def typed_weights(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Weights beside float activations have scales of the type that they are dequantized to.

    TensorRT-RTX 1.7 finds no type for blocks that have others, and ONNX Runtime 1.31 joins weight and product to an
    operator of one type, and then refuses it. No accumulators are in danger in half, because the activation is float.

    A scale per output is stored in half where half holds it exactly, else a Cast stands behind the FP32 scales: the
    numbers are the same, and TensorRT-RTX fuses both. Behind blocks it fuses no Cast, so their scales are rounded, by
    no more than each weight that comes out is rounded in half anyway; out of the range of normal numbers, where that
    does not hold, they get the Cast all the same, which costs a kernel of its own.
    """
    names = Names(graph)
    for node in pairs(graph):
        scale, half = scale_of(node), _written_half(graph, node)
        if half is None or scale is None or scale.dtype == half or not (block_size(node) or is_weight_only(node)):
            continue
        change = _change(scale, half)
        if change and not (block_size(node) and scale.min() >= _SMALLEST_HALF and scale.max() <= _LARGEST_HALF):
            if "output_dtype" in node.attrs:
                _cast_behind(graph, names, node, half)
                yield Changed(
                    node.name, f"scales that {half.name} does not hold stay {scale.dtype}, with a Cast behind"
                )
            continue
        edit.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/{half}"), scale.astype(half)))
        _write_half(graph, node, half)
        by = f", which changes them by up to {change:.1e} of themselves" if change else ""
        yield Changed(node.name, f"scales of a weight in {half.name}, as what they are dequantized to{by}")


def _written_half(graph: gs.Graph, node: gs.Node) -> np.dtype[Any] | None:
    """The type of two bytes that a DQ writes, itself or by the Cast that alone reads it; None where it is another."""
    if not is_dq(node):
        return None
    found = graphs.np_dtype(node.attrs.get("output_dtype"))
    cast = _only_cast(graph, node)
    if found is None and cast is not None:
        found = graphs.np_dtype(cast.attrs["to"])
    return found if found in _HALVES else None


def _only_cast(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    readers = graphs.consumers(node.outputs[0])
    alone = len(readers) == 1 and graphs.is_op(readers[0][0], "Cast") and not graphs.is_output(graph, node.outputs[0])
    return readers[0][0] if alone else None


def _write_half(graph: gs.Graph, node: gs.Node, half: np.dtype[Any]) -> None:
    """Takes away what turned FP32 into half behind a DQ."""
    if node.attrs.pop("output_dtype", None) is not None:
        return
    cast = _only_cast(graph, node)
    assert cast is not None  # `_written_half` has looked
    out = cast.outputs[0]
    edit.remove_node(graph, cast)
    edit.set_output(node, 0, out)


def _change(scale: NDArray[Any], dtype: np.dtype[Any]) -> float:
    """The largest relative change of a scale that is stored in another type; infinite where it becomes 0 or inf."""
    with np.errstate(over="ignore"):
        stored = scale.astype(dtype).astype(np.float64)
    if not np.all(np.isfinite(stored) & (stored > 0)):
        return math.inf
    return float(np.max(np.abs(stored / scale.astype(np.float64) - 1), initial=0.0))


def single_scales(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """One scale in a list of one is a scalar: with an axis the compiler takes it for a per-channel scale."""
    names = Names(graph)
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None or scale.shape == () or scale.size != 1 or block_size(node):
            continue
        for index, values in ((1, scale), (2, zero_point_of(node))):
            if values is not None:
                name = names.fresh(f"{node.inputs[index].name}/scalar")
                edit.set_input(node, index, gs.Constant(name, np.asarray(values).reshape(())))
        node.attrs.pop("axis", None)
        yield Changed(node.name, "list of one scale became a scalar")


def dead_channels(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """A channel stored as zeros may have any scale: 0, which the parser refuses, becomes 1."""
    names = Names(graph)
    for node in pairs(graph):
        scale, values = scale_of(node), graphs.constant_value(node.inputs[0])
        if not is_dq(node) or scale is None or values is None or block_size(node) or not np.any(scale == 0):
            continue
        axis = int(node.attrs.get("axis", 1))
        others = tuple(i for i in range(values.ndim) if scale.size > 1 and i != axis % max(values.ndim, 1))
        used = np.any(values.astype(np.float32) != 0, axis=others) if others else np.any(values.astype(np.float32) != 0)
        mended: NDArray[Any] = np.where((scale == 0) & ~np.reshape(used, scale.shape), 1, scale).astype(scale.dtype)
        if np.array_equal(mended, scale):
            continue
        edit.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/mended"), mended))
        yield Changed(node.name, "scale 0 of channels that are all zero became 1")
