"""softmax(q·Kᵀ)·V  ⇒  softmax(q·[Kp; K]ᵀ)·[Vp; V]: keys and values of a prefix become constants of the graph.

After the quantization-free prefix of Yang et al. 2024, arXiv 2405.14428, §4.2, whose cache the caller has to manage;
here the graph has it inside, and its inputs and outputs mean what they meant before.

With a cache the edit is at the inputs: past' = [prefix; past], mask' = [ones; mask], positions' = positions + L, and
what the model gives back is cut to what the caller's texts left there. Without one the constants go in front of keys
and values of every attention, and whatever depends on positions alone (rotations, masks, position embeddings) is
computed as if the text were longer by L and cut to the rows of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.qfep import sites
from qcompiler.passes.qfep.layout import Anchor, Layout, layout
from qcompiler.passes.qfep.prefix import Prefix
from qcompiler.passes.qfep.sites import MARK, POSITIONS, Interface, UnfitError
from qcompiler.runtime import shapes
from qcompiler.runtime.token_feeds import MASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray


_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class BakePrefix(Pass):
    """Put keys and values of a prefix in front of every attention, as constants.

    A graph that has a prefix already is left alone, and so is one whose attentions are not understood.

    Attributes:
        prefix: what to put there; None for nothing.
    """

    prefix: Prefix | None = field(default=None, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = (
        None  # on purpose: `qcompiler.outliers.qfep.proof.prove` holds it against [prefix + text]
    )

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per attention and positional input, or the one reason why nothing was done."""
        if self.prefix is None:
            return
        if sites.is_baked(graph):
            yield Skipped(graph.name or "graph", "a prefix is baked in already")
            return
        try:
            face = sites.interface(graph)
            found = None if face.past else layout(graph, face)
            _check_fit(self.prefix, face, found)
        except UnfitError as error:
            yield Skipped(graph.name or "graph", str(error))
            return
        bench = _Bench(graph, face, len(self.prefix.ids))
        yield from _with_cache(bench, self.prefix) if found is None else _without_cache(bench, self.prefix, found)
        edit.sort(graph)
        shapes.infer(graph)  # keys are more than queries now


def _check_fit(prefix: Prefix, face: Interface, found: Layout | None) -> None:
    count = len(face.past) // 2 if found is None else len(found.anchors)
    if len(prefix.keys) != count:
        raise UnfitError(f"the prefix is of {len(prefix.keys)} attentions and the model has {count}")


