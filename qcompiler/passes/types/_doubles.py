"""Which doubles become FP32: those of parts that multiply. Sizes, positions and times that are computed in double stay.

A part is what double hands on without a Cast between: all tensors of a node belong together, and so do the two sides of
a nested graph's border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import Types
from qcompiler.ir.operators import CHANNEL_NORMS, MULTIPLYING, NORMS, RECURRENT

FP64 = np.dtype(np.float64)
_NETWORK = frozenset({*MULTIPLYING, *RECURRENT, *NORMS, *CHANNEL_NORMS})


def narrowed(graph: gs.Graph, types: Types) -> set[int]:
    """The ids of the double tensors that become FP32, in the graph and all nested ones.

    Args:
        graph: as it was read.
        types: of its tensors; those that a node makes out of doubles and that are in no schema count as doubles.
    """
    parts = _Parts()
    chosen: list[int] = []
    for node in graphs.walk(graph):
        ids = [id(tensor) for tensor in _of_node(node, types)]
        parts.join(ids)
        if node.op in _NETWORK and ids:
            chosen.append(ids[0])
    roots = {parts.root(one) for one in chosen}
    return {one for one in parts.known() if parts.root(one) in roots}


def _of_node(node: gs.Node, types: Types) -> list[gs.Tensor]:
    """The doubles that a node reads and writes, with those at the border of the graphs in it."""
    reads = [tensor for tensor in node.inputs if types.get(id(tensor)) == FP64]
    foreign = bool(reads) and not graphs.is_standard(node)
    writes = [t for t in node.outputs if t.name and (types.get(id(t)) == FP64 or (foreign and id(t) not in types))]
    inner = (tensor for one in graphs.subgraphs(node) for tensor in (*one.inputs, *one.outputs))
    return [*reads, *writes, *(tensor for tensor in inner if types.get(id(tensor)) == FP64)]


class _Parts:
    """Sets of ids that belong together."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def join(self, ids: Iterable[int]) -> None:
        first: int | None = None
        for one in ids:
            self._above.setdefault(one, one)
            if first is None:
                first = one
            self._above[self.root(one)] = self.root(first)

    def root(self, one: int) -> int:
        while self._above[one] != one:
            self._above[one] = self._above[self._above[one]]
            one = self._above[one]
        return one

    def known(self) -> Iterator[int]:
        return iter(self._above)
