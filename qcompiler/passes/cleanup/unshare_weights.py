"""The weight of every linear node becomes its own, so that it can be quantized without touching other readers.

Gather(E), MatMul(x, Transpose(E))  ⇒  Gather(E), MatMul(x, Transpose(E'))     E' is another name for the same array
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import copy_constant, insert_before, set_input
from qcompiler.ir.graph import consumers, graphs, is_output
from qcompiler.ir.linear import Weight, weight_of
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass


@dataclass(frozen=True)
class UnshareWeights(Pass):
    """Give every Conv, ConvTranspose, Gemm and MatMul a weight that nothing else reads.

    The copies are further initializers over the same array, so no memory is taken; a tied embedding stays in the graph
    once as the table of Gather and once as the weight of the last MatMul. Nodes between the weight and its reader
    (Transpose, Reshape, Cast) are doubled where they too are shared.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per weight that got a copy."""
        names = Names(graph)
        for inner in graphs(graph):
            for node in list(inner.nodes):
                weight = weight_of(node)
                if weight is not None:
                    yield from _own(inner, weight, names)


def _own(graph: gs.Graph, weight: Weight, names: Names) -> Iterator[Note]:
    reader, index = weight.node, weight.index
    # From the linear node towards the initializer: whatever has a second reader is doubled for this one.
    for link in reversed(weight.chain):
        output = link.outputs[0]
        if len(consumers(output)) > 1 or is_output(graph, output):
            twin = gs.Variable(names.fresh(output.name), output.dtype, output.shape)
            link = gs.Node(link.op, names.fresh(link.name), dict(link.attrs), list(link.inputs), [twin], link.domain)
            insert_before(graph, reader, link)
            set_input(reader, index, twin)
            yield Changed(link.name, f"{link.op} of its own for '{weight.node.name}'")
        reader, index = link, 0
    if len(consumers(weight.tensor)) < 2 and not is_output(graph, weight.tensor):
        return
    copy = copy_constant(weight.tensor, names.fresh(weight.tensor.name))
    set_input(reader, index, copy)
    yield Changed(weight.node.name, f"weight '{copy.name}' of its own instead of '{weight.tensor.name}'")
