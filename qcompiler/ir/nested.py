"""Where values cross the border of a nested graph: in and out of branches of If and bodies of Loop and Scan.

| operator | inputs                  | body inputs             | body outputs       | outputs         |
|----------|-------------------------|-------------------------|--------------------|-----------------|
| If       | flag                    | none                    | results            | results         |
| Loop     | trip count, flag, states| iteration, flag, states | flag, states, stack| states, stack   |
| Scan     | states, sequences       | states, elements        | states, stack      | states, stack   |

A *state* goes round: initial value, body input, body output and result have one type. What is *stacked* or an
*element* of a sequence does not, and neither does the result of an If: each of them may have a type of its own.
Source: ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs

TYPED = ("If", "Loop", "Scan")


@dataclass(frozen=True, slots=True)
class Entry:
    """Input `index` of the node arrives in its body as `tensor`."""

    index: int
    tensor: gs.Tensor
    state: bool


@dataclass(frozen=True, slots=True)
class Exit:
    """What the nested graphs (several only of an If) give back as output `index` of the node."""

    index: int
    tensors: tuple[gs.Tensor, ...]
    state: bool


def is_typed(node: gs.Node) -> bool:
    """Whether it is known how types go through the node's nested graphs."""
    return graphs.is_op(node, *TYPED) and bool(graphs.subgraphs(node))


def entries(node: gs.Node) -> list[Entry]:
    """The values that arrive in a body, without iteration number and condition."""
    if not is_typed(node) or node.op == "If":
        return []
    first = 2 if node.op == "Loop" else 0
    states = _states(node)
    inputs = graphs.subgraphs(node)[0].inputs
    return [Entry(i, inputs[i], i - first < states) for i in range(first, min(len(inputs), len(node.inputs)))]


def exits(node: gs.Node) -> list[Exit]:
    """The values that leave the nested graphs, without the condition of a Loop."""
    if not is_typed(node):
        return []
    first = 1 if node.op == "Loop" else 0
    states = 0 if node.op == "If" else _states(node)
    inner = graphs.subgraphs(node)
    return [
        Exit(i, tuple(one.outputs[i + first] for one in inner), i < states)
        for i in range(len(node.outputs))
        if all(i + first < len(one.outputs) for one in inner)
    ]


def _states(node: gs.Node) -> int:
    """How many states a Loop or Scan hands on."""
    if node.op == "Loop":
        return len(node.inputs) - 2
    return len(node.inputs) - int(node.attrs.get("num_scan_inputs", 0))


def homes(graph: gs.Graph) -> Iterator[tuple[gs.Node, gs.Graph]]:
    """Every node of the graph and of all nested ones with the graph that it stands in; a node before what it nests."""
    for node in graph.nodes:
        yield node, graph
        for inner in graphs.subgraphs(node):
            yield from homes(inner)
