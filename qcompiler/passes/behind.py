"""A model in two: what ONNX Runtime runs, and what stands behind the first node that it does not know.

    image → backbone → boxes, scores → EfficientNMS_TRT → detections
    ⇒  image → backbone → boxes, scores                    measured, quantized, judged
       boxes, scores → EfficientNMS_TRT → detections       written as it came, behind the other part

What a node of the second part reads of the first becomes an output of the first, whose name and type stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.ir.names import Names
from qcompiler.ir.operators import MULTIPLYING, RECURRENT


@dataclass(frozen=True, slots=True)
class UnknownNode:
    """A node that nobody can run here: its name, operator and domain."""

    node: str
    op: str
    domain: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"'{self.node}' ({self.op} of domain '{self.domain}')"


@dataclass(frozen=True, eq=False)
class Unmeasured:
    """What is written as it came.

    Attributes:
        model: it, as a model whose inputs are what it reads of the other part, and inputs of the whole.
        unknown: the nodes that are why.
        reads: names of the tensors that it reads of the other part, which are outputs of that.
        outputs: names of the outputs of the whole, in order.
        layers: names of its layers that might have been quantized in front.
    """

    model: Model
    unknown: tuple[UnknownNode, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]

    def told(self) -> str:
        """What a user should know of it."""
        listed = ", ".join(map(str, self.unknown[:3])) + (
            f" and {len(self.unknown) - 3} more" * (len(self.unknown) > 3)
        )
        rest = len(self.model.graph.nodes) - len(self.unknown)
        others = f", and {rest} more behind" * (rest > 0)
        layers = ", ".join(f"'{name}'" for name in self.layers[:3])
        lost = f" Among them are {len(self.layers)} layers that stay float: {layers}." if self.layers else ""
        judged = ", ".join(f"'{name}'" for name in self.reads)
        return (
            f"not measured: node {listed}{others}, because ONNX Runtime does not know the operator: it is written as "
            f"it came, and results are judged by what it reads, {judged}.{lost}"
        )


def apart(model: Model, unknown: Collection[str]) -> tuple[Model, Unmeasured]:
    """The part that can be run, and what stands behind.

    Args:
        model: every node and tensor has a name of its own; nodes are in order. It stays as it is, weights are shared.
        unknown: names of the nodes, also of nested graphs, that cannot be run.

    Raises:
        ModelError: there is nothing in front of them.
    """
    graph = model.graph
    late = _late(graph, unknown)
    reads = _crossing(graph, late)
    given = tuple(t.name for t in graph.outputs)
    made_late = {t.name for node in graph.nodes if node.name in late for t in node.outputs}
    nodes = tuple(UnknownNode(n.name, n.op, n.domain or "") for n in graphs.walk(graph) if n.name in unknown)
    front_outputs = [*(name for name in given if name not in made_late), *(n for n in reads if n not in given)]
    if not reads and all(name in made_late for name in given):
        raise ModelError(
            f"node {nodes[0]} is of an operator that ONNX Runtime does not know, and nothing stands in front of it "
            "that could be measured. Export the model with standard operators, or give that operator as a function "
            "inside it."
        )
    front, behind = models.copy(model), models.copy(model)
    _keep(front.graph, lambda node: node.name not in late, front_outputs)
    _keep(behind.graph, lambda node: node.name in late, [name for name in given if name in made_late])
    used = {t.name for inner in graphs.graphs(behind.graph) for node in inner.nodes for t in node.inputs}
    inputs = [t for t in behind.graph.inputs if t.name in used]
    found = _named(behind.graph)
    behind.graph.inputs[:] = [*inputs, *(found[name] for name in reads)]
    layers = tuple(n.name for n in behind.graph.nodes if n.op in MULTIPLYING | RECURRENT)
    return front, Unmeasured(behind, nodes, reads, given, layers)


def _late(graph: gs.Graph, unknown: Collection[str]) -> set[str]:
    """Names of the nodes of the main graph that are unknown, hold such a node, or need the result of one."""
    late: set[str] = set()
    made: set[int] = set()
    for node in graph.nodes:
        holds = any(inner.name in unknown for part in graphs.subgraphs(node) for inner in graphs.walk(part))
        if node.name in unknown or holds or any(id(tensor) in made for tensor in _read(node)):
            late.add(node.name)
            made |= {id(tensor) for tensor in node.outputs}
    return late


def _read(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that a node reads, those of nested graphs included."""
    yield from node.inputs
    for inner in graphs.subgraphs(node):
        yield from inner.outputs
        for nested in inner.nodes:
            yield from _read(nested)


