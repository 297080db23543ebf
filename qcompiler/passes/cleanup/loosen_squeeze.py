"""Squeeze(x: a×b×?, axis 2) inside a branch of If  ⇒  Gather(x, 0, axis 2), which also takes sizes other than 1.

TensorRT checks both branches against the shapes of the profile. A branch that is for shapes outside of it, like the one
for another sampling rate, is refused at its Squeeze although no run would take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.runtime import shapes


@dataclass(frozen=True)
class LoosenSqueeze(Pass):
    """Select element 0 where a branch squeezes a dimension of open size, which TensorRT may refuse.

    The result is the same wherever the model has one: Squeeze fails unless the size is 1.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Squeeze of an open dimension inside a branch."""
        found = [
            (inner, node) for inner in graphs.branches(graph) for node in inner.nodes if graphs.is_op(node, "Squeeze")
        ]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            shape, axes = graphs.shape_of(node.inputs[0]), graphs.axes_of(node)
            if shape is None or axes is None:
                yield Skipped(node.name, "the rank of its input or its axes are not known")
                continue
            places = sorted(axis % len(shape) for axis in axes)
            if all(shape[axis] == 1 for axis in places):
                continue
            _select(inner, node, places, names)
            yield Changed(node.name, f"takes element 0 of axes {places} instead of squeezing them")


def _select(graph: gs.Graph, node: gs.Node, axes: list[int], names: Names) -> None:
    name, at = node.name, edit.index_of(graph, node)
    value, out = node.inputs[0], node.outputs[0]
    dtype = graphs.dtype_of(value)
    edit.remove_node(graph, node)
    zero = edit.add_constant(names.fresh(f"{name}/zero"), np.array(0, np.int64))
    nodes: list[gs.Node] = []
    for axis in reversed(axes):  # from the last, so that the numbers of the others stay
        made = out if axis == axes[0] else gs.Variable(names.fresh(f"{name}/axis_{axis}"), dtype)
        nodes.append(gs.Node("Gather", names.fresh(f"{name}/Gather"), {"axis": axis}, [value, zero], [made]))
        value = made
    edit.insert_at(graph, at, nodes)
