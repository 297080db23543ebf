"""Where each node stands in its graph's list, without looking through the list.

Inserting before, behind and removing keep an index of the list at hand instead of counting it again. The list stays an
ordinary one that anybody may edit directly: a place is only believed where the node really stands there, and is
otherwise found by counting once more.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import onnx_graphsurgeon as gs

_NEAR = 32  # how far left of its place a node is looked for that was inserted after the count


class Places:
    """The places of the nodes of one list.

    Counting gives each node a key, its place at that time. A node that is inserted later gets a key half-way before
    that of the counted node behind it. A place is the key, plus what was inserted and minus what was removed before it.
    """

    def __init__(self, nodes: list[gs.Node]) -> None:
        self.nodes = nodes
        self._count()

    def _count(self) -> None:
        self._keys: dict[int, float] = {id(node): float(i) for i, node in enumerate(self.nodes)}
        self._end = len(self.nodes)
        self._inserted: list[float] = []
        self._removed: list[float] = []

    def find(self, node: gs.Node) -> int | None:
        """The place of a node, by identity; None where it is not in the list."""
        place = self._known(node)
        if place is None:
            self._count()
            place = self._known(node)
        return place

    def insert(self, place: int, made: Sequence[gs.Node]) -> None:
        """Puts nodes at `place`, before the node that stands there."""
        key = self._key_at(place)
        self.nodes[place:place] = made
        for node in made:
            self._keys[id(node)] = key
            insort(self._inserted, key)

    def remove(self, node: gs.Node) -> None:
        """Takes a node out; one that is not in the list is no error."""
        place = self.find(node)
        if place is not None:
            del self.nodes[place]
            insort(self._removed, self._keys.pop(id(node)))

    def _known(self, node: gs.Node) -> int | None:
        key = self._keys.get(id(node))
        if key is None:
            return None
        place = min(self._place(math.ceil(key)), len(self.nodes) - 1)
        for at in range(place, max(place - _NEAR, -1), -1):
            if self.nodes[at] is node:
                return at
        return None

    def _place(self, key: int) -> int:
        """The place of the counted node with this key, or where it would stand."""
        return key + bisect_left(self._inserted, key) - bisect_left(self._removed, key)

    def _key_at(self, place: int) -> float:
        """The key of a node that is inserted at `place`."""
        if place < len(self.nodes):
            behind = self.nodes[place]
            if self._known(behind) != place:
                self._count()
            return math.ceil(self._keys[id(behind)]) - 0.5
        if self._place(self._end) != len(self.nodes):
            self._count()
        return self._end - 0.5


def places(graph: gs.Graph) -> Places:
    """The places of a graph's nodes; made when they are first asked for."""
    known: Places | None = vars(graph).get("_places")
    if known is None or known.nodes is not graph.nodes:
        known = Places(graph.nodes)
        graph._places = known
    return known
