"""Reading Q/DQ nodes: what they store, how they scale it, and what reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import EngineError
from qcompiler.ir import graph as graphs
from qcompiler.ir import made
from qcompiler.ir.made import DequantizedWeights, Held, later, solid
from qcompiler.ir.operators import CARRIES, VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray


MICROSOFT = "com.microsoft"
INT4 = np.dtype(ml_dtypes.int4)
UINT4 = np.dtype(ml_dtypes.uint4)
INT8 = np.dtype(np.int8)
UINT8 = np.dtype(np.uint8)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP4 = np.dtype(ml_dtypes.float4_e2m1fn)
SIGNED = {UINT8: INT8, UINT4: INT4}
LIMITS = {INT8: (-128, 127), INT4: (-8, 7)}


def is_q(node: gs.Node | None) -> bool:
    """Whether a node is QuantizeLinear, of ONNX or of ONNX Runtime's own domain."""
    return node is not None and node.op == "QuantizeLinear" and node.domain in (None, "", "ai.onnx", MICROSOFT)


def is_dq(node: gs.Node | None) -> bool:
    """Whether a node is DequantizeLinear, of ONNX or of ONNX Runtime's own domain."""
    return node is not None and node.op == "DequantizeLinear" and node.domain in (None, "", "ai.onnx", MICROSOFT)


def pairs(graph: gs.Graph) -> Iterator[gs.Node]:
    """All Q and DQ nodes of one graph, in order; the list may be edited meanwhile."""
    return (node for node in list(graph.nodes) if is_q(node) or is_dq(node))


def scale_of(node: gs.Node) -> NDArray[Any] | None:
    """The scale of a Q or DQ; None where it is computed at run time."""
    return graphs.constant_value(node.inputs[1])


def zero_point_of(node: gs.Node) -> NDArray[Any] | None:
    """The zero point of a Q or DQ; None where it is omitted or computed."""
    return graphs.constant_value(node.inputs[2]) if graphs.is_present(node, 2) else None


def integer_of(node: gs.Node) -> gs.Tensor:
    """The quantized side of a Q or DQ."""
    tensor: gs.Tensor = node.outputs[0] if is_q(node) else node.inputs[0]
    return tensor


def stored_type(node: gs.Node) -> np.dtype[Any]:
    """The quantized type; uint8 is what ONNX takes where nothing says otherwise."""
    zero = node.inputs[2] if graphs.is_present(node, 2) else None
    for source in (zero, integer_of(node)):
        found = None if source is None else graphs.dtype_of(source)
        if found is not None:
            return found
    stated = graphs.np_dtype(node.attrs.get("output_dtype")) if is_q(node) else None
    return stated or UINT8


def is_weight(node: gs.Node) -> bool:
    """Whether a Q or DQ holds a constant: stored quantized, or a float constant behind a Q."""
    source = node.inputs[0]
    before = graphs.producer(source)
    return graphs.constant_value(source) is not None or (is_q(before) and before is not None and is_weight(before))


def is_weight_only(node: gs.Node) -> bool:
    """Whether a DQ holds a weight that only matrix products with a float activation read."""
    if not is_dq(node) or not is_weight(node):
        return False
    found = list(readers(node.outputs[0]))
    return bool(found) and all(
        graphs.is_op(reader, "MatMul", "Gemm") and index == 1 and dequantizer(reader.inputs[0]) is None
        for reader, index, _ in found
    )


def block_size(node: gs.Node) -> int:
    """Elements that share a scale along the blocked axis; 0 where scales are not blocked."""
    return int(node.attrs.get("block_size", 0) or 0)


def dequantized(node: gs.Node, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The float values of a DQ of a constant, computed as ONNX defines it: (q - zero point) · scale.

    Raises:
        EngineError: as of `held_dequantized`.
    """
    return solid(held_dequantized(node, dtype)).astype(dtype, copy=False)


def held_dequantized(node: gs.Node, dtype: np.dtype[Any]) -> Held:
    """The same; where there is no room for all weights, made whenever somebody looks, rounded to the type, as float32.

    Raises:
        EngineError: data or scale are not constant, or scale and data do not fit each other.
    """
    values, scale, zero = graphs.constant_value(node.inputs[0]), scale_of(node), zero_point_of(node)
    if values is None or scale is None:
        raise refusal(node, "has data or a scale that is not constant", "quantize it once, per tensor")
    axis, block = int(node.attrs.get("axis", 1)), block_size(node)
    for one in (scale, zero):
        if one is not None and not block and one.size > 1 and one.size != values.shape[axis]:
            raise refusal(node, f"has {one.size} scales along an axis of {values.shape[axis]}", "export it again")
    if later(values):
        return DequantizedWeights(values, scale, zero, axis, block, dtype)
    return made.dequantized(values, scale, zero, axis, block).astype(dtype)


def readers(tensor: gs.Tensor, through: tuple[str, ...] = VIEWS) -> Iterator[tuple[gs.Node, int, tuple[gs.Node, ...]]]:
    """What reads a tensor in the end, as (node, input index, nodes looked through), passing operators of `through`."""
    waiting: list[tuple[gs.Tensor, tuple[gs.Node, ...]]] = [(tensor, ())]
    while waiting:
        one, chain = waiting.pop()
        for node, index in graphs.consumers(one):
            if graphs.is_op(node, *through) and len(chain) < 16:
                waiting += [(output, (*chain, node)) for output in node.outputs]
            else:
                yield node, index, chain


def dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The DQ that a tensor comes from, through operators that only change its view; None where it is a plain float."""
    node = graphs.producer(tensor)
    while node is not None and graphs.is_op(node, *VIEWS):
        node = graphs.producer(node.inputs[0])
    return node if is_dq(node) else None


def refusal(node: gs.Node, what: str, remedy: str) -> EngineError:
    """The error for a node that the target must not see."""
    tensor = integer_of(node) if is_q(node) or is_dq(node) else node.outputs[0]
    return EngineError(f"node '{node.name}' ({node.op}, tensor '{tensor.name}') {what}: {remedy}.")


@dataclass(frozen=True, slots=True)
class Region:
    """Integers that travel: the tensors between Qs and DQs, and these ends, in the order in which they are met."""

    tensors: tuple[gs.Tensor, ...]
    ends: tuple[gs.Node, ...]


def region(graph: gs.Graph, start: gs.Tensor, dtype: np.dtype[Any]) -> Region | None:
    """What is connected with an integer tensor by operators that only carry values.

    None where the integers leave the graph, or meet an operator that computes with them.
    """
    tensors, ends, waiting = {id(start): start}, {}, [start]
    while waiting:
        tensor = waiting.pop()
        if graphs.is_input(graph, tensor) or graphs.is_output(graph, tensor):
            return None
        before = graphs.producer(tensor)
        near = [node for node, index in graphs.consumers(tensor)] + ([] if before is None else [before])
        for node in near:
            if is_q(node) or is_dq(node):
                ends[id(node)] = node
                continue
            if not graphs.is_op(node, *CARRIES):
                return None
            for other in (*node.inputs, *node.outputs):
                if graphs.dtype_of(other) in (dtype, None) and other.name and id(other) not in tensors:
                    tensors[id(other)] = other
                    waiting.append(other)
    return Region(tuple(tensors.values()), tuple(ends.values()))
