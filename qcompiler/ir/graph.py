"""Typed helpers over onnx-graphsurgeon: the door to its internals and to `onnx.helper`.

Why a door is needed: `Tensor.__eq__` compares names only and `Node.__eq__` compares contents, so every list operation
of the library that removes something may remove an equal twin, and it costs a deep comparison. Everything here works
by identity. A tensor that a node reads twice stands twice in `tensor.outputs`; nodes of nested graphs stand there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from qcompiler.ir.gs_classes import dense
from qcompiler.ir.operators import LINEAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_STANDARD = (None, "", "ai.onnx")
_HALVES = frozenset((np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)))
_FLOATS = frozenset(
    np.dtype(name)
    for name in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
)


# --- Looking ----------------------------------------------------------------------------------------------------------


def is_op(node: gs.Node | None, *ops: str) -> bool:
    """Whether a node is one of these operators of the standard ONNX domain; False for None."""
    return node is not None and node.op in ops and node.domain in _STANDARD


def is_standard(node: gs.Node) -> bool:
    """Whether a node's operator belongs to the standard ONNX domain."""
    return node.domain in _STANDARD


def is_linear(node: gs.Node | None) -> bool:
    """Whether a node multiplies by a matrix: Conv, ConvTranspose, Gemm, MatMul."""
    return is_op(node, *LINEAR)


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is an initializer."""
    return isinstance(tensor, gs.Constant)


def is_present(node: gs.Node, index: int) -> bool:
    """Whether an optional input is given: there is one at `index` and it has a name."""
    return index < len(node.inputs) and bool(node.inputs[index].name)


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is, by identity, one of the graph's outputs."""
    return any(tensor is output for output in graph.outputs)


