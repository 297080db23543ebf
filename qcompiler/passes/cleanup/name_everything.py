"""Every node and tensor, nested graphs included, gets a name that nothing else has; each name means one tensor.

Relu('')     Relu('')        ⇒  Relu('Relu')     Relu('Relu_1')
If branches that both write 'y'  ⇒  'y' and 'y_1'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import graphs, is_constant, subgraphs, tensors, walk
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass
from qcompiler.support.scopes import within


@dataclass(frozen=True)
class NameEverything(Pass):
    """Give every node and tensor a unique name.

    The interface of the model (names of its inputs and outputs) never changes. Nested graphs read tensors of the graph
    around them by name; behind this pass they hold the same tensor object, so that renaming and rewiring reach them.

    Raises:
        ModelError: a node reads a tensor that nothing writes.
    """

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per new name and per nested output that got a node of its own."""
        names = Names(graph)
        yield from _bind(graph, {}, names)
        yield from _name_nodes(graph, names)
        yield from _name_tensors(graph, names)


def _bind(graph: gs.Graph, around: Mapping[str, gs.Tensor], names: Names) -> Iterator[Note]:
    """Makes every use of a tensor by name a use of the one object that bears the name there."""
    own = [*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs if tensor.name)]
    here = within(around, {tensor.name: tensor for tensor in own})
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if not tensor.name or is_constant(tensor) or here.get(tensor.name) is tensor:
                continue
            if tensor.name not in here:
                raise ModelError(
                    f"input {index} of node '{node.name or node.outputs[0].name}' ({node.op}) is '{tensor.name}', "
                    "which no node, input or initializer of the model provides. Export the model again."
                )
            set_input(node, index, here[tensor.name])
        for inner in subgraphs(node):
            yield from _bind(inner, here, names)
    if around:
        yield from _own_outputs(graph, own, here, names)


def _own_outputs(graph: gs.Graph, own: list[gs.Tensor], here: Mapping[str, gs.Tensor], names: Names) -> Iterator[Note]:
    """A nested graph cannot return a tensor of the graph around it (ONNX Runtime refuses); it returns a copy."""
    mine = {id(tensor) for tensor in own}
    for i, output in enumerate(graph.outputs):
        if id(output) in mine or is_constant(output) or output.name not in here:
            continue
        copy = gs.Variable(names.fresh(f"{output.name}_inner"), output.dtype, output.shape)
        node = gs.Node("Identity", names.fresh("Identity"), inputs=[here[output.name]], outputs=[copy])
        graph.nodes.append(node)
        graph.outputs[i] = copy
        yield Changed(node.name, f"returns '{output.name}' of the outer graph from the nested one")


def _name_nodes(graph: gs.Graph, names: Names) -> Iterator[Note]:
    seen: set[str] = set()
    for node in walk(graph):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        old, node.name = node.name, names.fresh(node.name or node.op)
        seen.add(node.name)
        yield Changed(node.name, f"named; another node is '{old}'" if old else f"named; this {node.op} had no name")


def _name_tensors(graph: gs.Graph, names: Names) -> Iterator[Note]:
    owner: dict[str, gs.Tensor] = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
    renamed: Counter[str] = Counter()
    for inner in graphs(graph):
        for tensor in tensors(inner):
            if owner.setdefault(tensor.name, tensor) is tensor:
                continue
            old, tensor.name = tensor.name, names.fresh(tensor.name)
            owner[tensor.name] = tensor
            renamed[old] += 1
            yield Changed(tensor.name, f"renamed; another tensor is '{old}'")
