"""The part `graph` of a manifest, read: who writes what a node reads, and who reads what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Wires:
    """What a manifest knows of the graph that its plan speaks of.

    Attributes:
        nodes: operator and precision of each node, by name, in the order of the plan; what the plan does not speak of
            comes last, with None for the precision.
        known: whether the manifest says who reads what; else only the nodes are known.
        inputs: tensors that are inputs of the model.
        outputs: tensors that are outputs of the model.
        weights: of linear nodes: `tensor`, `shape`, and the `axis` that has a scale per index.
        pairs: of nodes without a weight: which of their inputs are read through Q/DQ pairs.
    """

    nodes: Mapping[str, Record]
    known: bool = False
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    weights: Mapping[str, Record] = field(default_factory=dict)
    pairs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _writes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @staticmethod
    def of(manifest: Record) -> Wires:
        """Read from a manifest; of older ones the nodes alone."""
        nodes = {
            one["node"]: {"op": one.get("op"), "precision": one.get("precision")} for one in manifest.get("plan") or ()
        }
        graph = manifest.get("graph")
        if not graph:
            return Wires(nodes)
        nodes |= {name: {"op": op, "precision": None} for name, op in graph["others"].items()}
        names = graph["tensors"]

        def spelled(way: str) -> dict[str, list[str]]:
            return {node: [names[i] for i in places] for node, places in zip(nodes, graph[way], strict=False)}

        inputs, outputs = ([names[i] for i in graph[way]] for way in ("inputs", "outputs"))
        known = (inputs, outputs, graph["weights"], graph["pairs"])
        return Wires(nodes, True, *known, spelled("reads"), spelled("writes"))

    def reads(self, node: str) -> Sequence[str]:
        """The tensors that a node reads, without constants."""
        return self._reads.get(node, ())

    def writes(self, node: str) -> Sequence[str]:
        """The tensors that it writes."""
        return self._writes.get(node, ())

    def writer(self, tensor: str) -> str | None:
        """The node that writes a tensor; None for inputs, constants and what is not known."""
        return next((node for node, names in self._writes.items() if tensor in names), None)

    def source(self, tensor: str) -> Record:
        """A tensor that is read: who writes it."""
        node = self.writer(tensor)
        return {"tensor": tensor, "input": tensor in self.inputs, "by": None if node is None else self._named(node)}

    def readers(self, tensor: str) -> Record:
        """A tensor that is written: who reads it."""
        found = [self._named(node) for node, names in self._reads.items() if tensor in names]
        return {"tensor": tensor, "output": tensor in self.outputs, "by": found}

    def _named(self, node: str) -> Record:
        return {"node": node, **self.nodes[node]}
