"""Weights that ONNX Runtime's own operators store in few bits: as a DequantizeLinear in blocks, else in floats.

    MatMulNBits(x, w₄)                        ⇒  MatMul(x, DQ(w₄)), symmetric blocks of INT4 along the depth
    MatMulNBits(x, w₈), asymmetric, permuted  ⇒  MatMul(x, w), the same weight in floats
    GatherBlockQuantized(w₄, i)               ⇒  Gather(w, i)

Rules over a graph for `convert_qoperator`; no pass of their own. Layouts are those of com.microsoft, version 1: low
bits first in a byte, 2^(bits - 1) in the place of 0 where no zero point is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import INT4
from qcompiler.passes.base import Changed, Note, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


STORED = ("MatMulNBits", "GatherBlockQuantized")
FP32 = np.dtype(np.float32)
_PACKED = (2, 4, 8)


def few_bits(graph: gs.Graph, names: Names, node: gs.Node) -> Note:
    """Writes out one of `STORED`; nodes that are added stand where it stood, or at the end of the list."""
    if node.op == "GatherBlockQuantized":
        return _gather(graph, names, node)
    why = _why_not_blocks(graph, node)
    if not why:
        return _blocks(graph, names, node)
    refusal = _why_not_floats(node)
    if refusal:
        return Skipped(node.name, f"MatMulNBits stays: {refusal}")
    weight = gs.Constant(names.fresh(f"{node.inputs[1].name}/float"), _floats(node))
    _multiply(graph, names, node, weight)
    return Changed(node.name, f"MatMulNBits written as MatMul with its weight in floats: {why}")


# --- In blocks --------------------------------------------------------------------------------------------------------


def _blocks(graph: gs.Graph, names: Names, node: gs.Node) -> Note:
    """MatMulNBits keeps its weight as [columns, blocks, packed bytes]; DQ wants [depth, columns] and signed values."""
    depth, width = int(node.attrs["K"]), int(node.attrs["N"])
    size = int(node.attrs["block_size"])
    packed, scales = (_known(node.inputs[i]) for i in (1, 2))
    values = _unpacked(packed.reshape(width, -1), 4)[:, :depth]
    signed = (values.astype(np.int8) - 8).T.astype(INT4)
    steps = scales.reshape(width, -1).T.astype(np.float32)
    base = node.inputs[1].name
    parts = [
        gs.Constant(names.fresh(f"{base}/int4"), np.ascontiguousarray(signed)),
        gs.Constant(names.fresh(f"{base}/scale"), np.ascontiguousarray(steps)),
        gs.Constant(names.fresh(f"{base}/zero_point"), np.zeros(steps.shape, INT4)),
    ]
    weight = gs.Variable(names.fresh(f"{base}/dequantized"), FP32, (depth, width))
    attrs = {"axis": 0, "block_size": size}
    graph.nodes.append(gs.Node("DequantizeLinear", names.fresh(f"{base}/DequantizeLinear"), attrs, parts, [weight]))
    _multiply(graph, names, node, weight)
    return Changed(node.name, f"MatMulNBits written as MatMul with an INT4 weight in blocks of {size}")


def _multiply(graph: gs.Graph, names: Names, node: gs.Node, weight: gs.Tensor) -> None:
    """A MatMul with `weight`, and an Add of the bias, in the place of a MatMulNBits."""
    bias = node.inputs[5] if graphs.is_present(node, 5) else None
    x, out, name, at = node.inputs[0], node.outputs[0], node.name, edit.index_of(graph, node)
    edit.remove_node(graph, node)
    product = out if bias is None else gs.Variable(names.fresh(f"{out.name}/product"), FP32, out.shape)
    made = [gs.Node("MatMul", name, {}, [x, weight])]
    _write(made[0], product)
    if bias is not None:
        made.append(gs.Node("Add", names.fresh(f"{name}/Add"), {}, [product, bias]))
        _write(made[1], out)
    edit.insert_at(graph, at, made)


def _write(node: gs.Node, tensor: gs.Tensor) -> None:
    list.append(node.outputs, tensor)
    list.append(tensor.inputs, node)


def _known(tensor: gs.Tensor) -> Array:
    values = graphs.constant_value(tensor)
    return np.zeros(0) if values is None else values


def _why_not_blocks(graph: gs.Graph, node: gs.Node) -> str:
    """Why a MatMulNBits is no DequantizeLinear in blocks, as the end of a sentence; empty where it is."""
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: int(node.attrs.get("bits", 4)) != 4, f"it has {node.attrs.get('bits')} bits"),
        (lambda: graph.opset < 21, f"opset {graph.opset} has no blocked DequantizeLinear"),
        (lambda: not _known(node.inputs[1]).size or not _known(node.inputs[2]).size, "it is not constant"),
        (lambda: graphs.dtype_of(node.inputs[2]) != FP32, "its scales are not float32"),
        (lambda: int(node.attrs["K"]) % int(node.attrs["block_size"]) != 0, "its last block is not full"),
        (lambda: graphs.is_present(node, 3) and not _around_8(node.inputs[3]), "it is asymmetric"),
        (lambda: graphs.is_present(node, 4), "its columns are permuted"),
    )
    return next((why for applies, why in checks if applies()), "")


def _around_8(tensor: gs.Tensor) -> bool:
    """Zero points are packed like the values: two to a byte."""
    values = _known(tensor)
    return bool(values.size) and bool(np.all(values == 0x88)) and values.dtype == np.uint8


# --- In floats --------------------------------------------------------------------------------------------------------


def _why_not_floats(node: gs.Node) -> str:
    constant = [i for i in (1, 2, 3, 4) if graphs.is_present(node, i)]
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: int(node.attrs.get("bits", 4)) not in _PACKED, f"its weight has {node.attrs.get('bits')} bits"),
        (lambda: any(not _known(node.inputs[i]).size for i in constant), "its weight is not constant"),
        (lambda: graphs.dtype_of(node.inputs[2]) != FP32, "its scales are not float32"),
        (lambda: bool(node.attrs.get("weight_prepacked", 0)), "its weight is packed for one kind of GPU"),
    )
    return next((why for applies, why in checks if applies()), "")


def _floats(node: gs.Node) -> Array:
    """The weight of a MatMulNBits, float32 [K, N]: (value - zero point) · scale, of the block that a row belongs to."""
    depth, width, bits = int(node.attrs["K"]), int(node.attrs["N"]), int(node.attrs.get("bits", 4))
    size = int(node.attrs["block_size"])
    count = -(-depth // size)
    values = _unpacked(_known(node.inputs[1]).reshape(width, -1), bits)[:, :depth]
    scales = _known(node.inputs[2]).reshape(width, count)
    groups = _known(node.inputs[4]).astype(np.int64) if graphs.is_present(node, 4) else np.arange(depth) // size
    zeros = _zeros(node, width, count, bits)
    wide = (values.astype(np.float32) - zeros[:, groups]) * scales[:, groups]
    return np.ascontiguousarray(wide.T.astype(np.float32))


def _zeros(node: gs.Node, width: int, count: int, bits: int) -> Array:
    """Zero points, float32 [N, blocks]."""
    if not graphs.is_present(node, 3):
        return np.full((width, count), 2 ** (bits - 1), np.float32)
    given = _known(node.inputs[3])
    if given.dtype != np.uint8:
        return given.reshape(width, count).astype(np.float32)
    return _unpacked(given.reshape(width, -1), bits)[:, :count].astype(np.float32)


def _unpacked(packed: Array, bits: int) -> Array:
    """uint8 [rows, values] of what lies in the bytes of [rows, bytes], low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    spread = np.asarray(packed[..., None] >> shifts & (2**bits - 1), np.uint8)
    return spread.reshape(len(packed), -1)


