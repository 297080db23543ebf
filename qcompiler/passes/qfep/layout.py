"""Runs a decoder at two lengths to see which axes of its tensors are the sequence, and what a prefix leaves behind.

Measured rather than inferred: exporters leave half of the shapes open, and an axis that grows with the text is the
sequence whatever its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.qfep import sites
from qcompiler.passes.qfep.sites import Interface, KeyValueWay, Site, UnfitError
from qcompiler.runtime.stream import OpenModel, run_once

if TYPE_CHECKING:
    from numpy.typing import NDArray


SHORT = 5  # tokens of the shorter probe
_CAUSAL = 1e-3  # how far keys of a prefix may move, relative, when text follows it


@dataclass(frozen=True, eq=False)
class Anchor:
    """Where the rows of a prefix go in front of keys or values.

    Attributes:
        reader: the node in front of which they are put.
        index: which of its inputs.
        tensor: what it reads.
        axes: heads, sequence and width; axis 0 is the batch.
        passed: the nodes from there to the product, the product not counted.
    """

    reader: gs.Node
    index: int
    tensor: gs.Tensor
    axes: tuple[int, int, int]
    passed: tuple[gs.Node, ...]

    def arranged(self, rows: NDArray[Any]) -> NDArray[Any]:
        """[heads, length, width] in the order of the tensor's axes, with a batch of 1."""
        return np.ascontiguousarray(np.transpose(rows[None], np.argsort((0, *self.axes))))

    def rows(self, value: NDArray[Any]) -> NDArray[Any]:
        """The opposite: [heads, length, width] of the first of the batch."""
        return np.ascontiguousarray(np.transpose(value, (0, *self.axes))[0])


@dataclass(frozen=True, eq=False)
class Change:
    """A positional input that has to be computed as if the text were longer.

    Attributes:
        reader: the node that reads it.
        index: which of its inputs.
        tensor: the positional tensor.
        axes: along which the rows of the prefix are cut off again.
    """

    reader: gs.Node
    index: int
    tensor: gs.Tensor
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """All that baking needs to know of a decoder without cache.

    Attributes:
        anchors: keys and values in turn, by attention.
        changes: positional inputs.
        grown: by name of a data tensor, how many elements longer each of its axes is when the text is longer by one.
        known: identities of the positional tensors.
        face: inputs and outputs.
    """

    anchors: tuple[tuple[Anchor, Anchor], ...]
    changes: tuple[Change, ...]
    grown: dict[str, tuple[int, ...]]
    known: set[int]
    face: Interface


def layout(graph: gs.Graph, face: Interface) -> Layout:
    """Looks at a decoder without cache.

    Raises:
        UnfitError: its attentions are not understood.
    """
    known = sites.positional(graph)
    found = sites.sites(graph, known)
    shaped = [node.inputs[0] for node in graph.nodes if graphs.is_op(node, "Shape", "Size")]
    entries = [entry for site in found for entry in (site.key, site.value)]
    every = {id(node) for entry in entries for node, _, _ in entry.steps[1:]}
    border = sites.frontier(graph, known, every)
    names = [tensor.name for entry in entries for _, _, tensor in entry.steps]
    names += [tensor.name for _, _, tensor in border] + [one.name for one in shaped if not graphs.is_constant(one)]
    short, long = (_run(graph, face, list(dict.fromkeys(names)), length) for length in (SHORT, SHORT + 1))
    grown = {name: _growth(name, short[name], long[name]) for name in names}
    for node in graph.nodes:
        if graphs.is_op(node, "Size") and any(grown.get(node.inputs[0].name, ())):
            raise UnfitError(f"node '{node.name}' (Size) counts the elements of what has a token an entry")
    anchors = tuple((_anchor(site, site.key, short, grown), _anchor(site, site.value, short, grown)) for site in found)
    passed = {id(node) for pair in anchors for anchor in pair for node in anchor.passed}
    between = {id(node) for site in found for node in site.between}
    changes = tuple(
        Change(node, index, tensor, _cut(id(node), grown[tensor.name], passed, between))
        for node, index, tensor in sites.frontier(graph, known, passed)
        if any(grown[tensor.name]) or not np.array_equal(short[tensor.name], long[tensor.name])
    )
    return Layout(anchors, changes, grown, known, face)


