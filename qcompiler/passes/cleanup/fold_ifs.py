"""An If that can only go one way is replaced by that branch.

If(True){then: Relu(x), else: Neg(x)}                                 ⇒  Relu(x)
If(rank(x: 4×8) == 2){then: x, else: Squeeze(x)}                      ⇒  x
LSTM(If(c){then: Squeeze(x: a×b×1×c), else: x: a×b×1×c})              ⇒  LSTM(Squeeze(x)), for LSTM takes rank 3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_graphsurgeon as gs

from qcompiler.errors import QCompilerError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.cleanup import _ranks as ranks
from qcompiler.passes.cleanup.fold_constants import fixed_shape
from qcompiler.runtime import shapes
from qcompiler.runtime.one_node import run_node

if TYPE_CHECKING:
    from numpy.typing import NDArray


_DECIDING = frozenset(
    {"And", "Cast", "Equal", "Gather", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "ReduceProd"}
    | {"Reshape", "Slice", "Squeeze", "Unsqueeze", "Where", "Xor", "Add", "Sub", "Mul"}
)


@dataclass(frozen=True)
class FoldIfs(Pass):
    """Replace an If that can only go one way by that branch.

    Its condition is constant or follows from shapes that are fixed, or the other branch gives a rank with which the
    nodes behind the If fail in every run. PyTorch writes such Ifs for `squeeze` and for recurrent cells that take one
    sample or many. The result is the same wherever the model has one.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per If that goes away, and one per If that stays."""
        if not any(graphs.is_op(node, "If") for node in graphs.walk(graph)):
            return
        names = Names(graph)
        shapes.infer(graph)
        # What one If turns out to be decides others behind it.
        while notes := [note for inner in graphs.graphs(graph) for note in _one(inner, int(graph.opset), names)]:
            yield from notes
            shapes.infer(graph)
        for node in graphs.walk(graph):
            if graphs.is_op(node, "If"):
                yield Skipped(node.name, f"its condition '{node.inputs[0].name}' depends on what the model is fed")


def _one(graph: gs.Graph, opset: int, names: Names) -> list[Note]:
    notes: list[Note] = []
    known = _Ranks(graph)
    # A body that was moved here is looked at in the next round.
    for node in [node for node in graph.nodes if graphs.is_op(node, "If")]:
        taken, why = _decided(node, opset, known)
        if taken:
            known.hand_on(node, node.attrs[taken])
            _inline(graph, node, taken, names)
            notes.append(Changed(node.name, f"replaced by its {taken.removesuffix('_branch')} branch: {why}"))
    return notes


class _Ranks:
    """The ranks of a graph's tensors, found when they are first asked for and kept for one round."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._found: ranks.Ranks | None = None
        self._gone: list[gs.Tensor] = []  # alive, so that no other tensor gets their identity

    def found(self) -> ranks.Ranks:
        """By identity of the tensor."""
        if self._found is None:
            self._found = ranks.possible(self._graph)
        return self._found

    def hand_on(self, node: gs.Node, branch: gs.Graph) -> None:
        """Says of what a branch gives what is known of the If's outputs, whose readers will read it instead."""
        if self._found is None:
            return
        self._gone += node.outputs
        inside = ranks.possible(branch, self._found)
        for old, new in zip(node.outputs, branch.outputs, strict=True):
            ways = [known.get(id(one), ranks.ANY) for known, one in ((self._found, old), (inside, new))]
            self._found[id(new)] = ways[0] & ways[1]


def _decided(node: gs.Node, opset: int, known: _Ranks) -> tuple[str, str]:
    """Name of the only branch that can be taken, and why; empty where both can."""
    value = _known(node.inputs[0], opset)
    if value is not None and value.size == 1:
        return ("then_branch" if value.reshape(-1)[0] else "else_branch"), f"the condition is {bool(value)}"
    found = known.found()
    lost = {branch: ranks.impossible(node.attrs[branch], node, found) for branch in ("then_branch", "else_branch")}
    if bool(lost["then_branch"]) == bool(lost["else_branch"]):
        return "", ""
    return ("else_branch", lost["then_branch"]) if lost["then_branch"] else ("then_branch", lost["else_branch"])


def _known(tensor: gs.Tensor, opset: int) -> NDArray[Any] | None:
    """The value of a tensor that is computed from constants and fixed shapes alone; else None."""
    value = graphs.constant_value(tensor)
    node = graphs.producer(tensor)
    if value is not None or node is None:
        return value
    value = fixed_shape(node)
    if value is not None or node.op not in _DECIDING or not graphs.is_standard(node):
        return value
    inputs = [_known(one, opset) if one.name else None for one in node.inputs]
    if any(one.name and held is None for one, held in zip(node.inputs, inputs, strict=True)):
        return None
    reads = [
        gs.Variable.empty() if held is None else gs.Constant(one.name, held)
        for one, held in zip(node.inputs, inputs, strict=True)
    ]
    twin = gs.Node(node.op, node.name, dict(node.attrs), reads, [gs.Variable(tensor.name)])
    try:
        return run_node(twin, opset)[0]
    except QCompilerError:
        return None  # it fails in the model too, where the user will hear of it


def _inline(graph: gs.Graph, node: gs.Node, taken: str, names: Names) -> None:
    body: gs.Graph = node.attrs[taken]
    at = edit.index_of(graph, node)
    pairs = list(zip(list(node.outputs), list(body.outputs), strict=True))
    moved = list(body.nodes)
    body.nodes[:] = []  # else they would be taken apart with the If
    edit.remove_node(graph, node)
    edit.insert_at(graph, at, moved)
    at += len(moved)
    for old, new in pairs:
        if not old.name:
            continue
        if not edit.why_not_replace(graph, old, new):
            edit.replace_uses(graph, old, new)
            continue
        # A graph output needs a node of its own.
        copy = gs.Node("Identity", names.fresh(f"{old.name}/Identity"), {}, [new], [old])
        edit.insert_at(graph, at, [copy])
