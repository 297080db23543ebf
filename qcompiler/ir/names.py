"""New names for nodes and tensors of a graph."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import graphs, tensors


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
