"""A Loop or Scan of few rounds that multiplies by constants is written out, round after round.

    Scan(h, X [4, b, k]){h' = tanh(x·W + h·R)}  ⇒  h₁ = tanh(X₀·W + h·R), ..., h₄ = tanh(X₃·W + h₃·R)
    Scan(x, W [12, k, n]){x' = f(x·w)}          ⇒  twelve layers, each with its own matrix

What is inside a body has no ranges and stays float; written out, its products are like all others. A scan over the
layers of a model, as JAX writes it, becomes these layers. Left alone are bodies without such products, with graphs of
their own, or that may end early, and what would become too large: alone, or with all that was written out before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.products._budget import Budget
from qcompiler.passes.products._writer import AXES_ARE_INPUTS
from qcompiler.runtime import shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_ROUNDS = 64


class _Rounds(NamedTuple):
    """What one loop does.

    Attributes:
        times: how many rounds.
        states: what goes in at first, in the order of the body's inputs behind `skipped`.
        sequences: what a Scan takes one slice of in each round, with the axis and whether it goes backwards.
        skipped: inputs of the body in front of the states (of a Loop: number and condition), as many outputs.
        results: of what is collected: the axis, and whether the last round comes first.
    """

    times: int
    states: list[gs.Tensor]
    sequences: list[tuple[gs.Tensor, int, bool]]
    skipped: int
    results: list[tuple[int, bool]]


@dataclass(frozen=True)
class UnrollLoops(Pass):
    """Write out a Loop or Scan of few rounds around products with constants, so that these are quantized."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Loop or Scan that multiplies, inner ones first."""
        found = [(inner, node) for inner, node in _inner_first(graph) if graphs.is_op(node, "Loop", "Scan")]
        if not found:
            return
        shapes.infer(graph)
        names, done, budget = Names(graph), False, Budget()
        for inner, node in found:
            body = graphs.subgraphs(node)[0]
            if not _multiplies(body):
                continue
            rounds = _loop(node, body) if node.op == "Loop" else _scan(node, body)
            why = rounds if isinstance(rounds, str) else _refusal(body, rounds, int(graph.opset), budget)
            if isinstance(rounds, str) or why:
                yield Skipped(node.name, f"{why}; its products stay float")
                continue
            _unroll(inner, node, body, rounds, names)
            done = True
            yield Changed(node.name, f"{rounds.times} rounds written out")
        if done:
            shapes.infer(graph)


def _inner_first(graph: gs.Graph) -> Iterator[tuple[gs.Graph, gs.Node]]:
    """All nodes with the graph that they stand in: in graph order, those of nested graphs in front of their owner."""
    for node in graph.nodes:
        for inner in graphs.subgraphs(node):
            yield from _inner_first(inner)
        yield graph, node


def _multiplies(body: gs.Graph) -> bool:
    return any(graphs.is_linear(node) for node in body.nodes)


def _refusal(body: gs.Graph, rounds: _Rounds, opset: int, budget: Budget) -> str:
    """Why a loop is not written out; empty where it is, and has what it takes from the budget."""
    if any(graphs.subgraphs(node) for node in body.nodes):
        return "its body has bodies of its own"
    if opset < AXES_ARE_INPUTS:
        return f"opset {opset} has no axes as inputs"
    if rounds.times < 1 or rounds.times > _MOST_ROUNDS:
        return f"it has {rounds.times} rounds, and at most {_MOST_ROUNDS} are written out"
    weights = [tensor for node in body.nodes if graphs.is_linear(node) for tensor in node.inputs]
    size = sum(math.prod(one.shape) * 4 for one in weights if graphs.is_constant(one))
    return budget.take(rounds.times * len(body.nodes), rounds.times * size)  # each round stores its weights again


def _loop(node: gs.Node, body: gs.Graph) -> _Rounds | str:
    count = graphs.constant_value(node.inputs[0]) if graphs.is_present(node, 0) else None
    if count is None or count.size != 1:
        return "how many rounds it has is not known"
    going = body.outputs[0]
    first = graphs.constant_value(node.inputs[1]) if graphs.is_present(node, 1) else np.array(True)
    again = graphs.constant_value(going)
    handed_on = _source(going) is body.inputs[1]
    if first is None or not first.all() or not (handed_on or (again is not None and bool(again.all()))):
        return "it may end early"
    states = list(node.inputs[2:])
    results = [(0, False)] * (len(node.outputs) - len(states))
    return _Rounds(int(count.reshape(-1)[0]), states, [], 2, results)


def _source(tensor: gs.Tensor) -> gs.Tensor:
    """What a tensor is handed on from."""
    node = graphs.producer(tensor)
    while node is not None and graphs.is_op(node, "Identity"):
        tensor = node.inputs[0]
        node = graphs.producer(tensor)
    return tensor


