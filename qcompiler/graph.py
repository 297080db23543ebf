"""Typed helpers over onnx-graphsurgeon: the door to its internals and to `onnx.helper`.

Why a door is needed: `Tensor.__eq__` compares names only and `Node.__eq__` compares contents, so every list operation
of the library that removes something may remove an equal twin, and it costs a deep comparison. Everything here works
by identity. A tensor that a node reads twice stands twice in `tensor.outputs`; nodes of nested graphs stand there too.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from qcompiler.errors import InternalError, ModelError
from qcompiler.operators import LINEAR
from qcompiler.places import places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_SWEEP = 64  # of so many nodes, taking one out by its place costs about what a sweep over all of them does
_STANDARD = (None, "", "ai.onnx")
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
            names |= _free(inner)
    return names


def _free(graph: gs.Graph) -> set[str]:
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
    """What a Constant node yields, whichever of its attributes holds it; None for sparse values and references."""
    attrs = node.attrs
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


def add_constant(name: str, values: Array) -> gs.Constant:
    """An initializer; it becomes part of a graph by being read. `name` must be new: take it from `Names`."""
    return gs.Constant(name, values)


def copy_constant(constant: gs.Constant, name: str) -> gs.Constant:
    """Another initializer over the same array, which is not copied (nor loaded, where graphsurgeon has not yet)."""
    return gs.Constant(name, constant._values, export_dtype=constant._export_dtype)


class Names:
    """Hands out names that nothing in a graph, nested graphs included, bears yet; the same ones on every run.

    Build it once for a pass: building walks the graph, each `fresh` is cheap.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        for inner in graphs(graph):
            self._taken |= {node.name for node in inner.nodes}
            self._taken |= {tensor.name for tensor in tensors(inner)}

    def fresh(self, base: str) -> str:
        """`base` itself where it is free, else `base_1`, `base_2` and so on. The name is taken from now on."""
        name, number = base, self._next.get(base, 0)
        while name in self._taken or not name:
            number += 1
            name = f"{base}_{number}"
        self._next[base] = number
        self._taken.add(name)
        return name


# --- Editing ----------------------------------------------------------------------------------------------------------


def _drop(items: list[Any], item: object) -> None:
    for i, one in enumerate(items):
        if one is item:
            list.pop(items, i)
            return
    raise InternalError(f"graph is inconsistent: {getattr(item, 'name', item)!r} is not listed where it is used")


def set_input(node: gs.Node, index: int, tensor: gs.Tensor) -> None:
    """Makes one input of a node read `tensor`."""
    _drop(node.inputs[index].outputs, node)
    list.__setitem__(node.inputs, index, tensor)
    list.append(tensor.outputs, node)


def set_output(node: gs.Node, index: int, tensor: gs.Tensor) -> None:
    """Makes one output of a node write `tensor`."""
    _drop(node.outputs[index].inputs, node)
    list.__setitem__(node.outputs, index, tensor)
    list.append(tensor.inputs, node)


def detach(node: gs.Node) -> None:
    """Takes a node off its tensors; it stays in its graph's list until `remove_nodes`."""
    for tensor in node.inputs:
        _drop(tensor.outputs, node)
    for tensor in node.outputs:
        _drop(tensor.inputs, node)
    list.clear(node.inputs)
    list.clear(node.outputs)


def remove_nodes(graph: gs.Graph, doomed: Iterable[gs.Node]) -> None:
    """Detaches nodes, with everything in the graphs that they carry, and takes them out of `graph`."""
    gone: list[gs.Node] = []
    for node in doomed:
        gone.append(node)
        for inner in subgraphs(node):
            for nested in list(walk(inner)):
                detach(nested)
        detach(node)
    ids = {id(node) for node in gone}
    if len(ids) * _SWEEP > len(graph.nodes):
        graph.nodes[:] = [node for node in graph.nodes if id(node) not in ids]
        return
    for node in gone:
        places(graph).remove(node)


def remove_node(graph: gs.Graph, node: gs.Node) -> None:
    """`remove_nodes` for one node."""
    remove_nodes(graph, [node])