class _Bench:
    """Makes nodes of the graph; what several places need, only once."""

    def __init__(self, graph: gs.Graph, face: Interface, length: int) -> None:
        self.graph, self.face, self.length = graph, face, length
        self._names = Names(graph)
        self._ids = next(one for one in graph.inputs if one.name == face.filler.ids)
        self._rows: gs.Tensor | None = None
        self._spread: dict[int, gs.Tensor] = {}
        self._slices: dict[tuple[int, tuple[int, ...]], gs.Tensor] = {}

    def fresh(self, name: str) -> str:
        return self._names.fresh(name)

    def constant(self, what: str, values: NDArray[Any]) -> gs.Constant:
        return edit.add_constant(self._names.fresh(f"{MARK}{what}"), values)

    def integers(self, what: str, *values: int) -> gs.Constant:
        return self.constant(what, np.asarray(values, np.int64))

    def node(
        self, op: str, what: str, inputs: list[gs.Tensor], like: gs.Tensor | None = None, **attrs: Any
    ) -> gs.Tensor:
        """A node at the end of the graph, which is sorted later; returns what it writes."""
        name = self._names.fresh(f"{MARK}{what}")
        shape = None if like is None or like.shape is None else [None] * len(like.shape)
        output = gs.Variable(self._names.fresh(f"{name}.out"), dtype=None if like is None else like.dtype, shape=shape)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [output]))
        return output

    def for_batch(self, what: str, values: NDArray[Any]) -> gs.Tensor:
        """A constant with a batch of 1, repeated for as many rows as the ids have."""
        constant = self.constant(what, values)
        shape = self.face.inputs[self.face.filler.ids][1]
        if shape and isinstance(shape[0], int) and shape[0] == 1:
            return constant
        return self.node("Expand", f"{what}.batch", [constant, self._sizes(values.ndim)], constant)

    def _sizes(self, rank: int) -> gs.Tensor:
        if self._rows is None:
            whole = self.node("Shape", "shape", [self._ids])
            first, last = self.integers("first", 0), self.integers("last", 1)
            self._rows = self.node("Slice", "rows", [whole, first, last, first])
        if rank not in self._spread:
            ones = self.integers("ones", *[1] * (rank - 1))
            self._spread[rank] = self.node("Concat", "sizes", [self._rows, ones], axis=0)
        return self._spread[rank]

    def cut(self, tensor: gs.Tensor, axes: tuple[int, ...], what: str) -> gs.Tensor:
        """A tensor without its first elements along some axes."""
        if not axes:
            return tensor
        if (id(tensor), axes) not in self._slices:
            starts, ends = [self.length] * len(axes), [_END] * len(axes)
            bounds = [self.integers(what, *part) for part in (starts, ends, axes)]
            self._slices[id(tensor), axes] = self.node("Slice", what, [tensor, *bounds], tensor)
        return self._slices[id(tensor), axes]

    def mask(self, tensor: gs.Tensor) -> gs.Tensor:
        """Ones in front of a mask [batch, keys]."""
        dtype = graphs.dtype_of(tensor) or np.dtype(np.int64)
        ones = self.for_batch("visible", np.ones((1, self.length), dtype))
        return self.node("Concat", "mask", [ones, tensor], tensor, axis=1)

    def moved(self, tensor: gs.Tensor) -> gs.Tensor:
        """Positions behind the prefix."""
        dtype = graphs.dtype_of(tensor) or np.dtype(np.int64)
        return self.node("Add", "positions", [tensor, self.constant("length", np.asarray(self.length, dtype))], tensor)

    def all_positions(self, tensor: gs.Tensor) -> gs.Tensor:
        """Positions of prefix and text."""
        dtype = graphs.dtype_of(tensor) or np.dtype(np.int64)
        own = np.arange(self.length, dtype=dtype)
        flat = tensor.shape is not None and len(tensor.shape) == 1
        front = self.constant("own", own) if flat else self.for_batch("own", own[None])
        return self.node("Concat", "whole", [front, self.moved(tensor)], tensor, axis=-1)


# --- With a cache -----------------------------------------------------------------------------------------------------


