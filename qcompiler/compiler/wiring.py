"""Who reads what of whom, and which weight: the graph that a plan speaks of, as little of it as manifests need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.linear import weight_of
from qcompiler.plan import Plan


def wiring(graph: gs.Graph, plan: Plan) -> dict[str, Any]:
    """The part `graph` of a manifest. Names of tensors stand in it once, everything else are places in lists.

    Args:
        graph: the float graph that the plan speaks of; nodes of nested graphs count.
        plan: of it; what it does not speak of is in `others`.

    Returns:
        `tensors` (names, without constants), `inputs` and `outputs` of the model (places in `tensors`), `others`
        (operators of the nodes that the plan does not speak of, by name), `reads` and `writes` (of each node of the
        plan, then of `others`: places in `tensors`), `weights` (of linear nodes: `tensor`, `shape`, and where it is
        quantized the `axis` that has a scale per index, None for a single scale), `pairs` (of nodes without a weight:
        which of their inputs are read through Q/DQ pairs).
    """
    nodes = {node.name: node for node in graphs.walk(graph)}
    others = {name: str(node.op) for name, node in nodes.items() if name not in plan.decisions}
    book = _TensorPlaces(graph)
    inputs, outputs = (book.of(tensor.name for tensor in ends) for ends in (graph.inputs, graph.outputs))
    wires = [_wires(nodes[name]) if name in nodes else ((), ()) for name in (*plan.decisions, *others)]
    reads, writes = ([book.of(names[way]) for names in wires] for way in (0, 1))
    return {
        "tensors": book.names,
        "inputs": inputs,
        "outputs": outputs,
        "others": others,
        "reads": reads,
        "writes": writes,
        "weights": {name: one for name, node in nodes.items() if (one := _weight(node, plan)) is not None},
        "pairs": {name: list(places) for name, places in plan.reads.items()},
    }


class _TensorPlaces:
    """The places of tensors in a list of their names."""

    def __init__(self, graph: gs.Graph) -> None:
        every = (tensor for one in graphs.graphs(graph) for tensor in graphs.tensors(one))
        self._constant = {tensor.name for tensor in every if graphs.is_constant(tensor)}
        self._places: dict[str, int] = {}
        self.names: list[str] = []

    def of(self, names: Iterable[str]) -> list[int]:
        """Their places; constants have none."""
        return [self._place(name) for name in dict.fromkeys(names) if name and name not in self._constant]

    def _place(self, name: str) -> int:
        if name not in self._places:
            self._places[name] = len(self.names)
            self.names.append(name)
        return self._places[name]


def _wires(node: gs.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of what it reads, and of what it writes."""
    return tuple(_read(node)), tuple(tensor.name for tensor in node.outputs)


def _read(node: gs.Node) -> Iterator[str]:
    """Of its inputs, and of what its nested graphs read of the graphs around them."""
    yield from (tensor.name for tensor in node.inputs)
    for inner in graphs.subgraphs(node):
        yield from sorted(graphs.free(inner))


def _weight(node: gs.Node, plan: Plan) -> Mapping[str, Any] | None:
    found = weight_of(node)
    if found is None:
        return None
    told = {"tensor": found.tensor.name, "shape": list(found.tensor.shape)}
    return {**told, "axis": plan.axes[node.name]} if node.name in plan.axes else told