def _scan(node: gs.Node, body: gs.Graph) -> _Rounds | str:
    many = int(node.attrs["num_scan_inputs"])
    count = len(node.inputs) - many
    collected = len(node.outputs) - count

    def listed(name: str, size: int) -> list[int]:
        return [int(one) for one in node.attrs.get(name) or [0] * size]

    axes, backwards = listed("scan_input_axes", many), listed("scan_input_directions", many)
    sequences = [(t, a, bool(b)) for t, a, b in zip(node.inputs[count:], axes, backwards, strict=True)]
    sizes = set()
    for tensor, axis, _ in sequences:
        shape = graphs.shape_of(tensor)
        sizes.add(None if shape is None else shape[axis])
    rounds = next((size for size in sizes if isinstance(size, int)), None)
    if rounds is None:
        return "how many rounds it has is not known"
    out, turned = listed("scan_output_axes", collected), listed("scan_output_directions", collected)
    if any(axis < 0 for axis in (*axes, *out)):
        return "it names axes from the end"
    results = [(axis, bool(last)) for axis, last in zip(out, turned, strict=True)]
    return _Rounds(rounds, list(node.inputs[:count]), sequences, 0, results)


def _unroll(graph: gs.Graph, node: gs.Node, body: gs.Graph, rounds: _Rounds, names: Names) -> None:
    made = _Copies(node, names)
    states, collected = list(rounds.states), [list[gs.Tensor]() for _ in rounds.results]
    for index in range(rounds.times):
        slices = [made.slice(one, axis, index if not last else -1 - index) for one, axis, last in rounds.sequences]
        number = [np.array(index), np.array(True)][: rounds.skipped]
        counted = [made.constant("round", _of_rank(one, body.inputs[i])) for i, one in enumerate(number)]
        given = [*counted, *states, *slices]
        known = {id(inner): outer for inner, outer in zip(body.inputs, given, strict=True)}
        results = made.round(body, known, index)[rounds.skipped // 2 :]
        states = results[: len(states)]
        for values, one in zip(collected, results[len(states) :], strict=True):
            values.append(one)
    at, outputs = edit.index_of(graph, node), list(node.outputs)
    edit.remove_node(graph, node)
    for output, state in zip(outputs, states, strict=False):
        made.hand_on(state, output)
    for output, values, (axis, last) in zip(outputs[len(states) :], collected, rounds.results, strict=True):
        made.join(list(reversed(values)) if last else values, axis, output)
    edit.insert_at(graph, at, made.nodes)


def _of_rank(value: NDArray[Any], like: gs.Tensor) -> NDArray[Any]:
    """A number as ONNX Runtime gives it to a body: with one axis where the body says that it has one."""
    return value.reshape((1,) * len(graphs.shape_of(like) or ()))


class _Copies:
    """The nodes that are written in the place of a loop."""

    def __init__(self, node: gs.Node, names: Names) -> None:
        self.nodes: list[gs.Node] = []
        self._base, self._names = node.name, names

    def constant(self, what: str, values: Any) -> gs.Constant:
        return edit.add_constant(self._names.fresh(f"{self._base}/{what}"), values)

    def _add(self, op: str, inputs: Sequence[gs.Tensor], output: gs.Tensor | None = None, **attrs: Any) -> gs.Tensor:
        output = gs.Variable(self._names.fresh(f"{self._base}/{op}_out"), inputs[0].dtype) if output is None else output
        self.nodes.append(gs.Node(op, self._names.fresh(f"{self._base}/{op}"), attrs, list(inputs), [output]))
        return output

    def slice(self, sequence: gs.Tensor, axis: int, index: int) -> gs.Tensor:
        """One element along an axis, which goes."""
        if graphs.is_constant(sequence):
            return self.constant("slice", graphs.values_of(sequence)[(slice(None),) * axis + (index,)])
        return self._add("Gather", [sequence, self.constant("index", np.array(index))], axis=axis)

    def round(self, body: gs.Graph, known: dict[int, gs.Tensor], index: int) -> list[gs.Tensor]:
        """Copies the nodes of a body; returns what its outputs are in this round."""
        for node in body.nodes:
            for tensor in node.outputs:
                if tensor.name:
                    name = self._names.fresh(f"{tensor.name}/round_{index}")
                    known[id(tensor)] = gs.Variable(name, tensor.dtype, tensor.shape)
            name = self._names.fresh(f"{node.name}/round_{index}")
            inputs, outputs = _mapped(node.inputs, known), _mapped(node.outputs, known)
            self.nodes.append(gs.Node(node.op, name, dict(node.attrs), inputs, outputs, node.domain))
        return _mapped(body.outputs, known)

    def hand_on(self, tensor: gs.Tensor, output: gs.Tensor) -> None:
        """The last state, as what the loop gave."""
        if output.name:
            self._add("Identity", [tensor], output)

    def join(self, values: Sequence[gs.Tensor], axis: int, output: gs.Tensor) -> None:
        """What each round gave, along a new axis."""
        if not output.name:
            return
        where = self.constant("axis", np.array([axis]))
        self._add("Concat", [self._add("Unsqueeze", [one, where]) for one in values], output, axis=axis)


def _mapped(tensors: Sequence[gs.Tensor], known: Mapping[int, gs.Tensor]) -> list[gs.Tensor]:
    return [known.get(id(tensor), tensor) for tensor in tensors]
