"""Editing graphs: constants, inputs, nodes put in, replaced and removed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import InternalError, ModelError
from qcompiler.ir.graph import (
    consumers,
    free,
    graphs,
    is_constant,
    is_input,
    is_output,
    producer,
    subgraphs,
    tensors,
    walk,
)
from qcompiler.ir.gs_classes import Constant
from qcompiler.ir.made import Held
from qcompiler.ir.places import places
from qcompiler.support import memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_SWEEP = 64  # of so many nodes, taking one out by its place costs about what a sweep over all of them does


def add_constant(name: str, values: Held) -> gs.Constant:
    """An initializer; it becomes part of a graph by being read. `name` must be new: take it from `Names`."""
    return Constant(name, memory.put_down(values) if isinstance(values, np.ndarray) else values)


def put_down(graph: gs.Graph) -> None:
    """Puts large weights down on disk that stand in memory, where there is no room for all of them."""
    if not memory.room().tight:
        return
    done: dict[int, tuple[Array, Array]] = {}  # by id of the array, which is kept that nobody else gets its id
    for inner in graphs(graph):
        for tensor in tensors(inner):
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray):
                held = tensor._values
                if id(held) not in done:
                    done[id(held)] = held, memory.put_down(held)
                tensor._values = done[id(held)][1]


def copy_constant(constant: gs.Constant, name: str) -> gs.Constant:
    """Another initializer over the same array, which is not copied (nor loaded, where graphsurgeon has not yet)."""
    return Constant(name, constant._values, export_dtype=constant._export_dtype)


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
    if all(made_by.get(name, -1) < i for i, node in enumerate(graph.nodes) for name in _read_by(node)):
        return  # as nearly always: nothing is set up for it
    waits = [{made_by[name] for name in _read_by(node) if name in made_by} for node in graph.nodes]
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for i, wait in enumerate(waits):
        for j in wait:
            readers[j].append(i)
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


def _read_by(node: gs.Node) -> Iterator[str]:
    """Names that a node reads, also those that its nested graphs read from around it; some more than once."""
    yield from (tensor.name for tensor in node.inputs)
    for inner in subgraphs(node):
        yield from free(inner)


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