def _run(graph: gs.Graph, face: Interface, names: Sequence[str], length: int) -> dict[str, NDArray[Any]]:
    feeds = face.filler.feed([[at % 2 for at in range(length)]] * _batch(face))
    return {**feeds, **run_once(graph, feeds, outputs=names)}


def _batch(face: Interface) -> int:
    shape = face.inputs[face.filler.ids][1]
    return shape[0] if shape and isinstance(shape[0], int) else 2


def _growth(name: str, short: NDArray[Any], long: NDArray[Any]) -> tuple[int, ...]:
    if short.ndim != long.ndim:
        raise UnfitError(f"the rank of tensor '{name}' depends on the length of the text")
    return tuple(b - a for a, b in zip(short.shape, long.shape, strict=True))


def _cut(node: int, grown: tuple[int, ...], passed: set[int], between: set[int]) -> tuple[int, ...]:
    """Axes of the text's own rows; of a mask, the last one counts keys, and sizes are whole."""
    if node in passed:
        return ()
    axes = [axis for axis, more in enumerate(grown) if more]
    return tuple(axis for axis in axes if node not in between or axis != len(grown) - 1)


def _anchor(
    site: Site, entry: KeyValueWay, values: dict[str, NDArray[Any]], grown: dict[str, tuple[int, ...]]
) -> Anchor:
    """The place with the fewest heads: in front of the repetition that grouped queries need."""
    best: tuple[tuple[int, int, int], Anchor] | None = None
    nodes = [node for node, _, _ in entry.steps]
    for at, (reader, index, tensor) in enumerate(entry.steps):
        more, shape = grown[tensor.name], values[tensor.name].shape
        if len(shape) != 4 or more[0] or sorted(more) != [0, 0, 0, 1]:
            continue
        sequence = more.index(1)
        heads, width = {1: (2, 3), 2: (1, 3), 3: (1, 2)}[sequence]
        anchor = Anchor(reader, index, tensor, (heads, sequence, width), tuple(nodes[1 : at + 1]))
        rank = (shape[heads], 0 if sequence == 2 else 1, at)
        if best is None or rank < best[0]:
            best = (rank, anchor)
    if best is None:
        raise UnfitError(
            f"the keys or values of the attention at softmax '{site.softmax.name}' are nowhere "
            "[batch, heads, sequence, size]"
        )
    return best[1]


def keys_and_values(
    graph: gs.Graph, face: Interface, ids: Sequence[int], found: Layout | None
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """What a prefix leaves in each attention: keys and values [kv_heads, length, size].

    Args:
        graph: the float decoder.
        face: its inputs and outputs.
        ids: the prefix.
        found: its layout; None where it has a cache.

    Raises:
        UnfitError: what follows changes them: the model looks ahead.
    """
    batch = max(face.filler.rows, 1)
    feeds = face.filler.feed([list(ids)] * batch)
    if found is None:
        values = run_once(graph, feeds, outputs=[name for _, name in face.past])
        flat = [np.ascontiguousarray(values[name][0]) for _, name in face.past]
        return list(zip(flat[::2], flat[1::2], strict=True))
    names = [anchor.tensor.name for pair in found.anchors for anchor in pair]
    session = OpenModel(graph, outputs=list(dict.fromkeys(names)), quick=True)
    alone = session.run(feeds)
    followed = session.run(face.filler.feed([[*ids, *reversed(ids), ids[0]]] * batch))
    taken: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for pair in found.anchors:
        for anchor in pair:
            first, second = anchor.rows(alone[anchor.tensor.name]), anchor.rows(followed[anchor.tensor.name])
            moved = float(np.abs(first - second[:, : len(ids)]).max())
            if not moved <= _CAUSAL * float(np.abs(first).max() or 1.0):
                raise UnfitError("it is not causal: what follows a token changes its keys and values")
        key, value = (anchor.rows(alone[anchor.tensor.name]) for anchor in pair)
        taken.append((key, value))
    return taken