def _crossing(graph: gs.Graph, late: Collection[str]) -> tuple[str, ...]:
    """Names of what the first part makes and the second reads, in the order in which it does."""
    made = {id(t) for node in graph.nodes if node.name not in late for t in node.outputs}
    reads = (t for node in graph.nodes if node.name in late for t in _read(node))
    return tuple(dict.fromkeys(t.name for t in reads if t.name and id(t) in made))


def _named(graph: gs.Graph) -> dict[str, gs.Tensor]:
    """The tensors of the main graph, and those that nested graphs read of it."""
    found = {t.name: t for node in graph.nodes for t in _read(node) if t.name}
    return found | {t.name: t for t in graphs.tensors(graph)}


def _keep(graph: gs.Graph, wanted: Callable[[gs.Node], bool], outputs: list[str]) -> None:
    found = _named(graph)
    graph.outputs[:] = [found[name] for name in outputs]
    edit.remove_nodes(graph, [node for node in graph.nodes if not wanted(node)])


def joined(model: Model, behind: Model, outputs: tuple[str, ...]) -> Model:
    """One model again; both stay as they are, weights are shared.

    Args:
        model: the first part, whatever became of it; inputs and outputs have their names.
        behind: the second part in the same opset.
        outputs: names of the outputs of the whole, in order.

    Raises:
        ModelError: the second part is written in another opset.
    """
    whole, rest = models.copy(model), models.copy(behind)
    graph, tail = whole.graph, rest.graph
    if int(graph.opset) != int(tail.opset):
        raise ModelError(
            f"the nodes behind unknown operators are of opset {tail.opset} and cannot be raised to {graph.opset}, "
            "which the rest needs. Export the model again with a newer opset."
        )
    names = Names(graph)
    given = {t.name: t for t in (*graph.inputs, *graph.outputs)}
    _rename(graph, tail, names, given)
    made = [_typed(names, given[t.name], t) for t in tail.inputs]
    casts = [node for node, _ in made if node is not None]
    for tensor, (_, source) in zip(list(tail.inputs), made, strict=True):
        for reader, index in graphs.consumers(tensor):
            edit.set_input(reader, index, source)
    results = given | {t.name: t for t in tail.outputs}
    edit.insert_at(graph, len(graph.nodes), [*casts, *tail.nodes])
    graph.outputs[:] = [results[name] for name in outputs]
    _take_domains(graph, tail)
    return replace(whole, files=tuple(dict.fromkeys((*whole.files, *rest.files))))


def _rename(graph: gs.Graph, tail: gs.Graph, names: Names, given: Mapping[str, gs.Tensor]) -> None:
    """Nothing in the second part bears a name of the first but what it reads; outputs keep theirs at any rate."""
    ends = {t.name for t in tail.outputs}
    for inner in graphs.graphs(graph):
        for tensor in graphs.tensors(inner):
            if tensor.name in ends and tensor.name not in given:
                tensor.name = names.fresh(f"{tensor.name}/inner")
    read = {id(t) for t in tail.inputs}
    for inner in graphs.graphs(tail):
        for node in inner.nodes:
            node.name = names.fresh(node.name)
        for tensor in graphs.tensors(inner):
            if id(tensor) not in read and tensor.name not in ends:
                tensor.name = names.fresh(tensor.name)


def _typed(names: Names, source: gs.Tensor, wanted: gs.Tensor) -> tuple[gs.Node | None, gs.Tensor]:
    """What the second part reads, in the type that it was read in before; a Cast where that is another one now."""
    before, now = graphs.dtype_of(wanted), graphs.dtype_of(source)
    if before is None or now is None or before == now:
        return None, source
    made = gs.Variable(names.fresh(f"{source.name}/{np.dtype(before).name}"), before, source.shape)
    node = gs.Node("Cast", names.fresh(f"{source.name}/Cast"), {"to": graphs.onnx_type(before)}, [source], [made])
    return node, made


def _take_domains(graph: gs.Graph, tail: gs.Graph) -> None:
    """Imports and local functions that only the second part needs."""
    have = {one.domain for one in graph.import_domains or []}
    versions = {one.domain: int(one.version) for one in tail.import_domains or [] if one.domain not in have}
    edit.set_opset(graph, int(graph.opset), versions)
    known = {(one.domain, one.name) for one in graph.functions}
    graph.functions = [*graph.functions, *(one for one in tail.functions if (one.domain, one.name) not in known)]