def _with_cache(bench: _Bench, prefix: Prefix) -> Iterator[Note]:
    graph = bench.graph
    inputs = {one.name: one for one in graph.inputs}
    for name, tensor in inputs.items():
        if name in MASKS:
            yield _replace(tensor, bench.mask, f"{bench.length} ones in front")
        elif name in (*POSITIONS, "cache_position"):
            yield _replace(tensor, bench.moved, f"{bench.length} added")
    for number, (name, present) in enumerate(bench.face.past):
        rows = (prefix.keys, prefix.values)[number % 2][number // 2]
        tensor = inputs[name]
        dtype = graphs.dtype_of(tensor)

        def longer(past: gs.Tensor, rows: NDArray[Any] = rows, dtype: Any = dtype, number: int = number) -> gs.Tensor:
            front = bench.for_batch(f"{number // 2}.{('key', 'value')[number % 2]}", rows[None].astype(dtype))
            return bench.node("Concat", "past", [front, past], past, axis=2)

        yield _replace(tensor, longer, f"keys or values of {bench.length} tokens in front; '{present}' is cut to match")
        _cut_output(bench, present)


def _replace(tensor: gs.Tensor, make: Any, what: str) -> Note:
    """Makes all readers of an input read what is made of it."""
    readers = graphs.consumers(tensor)
    new = make(tensor)
    for node, index in readers:
        edit.set_input(node, index, new)
    return Changed(tensor.name, what)


def _cut_output(bench: _Bench, name: str) -> None:
    graph = bench.graph
    whole = next(one for one in graph.outputs if one.name == name)
    shorter = bench.cut(whole, (2,), "present")
    shorter.dtype, shorter.shape = whole.dtype, whole.shape
    graph.outputs[:] = [shorter if one is whole else one for one in graph.outputs]
    shorter.name, whole.name = whole.name, shorter.name


# --- Without a cache --------------------------------------------------------------------------------------------------


def _without_cache(bench: _Bench, prefix: Prefix, found: Layout) -> Iterator[Note]:
    twins = _Longer(bench, found)
    for change in found.changes:
        twin = bench.cut(twins.of(change.tensor), change.axes, "text")
        edit.set_input(change.reader, change.index, twin)
        yield Changed(change.reader.name, f"'{change.tensor.name}' computed behind {bench.length} tokens")
    done: set[tuple[int, int]] = set()
    for number, (pair, *rows) in enumerate(zip(found.anchors, prefix.keys, prefix.values, strict=True)):
        for anchor, kind, one in zip(pair, ("key", "value"), rows, strict=True):
            if (id(anchor.reader), anchor.index) not in done:  # attentions may share what they read
                done.add((id(anchor.reader), anchor.index))
                yield _put(bench, anchor, f"{number}.{kind}", one)


def _put(bench: _Bench, anchor: Anchor, what: str, rows: NDArray[Any]) -> Note:
    dtype = graphs.dtype_of(anchor.tensor) or rows.dtype
    front = bench.for_batch(what, anchor.arranged(rows.astype(dtype)))
    joined = bench.node("Concat", f"{what}.joined", [front, anchor.tensor], anchor.tensor, axis=anchor.axes[1])
    edit.set_input(anchor.reader, anchor.index, joined)
    return Changed(anchor.reader.name, f"{what} of {bench.length} tokens in front of '{anchor.tensor.name}'")


class _Longer:
    """Twins of positional tensors, as they would be if the text were longer by the prefix."""

    def __init__(self, bench: _Bench, found: Layout) -> None:
        self._bench, self._found = bench, found
        self._twins: dict[int, gs.Tensor] = {}
        behind = {id(node) for pair in found.anchors for anchor in pair for node in anchor.passed}
        # What keys and values are after they got their prefix says the right size by itself
        self._natural = {id(out) for node in bench.graph.nodes if id(node) in behind for out in node.outputs}
        self._inputs = {id(one) for one in bench.graph.inputs}

    def of(self, tensor: gs.Tensor) -> gs.Tensor:
        """The twin of a tensor and, before it, of all that it is made of."""
        waiting = [tensor]
        while waiting:
            one = waiting[-1]
            missing = [] if id(one) in self._twins else self._sources(one)
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if id(one) not in self._twins:
                self._make(one)
        return self._twins[id(tensor)]

    def _sources(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        node = graphs.producer(tensor)
        if node is None:
            return []
        return [one for one in node.inputs if id(one) in self._found.known and id(one) not in self._twins]

    def _make(self, tensor: gs.Tensor) -> None:
        node = graphs.producer(tensor)
        if node is None:
            self._twins[id(tensor)] = self._of_input(tensor)
        elif graphs.is_op(node, "Shape", "Size") and id(node.inputs[0]) not in self._found.known:
            self._twins[id(tensor)] = self._size(node)
        elif all(self._twins.get(id(one), one) is one for one in node.inputs):
            self._twins.update((id(one), one) for one in node.outputs)
        else:
            self._copy(node)

    def _of_input(self, tensor: gs.Tensor) -> gs.Tensor:
        if tensor.name in MASKS:
            return self._bench.mask(tensor)
        return self._bench.all_positions(tensor)

    def _size(self, node: gs.Node) -> gs.Tensor:
        """The shape of data, with the elements more that it would have."""
        of, size = node.inputs[0], node.outputs[0]
        more = [one * self._bench.length for one in self._found.grown.get(of.name, ())]
        start, end = node.attrs.get("start", 0), node.attrs.get("end")
        part = more[start:end]
        if not any(part) or id(of) in self._natural:
            return size
        return self._bench.node("Add", "size", [size, self._bench.integers("more", *part)], size)

    def _copy(self, node: gs.Node) -> None:
        inputs = [self._twins.get(id(one), one) for one in node.inputs]
        outputs = [
            gs.Variable(self._bench.fresh(f"{MARK}{one.name}"), dtype=one.dtype) if one.name else one
            for one in node.outputs
        ]
        twin = gs.Node(node.op, self._bench.fresh(f"{MARK}{node.name}"), dict(node.attrs), inputs, outputs, node.domain)
        self._bench.graph.nodes.append(twin)
        self._twins.update((id(one), new) for one, new in zip(node.outputs, outputs, strict=True))
