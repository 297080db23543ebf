"""Nodes whose results nobody reads go away, and with them the initializers that only they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import remove_nodes
from qcompiler.ir.graph import is_output, subgraphs
from qcompiler.passes.base import Changed, Fact, Note, Pass


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove nodes that no output depends on; unused graph inputs stay, they belong to the interface.

    Optional outputs that nobody reads (the mask of Dropout, the indices of MaxPool) stay with their node.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per removed node, last node first, which is the order that lets one sweep suffice."""
        yield from _sweep(graph)


def _sweep(graph: gs.Graph) -> Iterator[Note]:
    dead: list[gs.Node] = []
    gone: set[int] = set()
    for node in reversed(graph.nodes):
        if _needed(graph, node, gone):
            # Its nested graphs first, since they are the last readers of tensors made above.
            for inner in subgraphs(node):
                yield from _sweep(inner)
            continue
        dead.append(node)
        gone.add(id(node))
        _mark_nested(node, gone)
        yield Changed(node.name, f"removed; nothing reads {', '.join(repr(t.name) for t in node.outputs if t.name)}")
    remove_nodes(graph, dead)


def _needed(graph: gs.Graph, node: gs.Node, gone: set[int]) -> bool:
    return any(
        is_output(graph, output) or any(id(reader) not in gone for reader in output.outputs) for output in node.outputs
    )


def _mark_nested(node: gs.Node, gone: set[int]) -> None:
    for inner in subgraphs(node):
        for nested in inner.nodes:
            gone.add(id(nested))
            _mark_nested(nested, gone)
