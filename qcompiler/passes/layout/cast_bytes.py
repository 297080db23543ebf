"""Pictures that come as bytes become numbers right behind the input, and right in front of the output.

    image (uint8) → Transpose → Cast → Conv  ⇒  image (uint8) → Cast → Transpose → Conv

TensorRT takes uint8 at inputs and outputs alone, and only for a Cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import (
    add_constant,
    detach,
    insert_after,
    insert_at,
    remove_nodes,
    replace_uses,
    set_input,
    set_output,
)
from qcompiler.ir.graph import consumers, dtype_of, is_constant, is_op, is_output, onnx_type, producer, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

_BYTE = np.dtype(np.uint8)
_FLOAT = np.dtype(np.float32)  # which holds every byte
_MOVES = (
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Split", "Expand", "Tile",
    "Concat", "Pad", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
_VALUES = {"Concat": None, "Pad": 2}  # operators with further inputs of the same type: all of them, or this one


@dataclass(frozen=True)
class CastBytes(Pass):
    """Put the Cast of what comes or leaves as uint8 at the input or output, in front of what only moves data."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per input and output of bytes that something else than a Cast reads or makes."""
        names = Names(graph)
        own = {id(node) for node in graph.nodes}
        for tensor in graph.inputs:
            if dtype_of(tensor) == _BYTE and any(not is_op(node, "Cast") for node, _ in consumers(tensor)):
                yield _behind(graph, tensor, names, own)
        for tensor in graph.outputs:
            if dtype_of(tensor) == _BYTE and is_op(producer(tensor), *_MOVES):
                yield _in_front(graph, tensor, names)


def _behind(graph: gs.Graph, source: gs.Tensor, names: Names, own: set[int]) -> Note:
    """One Cast for all that is made of an input by moving; the Casts that come later start from floats."""
    region, movers = [source], dict[int, gs.Node]()
    for tensor in region:
        if is_output(graph, tensor):
            return Skipped(source.name, f"its bytes are given as output '{tensor.name}'")
        for node, _ in consumers(tensor):
            if is_op(node, "Cast", "Shape", "Size") or id(node) in movers:
                continue
            why = "" if id(node) in own else "in a nested graph "
            if why or not is_op(node, *_MOVES) or not _alike(node, region):
                return Skipped(source.name, f"node '{node.name}' ({node.op}) {why}reads its bytes")
            movers[id(node)] = node
            region += [output for output in node.outputs if output.name]
    cast = gs.Variable(names.fresh(f"{source.name}/float"), _FLOAT, source.shape)
    readers = consumers(source)
    for node, index in readers:
        set_input(node, index, cast)
    insert_at(
        graph, 0, [gs.Node("Cast", names.fresh(f"{source.name}/Cast"), {"to": onnx_type(_FLOAT)}, [source], [cast])]
    )
    region[0] = cast
    for node in movers.values():
        _constants_as_floats(node, names)
    for tensor in region[1:]:
        tensor.dtype = _FLOAT
    remove_nodes(graph, list(_needless(graph, region)))
    return Changed(source.name, f"cast to {_FLOAT} first, in front of {', '.join(node.op for node in movers.values())}")


def _alike(node: gs.Node, region: list[gs.Tensor]) -> bool:
    """Whether all that a node moves comes from the input or is constant."""
    known = {id(tensor) for tensor in region}
    moved = (
        node.inputs
        if node.op == "Concat"
        else [*node.inputs[:1], *node.inputs[2:3]]
        if node.op == "Pad"
        else node.inputs[:1]
    )
    return all(id(tensor) in known or is_constant(tensor) or not tensor.name for tensor in moved)


def _constants_as_floats(node: gs.Node, names: Names) -> None:
    if node.op not in _VALUES:
        return
    only = _VALUES[node.op]
    for index, tensor in enumerate(node.inputs):
        if is_constant(tensor) and only in (None, index):
            values = values_of(tensor).astype(_FLOAT)
            set_input(node, index, add_constant(names.fresh(f"{tensor.name}/float"), values))


def _needless(graph: gs.Graph, region: list[gs.Tensor]) -> Iterator[gs.Node]:
    """Casts to the type that is there now, with their readers moved to what they read."""
    for tensor in region:
        for node, _ in consumers(tensor):
            if is_op(node, "Cast") and node.attrs["to"] == onnx_type(_FLOAT) and not is_output(graph, node.outputs[0]):
                replace_uses(graph, node.outputs[0], tensor)
                detach(node)
                yield node


def _in_front(graph: gs.Graph, output: gs.Tensor, names: Names) -> Note:
    """The Cast to bytes changes places with what moves its result on the way to an output."""
    chain: list[gs.Node] = []
    node = producer(output)
    while node is not None and is_op(node, *_MOVES) and node.op not in _VALUES and len(node.outputs) == 1:
        chain.append(node)
        if len(node.inputs[0].outputs) != 1 or is_output(graph, node.inputs[0]):
            break
        node = producer(node.inputs[0])
    if node is None or not is_op(node, "Cast") or node.attrs["to"] != onnx_type(_BYTE):
        return Skipped(
            output.name, f"its bytes are made by '{chain[-1].name if chain else output.name}', not by a Cast"
        )
    source = node.inputs[0]
    set_input(chain[-1], 0, source)
    for mover in chain[1:]:
        mover.outputs[0].dtype = source.dtype
    moved = gs.Variable(names.fresh(f"{output.name}/moved"), source.dtype, output.shape)
    set_output(chain[0], 0, moved)
    detach(node)
    remove_nodes(graph, [node])
    cast = gs.Node("Cast", names.fresh(f"{output.name}/Cast"), {"to": onnx_type(_BYTE)}, [moved], [output])
    insert_after(graph, chain[0], cast)
    return Changed(output.name, f"cast to bytes last, behind {', '.join(mover.op for mover in reversed(chain))}")