def _gather(graph: gs.Graph, names: Names, node: gs.Node) -> Note:
    why = _why_no_table(node)
    if why:
        return Skipped(node.name, f"GatherBlockQuantized stays: {why}")
    table = gs.Constant(names.fresh(f"{node.inputs[0].name}/float"), _table(node))
    axis = int(node.attrs.get("gather_axis", 0))
    node.op, node.domain, node.attrs = "Gather", None, {"axis": axis}
    indices = node.inputs[1]
    edit.set_input(node, 0, table)
    while len(node.inputs) > 2:
        edit.set_input(node, len(node.inputs) - 1, gs.Variable(""))
        list.pop(node.inputs)
    edit.set_input(node, 1, indices)
    return Changed(node.name, "GatherBlockQuantized written as Gather from a table in floats")


def _why_no_table(node: gs.Node) -> str:
    given = [i for i in (0, 2, 3) if graphs.is_present(node, i)]
    data = _known(node.inputs[0])
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: any(not _known(node.inputs[i]).size for i in given), "its table is not constant"),
        (lambda: graphs.dtype_of(node.inputs[2]) != FP32, "its scales are not float32"),
        (lambda: data.ndim != 2, f"its table has {data.ndim} axes"),
        (lambda: data.dtype.name not in ("uint8", "int4", "uint4"), f"its table is {data.dtype.name}"),
        (lambda: int(node.attrs.get("bits", 4)) not in _PACKED, f"its table has {node.attrs.get('bits')} bits"),
        (lambda: int(node.attrs.get("quantize_axis", 1)) % 2 != 1, "its blocks run along the rows"),
    )
    return next((why for applies, why in checks if applies()), "")


def _table(node: gs.Node) -> Array:
    """The table, float32 [rows, features]: blocks of features share a scale."""
    data, scales, bits = _known(node.inputs[0]), _known(node.inputs[2]), int(node.attrs.get("bits", 4))
    packed = data.dtype == np.uint8
    values = _unpacked(data, bits) if packed else data
    zeros = np.full(scales.shape, 2 ** (bits - 1) if packed else 0, np.float32)
    if graphs.is_present(node, 3):
        given = _known(node.inputs[3])
        zeros = (_unpacked(given, bits)[:, : scales.shape[1]] if packed else given).astype(np.float32)
    groups = np.arange(values.shape[1]) // int(node.attrs.get("block_size", 128))
    return np.asarray((values.astype(np.float32) - zeros[:, groups]) * scales[:, groups], np.float32)