def is_input(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is, by identity, one of the graph's inputs."""
    return any(tensor is value for value in graph.inputs)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that writes a tensor; None for graph inputs, initializers and values of an outer graph by name."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: gs.Tensor) -> list[tuple[gs.Node, int]]:
    """Every use of a tensor as (node, index of the input), each once, nodes of nested graphs included."""
    nodes = {id(node): node for node in tensor.outputs}
    return [(node, i) for node in nodes.values() for i, value in enumerate(node.inputs) if value is tensor]


def only_consumer(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads a tensor, once; None where there are more or none, or where it is a graph output."""
    if len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    return tensor.outputs[0]


def subgraphs(node: gs.Node) -> list[gs.Graph]:
    """The graphs that a node carries directly (branches of If, bodies of Loop and Scan), in attribute order."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph itself, then all nested graphs, outer before inner."""
    yield graph
    for node in graph.nodes:
        for inner in subgraphs(node):
            yield from graphs(inner)


def branches(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The branches of every If, with all graphs nested in them, outer before inner."""
    for node in graph.nodes:
        for inner in subgraphs(node):
            yield from graphs(inner) if is_op(node, "If") else branches(inner)


def walk(graph: gs.Graph) -> Iterator[gs.Node]:
    """All nodes in graph order, those of nested graphs behind their owner."""
    for node in graph.nodes:
        yield node
        for inner in subgraphs(node):
            yield from walk(inner)


def tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """All tensors of one graph by identity, without nested graphs and omitted inputs: inputs, then by node, outputs."""
    seen: set[int] = set()
    listed = [graph.inputs, *(part for node in graph.nodes for part in (node.inputs, node.outputs)), graph.outputs]
    for tensor in (tensor for part in listed for tensor in part):
        if tensor.name and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def captured(graph: gs.Graph) -> set[str]:
    """Names of the tensors of `graph`, or of a graph around it, that its nested graphs read."""
    names: set[str] = set()
    for node in graph.nodes:
        for inner in subgraphs(node):
            names |= free(inner)
    return names


def free(graph: gs.Graph) -> set[str]:
    """Names that a graph reads and does not make."""
    made = {t.name for t in graph.inputs} | {t.name for node in graph.nodes for t in node.outputs}
    read = {t.name for node in graph.nodes for t in node.inputs} | {t.name for t in graph.outputs}
    return (read | captured(graph)) - made - {""}


# --- Types ------------------------------------------------------------------------------------------------------------


def np_dtype(element: Any) -> np.dtype[Any] | None:
    """The numpy (or ml_dtypes) type of an ONNX element type or of anything numpy takes; None for None and UNDEFINED.

    Strings are `object`.
    """
    if element is None or (isinstance(element, int) and element == onnx.TensorProto.UNDEFINED):
        return None
    found: np.dtype[Any] = np.dtype(
        onnx.helper.tensor_dtype_to_np_dtype(element) if isinstance(element, int) else element
    )
    return found


def onnx_type(dtype: Any) -> int:
    """The ONNX element type (`TensorProto.DataType`) of a numpy or ml_dtypes type."""
    return dtype if isinstance(dtype, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def dtype_of(tensor: gs.Tensor) -> np.dtype[Any] | None:
    """The element type of a tensor; None where it is not known (yet) or the value is no tensor."""
    if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
        return None
    return np_dtype(tensor.dtype)


def shape_of(tensor: gs.Tensor) -> tuple[int | str | None, ...] | None:
    """The shape of a tensor: int where fixed, str or None where open; None where not even the rank is known."""
    if tensor.shape is None:
        return None
    return tuple(
        int(d) if isinstance(d, int | np.integer) and d >= 0 else (d or None if isinstance(d, str) else None)
        for d in tensor.shape
    )


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape where every dimension is a fixed number, else None."""
    shape = shape_of(tensor)
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return tuple(dim for dim in shape if isinstance(dim, int))


def is_float(tensor: gs.Tensor) -> bool:
    """Whether a tensor is known to hold floats of any width."""
    return dtype_of(tensor) in _FLOATS


# --- Constants --------------------------------------------------------------------------------------------------------


def values_of(tensor: gs.Constant) -> Array:
    """The array of an initializer. Don't write to it: it may be shared, or mapped from the model file."""
    held = tensor._values
    if isinstance(held, SparseValues):
        return np.asarray(held.load(), dtype=np_dtype(held.dtype))  # graphsurgeon makes float64 of every sparse tensor
    if isinstance(held, LazyValues) and np_dtype(held.dtype) == np.dtype(object):
        return np.asarray(held.load())  # not kept: graphsurgeon cannot write strings back
    return np.asarray(tensor.values)


def weight_bytes(graph: gs.Graph) -> int:
    """What all weights of a graph and of those nested in it take in float32, each once; nothing is read for it."""
    held = {id(t._values): t for one in graphs(graph) for t in tensors(one) if is_constant(t)}
    sizes = (t._values.nbytes * (2 if dtype_of(t) in _HALVES else 1) for t in held.values())
    return sum(sizes)


def constant_value(tensor: gs.Tensor) -> Array | None:
    """The value of a tensor that is an initializer or comes from a Constant node, also through Identity; else None."""
    while not is_constant(tensor):
        node = producer(tensor)
        if is_op(node, "Constant"):
            return attribute_value(node)
        if not is_op(node, "Identity") or node is None:
            return None
        tensor = node.inputs[0]
    return values_of(tensor)


def attribute_value(node: gs.Node) -> Array | None:
    """What a Constant node yields, whichever of its attributes holds it, sparse ones as dense; None for references."""
    attrs = node.attrs
    sparse = attrs.get("sparse_value")
    if isinstance(sparse, onnx.AttributeProto):
        return dense(sparse.sparse_tensor)
    value = attrs.get("value")
    if is_constant(value):
        return values_of(value)
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
        if isinstance(attrs.get(name), int | float | list):
            return np.asarray(attrs[name], dtype)
    if isinstance(attrs.get("value_ints"), list):
        return np.asarray(attrs["value_ints"], np.int64)
    if isinstance(attrs.get("value_string"), str) or isinstance(attrs.get("value_strings"), list):
        return np.asarray(attrs.get("value_string", attrs.get("value_strings")), object)
    return None


# --- Attributes -------------------------------------------------------------------------------------------------------


def output_axis(node: gs.Node, index: int = 1) -> int:
    """Axis of the output channels in the weight of a linear node, as the node reads it at input `index`.

    Conv [M, C/g, ...]: 0. ConvTranspose [C, M/g, ...]: 1 (with g groups, channel m of group k is m + k·M/g). Gemm: 0
    with transB, else 1. MatMul: the last axis, or the last but one of a weight on the left (0 for vectors); -1 or -2
    where its rank is not known.
    """
    if is_op(node, "Conv"):
        return 0
    if is_op(node, "ConvTranspose"):
        return 1
    if is_op(node, "Gemm"):
        return 0 if node.attrs.get("transB", 0) else 1
    shape = node.inputs[index].shape
    from_end = 1 if index == 1 else 2
    return -from_end if shape is None else max(len(shape) - from_end, 0)


def permutation(node: gs.Node, rank: int) -> tuple[int, ...]:
    """The axes of a Transpose; reversed order where it names none."""
    perm = node.attrs.get("perm")
    return tuple(int(axis) for axis in perm) if perm else tuple(reversed(range(rank)))


def axes_of(node: gs.Node) -> tuple[int, ...] | None:
    """The axes of Squeeze, Unsqueeze or a reduction, attribute (before opset 13/18) or constant input; else None."""
    if "axes" in node.attrs:
        return tuple(int(axis) for axis in node.attrs["axes"])
    value = constant_value(node.inputs[1]) if is_present(node, 1) else None
    return None if value is None else tuple(int(axis) for axis in value.reshape(-1))