def why_not_replace(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> str:
    """Why `replace_uses(graph, old, new)` is impossible, as the end of a sentence; empty where it is possible."""
    if not is_output(graph, old):
        return ""
    if is_output(graph, new):
        return f"both '{old.name}' and '{new.name}' are graph outputs"
    if is_constant(new) or is_input(graph, new) or producer(new) is None:
        return f"output '{old.name}' is a graph output and would have no node of its own"
    if places(graph).find(producer(new)) is None:
        return f"output '{old.name}' is a graph output and '{new.name}' belongs to the graph around"
    return ""


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes everything that reads `old`, nested graphs and graph outputs included, read `new` instead.

    Where `old` is a graph output, `new` takes over its name (the interface of a model never changes).

    Raises:
        InternalError: `why_not_replace` has a reason.
    """
    reason = why_not_replace(graph, old, new)
    if reason:
        raise InternalError(f"cannot replace tensor '{old.name}': {reason}")
    for node, index in consumers(old):
        set_input(node, index, new)
    if is_output(graph, old):
        graph.outputs[:] = [new if output is old else output for output in graph.outputs]
        new.name, old.name = old.name, new.name


def index_of(graph: gs.Graph, node: gs.Node) -> int:
    """Position of a node in its graph's list, by identity.

    Raises:
        InternalError: it is not there.
    """
    place = places(graph).find(node)
    if place is None:
        raise InternalError(f"node '{node.name}' is not in graph '{graph.name}'")
    return place


def insert_at(graph: gs.Graph, place: int, made: Sequence[gs.Node]) -> None:
    """Puts new nodes, already wired, at a place of the list, in their order."""
    places(graph).insert(place, made)


def insert_before(graph: gs.Graph, anchor: gs.Node, node: gs.Node) -> None:
    """Puts a new node, already wired, right before `anchor` in the list."""
    insert_at(graph, index_of(graph, anchor), [node])


def insert_after(graph: gs.Graph, anchor: gs.Node, node: gs.Node) -> None:
    """Puts a new node, already wired, right behind `anchor` in the list."""
    insert_at(graph, index_of(graph, anchor) + 1, [node])


def sort(graph: gs.Graph) -> None:
    """Sorts the nodes of the graph and of all nested ones so that producers come first; a sorted graph stays as it is.

    Stable: among nodes that are ready, the one that stood first comes first. Linear but for a heap.

    Raises:
        ModelError: the graph has a cycle; the message names a node of it.
    """
    for inner in graphs(graph):
        _sort_one(inner)


def _sort_one(graph: gs.Graph) -> None:
    made_by = {t.name: i for i, node in enumerate(graph.nodes) for t in node.outputs if t.name}
    waits: list[set[int]] = []
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for i, node in enumerate(graph.nodes):
        names = {t.name for t in node.inputs}.union(*(_free(inner) for inner in subgraphs(node)))
        waits.append({made_by[name] for name in names if name in made_by})
        for j in waits[i]:
            readers[j].append(i)
    if all(max(wait, default=-1) < i for i, wait in enumerate(waits)):
        return
    missing = [len(wait) for wait in waits]
    ready = [i for i, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in readers[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, j)
    if len(order) < len(graph.nodes):
        stuck = next(graph.nodes[i] for i, count in enumerate(missing) if count)
        raise ModelError(
            f"the graph has a cycle: node '{stuck.name}' ({stuck.op}) needs, directly or not, its own result. "
            "Export the model again; a loop belongs into a Loop or Scan node."
        )
    graph.nodes[:] = [graph.nodes[i] for i in order]


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


# --- Opsets -----------------------------------------------------------------------------------------------------------


def set_opset(graph: gs.Graph, opset: int, others: Mapping[str, int] | None = None) -> None:
    """Sets the version of the standard domain (and of `others`) in the graph and all nested ones."""
    versions = {"": opset, **(others or {})}
    kept = [one for one in graph.import_domains or [] if one.domain not in (*versions, "ai.onnx")]
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()] + kept
    for inner in graphs(graph):
        inner.opset = opset
        inner.import_domains = imports


def since_version(node: gs.Node, opset: int) -> int | None:
    """The opset that defined a standard operator as `opset` understands it; None where there is no such operator."""
    try:
        return int(onnx.defs.get_schema(node.op, max_inclusive_version=opset).since_version)
    except onnx.defs.SchemaError:
        return None
