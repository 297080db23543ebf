"""Sequences and optionals whose elements are known are read without them.

    SplitToSequence(x) → SequenceAt(1)            ⇒  Split(x)[1]
    SequenceConstruct(a, b) → ConcatFromSequence  ⇒  Concat(a, b)
    Optional(x) → OptionalGetElement              ⇒  x

PyTorch writes `chunk`, `split`, `unbind` and lists of tensors so. No TensorRT reads them, and a layer behind one has an
input that no range can be found for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

_OPSET = 13  # from which on sizes of Split and axes of Squeeze are inputs
Elements = Sequence[gs.Tensor]


@dataclass(frozen=True)
class UnpackSequences(Pass):
    """Read the elements of sequences and optionals directly where they are known; what makes them is dead then."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node that read a sequence or optional, and one per such node that stays."""
        if int(graph.opset) < _OPSET:
            return
        names = Names(graph)
        for inner in graphs.graphs(graph):
            yield from _Unpacking(inner, names).notes()


class _Unpacking:
    """One graph: what its sequences and optionals hold, by identity of their tensors."""

    def __init__(self, graph: gs.Graph, names: Names) -> None:
        self._graph, self._names = graph, names
        self._held: dict[int, Elements] = {}
        self._makers: list[gs.Node] = []  # of sequences and optionals, and what was put in front of them

    def notes(self) -> Iterator[Note]:
        for node in list(self._graph.nodes):
            if not graphs.is_standard(node):
                continue
            made = self._made(node)
            if made is not None:
                self._held[id(node.outputs[0])] = made
                self._makers.append(node)
                continue
            read = self._read(node)
            if read is None:
                if node.op in _READERS:
                    yield Skipped(node.name, f"{node.op}: what '{node.inputs[0].name}' holds depends on the data")
                continue
            why = edit.why_not_replace(self._graph, node.outputs[0], read)
            if why:
                read = self._copied(node, read)
            edit.replace_uses(self._graph, node.outputs[0], read)
            edit.remove_node(self._graph, node)
            yield Changed(node.name, f"{node.op} removed; its readers read '{read.name}'")
        self._sweep()

    def _sweep(self) -> None:
        """Takes out what is not read any more: what was made last first, as it reads what was made before."""
        for node in reversed(self._makers):
            if not any(tensor.outputs or graphs.is_output(self._graph, tensor) for tensor in node.outputs):
                edit.remove_node(self._graph, node)

    def _made(self, node: gs.Node) -> Elements | None:
        """What the sequence or optional that a node gives holds; None for other nodes, and where that is not known."""
        if node.op in ("SequenceConstruct", "Optional"):
            return list(node.inputs) or None  # an empty optional holds nothing that could be read
        if node.op == "SequenceEmpty":
            return []
        if node.op == "SplitToSequence":
            return self._split(node)
        held = self._held.get(id(node.inputs[0])) if node.inputs else None
        if held is None:
            return None
        if node.op == "Identity":
            return held
        if node.op == "SequenceInsert":
            at = _index(node, 2, len(held) + 1, missing=len(held))
            return None if at is None else [*held[:at], node.inputs[1], *held[at:]]
        if node.op == "SequenceErase":
            at = _index(node, 1, len(held), missing=len(held) - 1)
            return None if at is None else [*held[:at], *held[at + 1 :]]
        return None

    def _read(self, node: gs.Node) -> gs.Tensor | None:
        """The tensor that stands for what a node reads out of a sequence or optional; None where it is not known."""
        if node.op not in _READERS or not node.inputs:
            return None
        if node.op == "OptionalGetElement" and id(node.inputs[0]) not in self._held and _is_tensor(node.inputs[0]):
            return node.inputs[0]  # from opset 18 on it takes a tensor, too
        held = self._held.get(id(node.inputs[0]))
        if held is None:
            return None
        if node.op == "OptionalGetElement":
            return held[0] if _is_tensor(held[0]) else None
        if node.op == "SequenceAt":
            at = _index(node, 1, len(held))
            return None if at is None else held[at]
        if node.op == "SequenceLength":
            return edit.add_constant(self._names.fresh(f"{node.name}/length"), np.array(len(held), np.int64))
        return self._joined(node, held) if held else None

    def _joined(self, node: gs.Node, held: Elements) -> gs.Tensor:
        """What ConcatFromSequence gives: a Concat of the elements, which get a new axis first where it says so."""
        axis, parts = int(node.attrs["axis"]), list(held)
        if node.attrs.get("new_axis", 0):
            where = edit.add_constant(self._names.fresh(f"{node.name}/axis"), np.array([axis], np.int64))
            parts = [self._new(node, "Unsqueeze", [part, where]) for part in parts]
        return self._new(node, "Concat", parts, {"axis": axis})

    def _split(self, node: gs.Node) -> Elements | None:
        """What SplitToSequence gives, as outputs of a Split in front of it; None where their number is not known."""
        axis = int(node.attrs.get("axis", 0))
        sizes = _sizes(node, axis)
        if sizes is None:
            return None
        parts = [gs.Variable(self._names.fresh(f"{node.name}/part")) for _ in sizes]
        table = edit.add_constant(self._names.fresh(f"{node.name}/sizes"), np.array(sizes, np.int64))
        name = self._names.fresh(f"{node.name}/Split")
        self._before(node, gs.Node("Split", name, {"axis": axis}, [node.inputs[0], table], parts))
        for part, size in zip(parts, sizes, strict=True):
            part.dtype, part.shape = node.inputs[0].dtype, _resized(node.inputs[0], axis, size)
        if graphs.is_present(node, 1) or node.attrs.get("keepdims", 1):
            return parts
        where = edit.add_constant(self._names.fresh(f"{node.name}/axis"), np.array([axis], np.int64))
        return [self._new(node, "Squeeze", [part, where]) for part in parts]

    def _copied(self, node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
        """The same under a name of its own, for a graph output."""
        return self._new(node, "Identity", [tensor])

    def _new(self, node: gs.Node, op: str, inputs: list[gs.Tensor], attrs: dict[str, int] | None = None) -> gs.Tensor:
        output = gs.Variable(self._names.fresh(f"{node.name}/{op}.out"), inputs[0].dtype)
        self._before(node, gs.Node(op, self._names.fresh(f"{node.name}/{op}"), attrs or {}, inputs, [output]))
        return output

    def _before(self, node: gs.Node, made: gs.Node) -> None:
        edit.insert_before(self._graph, node, made)
        self._makers.append(made)


_READERS = frozenset({"SequenceAt", "SequenceLength", "ConcatFromSequence", "OptionalGetElement"})


def _is_tensor(tensor: gs.Tensor) -> bool:
    return graphs.dtype_of(tensor) is not None and (graphs.is_constant(tensor) or tensor.type in (None, "tensor_type"))


def _index(node: gs.Node, at: int, count: int, missing: int | None = None) -> int | None:
    """A position among `count`, as input `at` gives it, which may count from the end; None where it is not constant."""
    if not graphs.is_present(node, at):
        return missing
    value = graphs.constant_value(node.inputs[at])
    if value is None:
        return None
    index = int(value.reshape(-1)[0])
    index += count if index < 0 else 0
    return index if 0 <= index < count else None


def _sizes(node: gs.Node, axis: int) -> list[int] | None:
    """Sizes of the parts of a SplitToSequence: as they are listed, of equal size but for the last, or 1 each."""
    listed = graphs.constant_value(node.inputs[1]) if graphs.is_present(node, 1) else np.array(1)
    if listed is None:
        return None
    if listed.ndim:
        return [int(size) for size in listed]
    shape = graphs.shape_of(node.inputs[0])
    total, size = None if shape is None else shape[axis], int(listed)
    if not isinstance(total, int) or size < 1:
        return None
    return [min(size, total - start) for start in range(0, total, size)]


def _resized(tensor: gs.Tensor, axis: int, size: int) -> list[int | str | None] | None:
    shape = graphs.shape_of(tensor)
    if shape is None:
        return None
    found = list(shape)
    found[axis] = size
    return found
