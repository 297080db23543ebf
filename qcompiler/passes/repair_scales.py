"""Scales in the form that TensorRT takes, with the same numbers.

* FP16 or BF16 scales ⇒ FP32 (in half, raw accumulators are stored as half and overflow)
* `output_dtype` ⇒ Cast, for targets that do not read it
* a list of one scale ⇒ a scalar (with an axis the compiler takes it for a per-channel scale)
* scale 0 of channels that are all zero ⇒ 1
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import element_types
from qcompiler import graph as graphs
from qcompiler.pass_ import Changed, Note
from qcompiler.quantized import block_size, is_dq, is_q, pairs, scale_of, zero_point_of
from qcompiler.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FP32 = np.dtype(np.float32)
_SMALLEST_HALF, _LARGEST_HALF = 2.0**-14, 65504.0


def wide_scales(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Scales in half become FP32; Casts keep the types around."""
    names = graphs.Names(graph)
    types = element_types.infer(graph)
    casts: dict[int, gs.Variable] = {}
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None or scale.dtype == _FP32 or block_size(node):
            continue
        half = scale.dtype
        graphs.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/fp32"), scale.astype(np.float32)))
        if is_q(node):
            _read_fp32(graph, names, node, types.get(id(node.inputs[0]), half), casts)
        elif "output_dtype" not in node.attrs:
            _write(graph, names, node, half, target)
        yield Changed(node.name, f"scale widened from {half.name} to float32")


def _read_fp32(
    graph: gs.Graph, names: graphs.Names, node: gs.Node, dtype: np.dtype[Any], casts: dict[int, gs.Variable]
) -> None:
    tensor = node.inputs[0]
    if dtype == _FP32:
        return
    if isinstance(tensor, gs.Constant):
        wide = gs.Constant(names.fresh(f"{tensor.name}/fp32"), graphs.values_of(tensor).astype(np.float32))
        graphs.set_input(node, 0, wide)
        return
    if id(tensor) not in casts:
        casts[id(tensor)] = gs.Variable(names.fresh(f"{tensor.name}/fp32"), _FP32, tensor.shape)
        attrs = {"to": graphs.onnx_type(_FP32)}
        cast = gs.Node("Cast", names.fresh(f"{tensor.name}/Cast_fp32"), attrs, [tensor], [casts[id(tensor)]])
        graphs.insert_before(graph, node, cast)
    graphs.set_input(node, 0, casts[id(tensor)])


def _write(graph: gs.Graph, names: graphs.Names, node: gs.Node, dtype: np.dtype[Any], target: Target) -> None:
    """Makes a DQ with an FP32 scale write `dtype`."""
    if target.typed_dequantize and graph.opset >= 23:
        node.attrs["output_dtype"] = graphs.onnx_type(dtype)
        return
    _cast_behind(graph, names, node, dtype)


def _cast_behind(graph: gs.Graph, names: graphs.Names, node: gs.Node, dtype: np.dtype[Any]) -> None:
    node.attrs.pop("output_dtype", None)
    out = node.outputs[0]
    wide = gs.Variable(names.fresh(f"{out.name}/fp32"), _FP32, out.shape)
    graphs.set_output(node, 0, wide)
    cast = gs.Node("Cast", names.fresh(f"{out.name}/Cast"), {"to": graphs.onnx_type(dtype)}, [wide], [out])
    graphs.insert_after(graph, node, cast)


def typed_dequantize(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """`output_dtype` becomes a Cast where the target does not read it."""
    names = graphs.Names(graph)
    for node in pairs(graph):
        dtype = graphs.np_dtype(node.attrs.get("output_dtype")) if is_dq(node) else None
        if dtype is None or target.typed_dequantize:
            continue
        if dtype == _FP32:
            node.attrs.pop("output_dtype")
        else:
            _write(graph, names, node, dtype, target)
        yield Changed(node.name, f"output_dtype {dtype.name} became a Cast")


def typed_blocks(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Blocks have scales of the type that they are dequantized to: with others TensorRT-RTX 1.7 finds no type.

    In half they are fused with the product; no accumulators are in danger, because the activation is float. Scales
    that half cannot hold are left in FP32 with a Cast behind, which costs a kernel of its own.
    """
    names = graphs.Names(graph)
    for node in pairs(graph):
        dtype = graphs.np_dtype(node.attrs.get("output_dtype")) if is_dq(node) and block_size(node) else None
        scale = scale_of(node)
        if dtype is None or scale is None or scale.dtype == dtype:
            continue
        if dtype.itemsize == 2 and scale.min() >= _SMALLEST_HALF and scale.max() <= _LARGEST_HALF:
            graphs.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/{dtype}"), scale.astype(dtype)))
            del node.attrs["output_dtype"]
            yield Changed(node.name, f"scales of blocks in {dtype.name}, as what they are dequantized to")
            continue
        _cast_behind(graph, names, node, dtype)
        yield Changed(node.name, f"blocks dequantized to float32 and cast to {dtype.name}")


def single_scales(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """One scale in a list of one is a scalar: with an axis the compiler takes it for a per-channel scale."""
    names = graphs.Names(graph)
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None or scale.shape == () or scale.size != 1 or block_size(node):
            continue
        for index, values in ((1, scale), (2, zero_point_of(node))):
            if values is not None:
                name = names.fresh(f"{node.inputs[index].name}/scalar")
                graphs.set_input(node, index, gs.Constant(name, np.asarray(values).reshape(())))
        node.attrs.pop("axis", None)
        yield Changed(node.name, "list of one scale became a scalar")


def dead_channels(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """A channel stored as zeros may have any scale: 0, which the parser refuses, becomes 1."""
    names = graphs.Names(graph)
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
        graphs.set_input(node, 1, gs.Constant(names.fresh(f"{node.inputs[1].name}/mended"), mended))
        yield Changed(node.name, "scale 0 of channels that are all zero became 1")
