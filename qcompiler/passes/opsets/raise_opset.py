"""The graph is rewritten in the terms of a newer opset, node by node, as the rows of `table` say.

    Squeeze{axes=[1]}(x)   ⇒  Squeeze(x, [1])                                  from opset 13
    Softmax{axis=1}(x)     ⇒  Reshape(Softmax{axis=-1}(Flatten{axis=1}(x)))    from opset 13, where rank(x) > 2

Nested graphs are rewritten like the main one; weights are never copied; foreign domains and names stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import set_opset
from qcompiler.ir.graph import dtype_of, graphs, is_standard, walk
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.opsets import _runs
from qcompiler.passes.opsets._place import Place
from qcompiler.passes.opsets._steps import raised
from qcompiler.passes.opsets._table import OLDEST
from qcompiler.runtime import shapes


class Rewrite(Protocol):
    """What stands for a node, in order."""

    def __call__(self, node: gs.Node, *, place: Place) -> list[gs.Node]:
        """The nodes; most often the node itself, edited."""


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Raise the model to an ONNX opset, as far as ONNX Runtime has kernels; a newer one stays as it is.

    ONNX Runtime runs the model for every measurement, and it lacks the newest version of some operators. So the opset
    is the highest one, up to that which is asked for, in which it has a kernel for all that it runs now. A model of an
    opset in which it lacks one is lowered to the last one that it runs, if that says the same.

    Raises:
        ModelError: the new opset has no word for what a node does; the message names the node.
    """

    opset: int = 21

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node that had to be written differently, and one for the number."""
        old, names = int(graph.opset), Names(graph)
        for early in (OLDEST - 1, OLDEST):  # ONNX infers the shapes that broadcasting depends on from opset 6 on
            if old < early <= self.opset:
                shapes.infer(graph)
                yield from _rewritten(graph, names, partial(raised, old=old, new=early))
                set_opset(graph, early)
                yield Changed(graph.name, f"opset {old} raised to {early}")
                old = early
        runs, why = _runs.runnable(graph, old)
        if runs < old:
            set_opset(graph, runs)
            yield Changed(graph.name, f"opset {old} lowered to {runs}: {why}")
            return
        if old >= self.opset:
            return
        new, why = _runs.highest(graph, old, self.opset)
        if new == old:
            yield Skipped(graph.name, f"opset {old} stays: {why}")
            return
        if any(dtype_of(tensor) is None for node in walk(graph) for tensor in node.inputs if tensor.name):
            shapes.infer(graph)  # attributes that become inputs have the type of the data
        yield from _rewritten(graph, names, partial(raised, old=old, new=new))
        set_opset(graph, new)
        yield Changed(graph.name, f"opset {old} raised to {new}" + (f": {why}" if why else ""))


def _rewritten(graph: gs.Graph, names: Names, how: Rewrite) -> Iterator[Note]:
    for inner in list(graphs(graph)):
        place, nodes = Place(inner, names), list[gs.Node]()
        for node in list(inner.nodes):
            if not is_standard(node) or not onnx.defs.has(node.op):  # plugins and others stand in ONNX's domain, too
                nodes.append(node)
                continue
            op, before = node.op, (dict(node.attrs), len(node.inputs))
            made = how(node, place=place)
            nodes += made
            if made != [node] or node.op != op or (dict(node.attrs), len(node.inputs)) != before:
                yield Changed(node.name, f"{op} is now {' → '.join(one.op for one in made)}")
        inner.nodes[:] = nodes
