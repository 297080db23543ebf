"""An LSTM, GRU or RNN of few steps is written out: one product for the inputs of all steps, then step after step.

    LSTM(x, W, R, B, h, c)  ⇒  X = x·Wᵀ + B;  i, o, f, g = Split(Xₜ + h·Rᵀ)
                               c' = σ(f)·c + σ(i)·tanh(g);  h' = σ(o)·tanh(c')
    GRU(x, W, R, B, h)      ⇒  z, r = Split(σ(Xₜ + h·Rᵀ));  g = tanh(Xₜ + (r·h)·Rᵀ + B);  h' = (1 - z)·g + z·h
    RNN(x, W, R, B, h)      ⇒  h' = tanh(Xₜ + h·Rᵀ)

TensorRT takes no quantized weights in a recurrent layer and computes it in FP32; written out its products are like all
others. What has no state to begin with has no product in its first step. Layers are written out in their order, until
the model has as many nodes and weights of theirs as it gets.

Source: ONNX operator specification, default activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import RECURRENT
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.products._budget import Budget
from qcompiler.passes.products._writer import AXES_ARE_INPUTS, Writer
from qcompiler.runtime import shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MOST_STEPS = 64
_NODES: Final = {"LSTM": 14, "GRU": 15, "RNN": 5}  # of one step, at most
_SMALLEST = 16  # channels: what is smaller than one INT8 tile is not quantized
_PLAIN: Final = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


@dataclass(frozen=True)
class WriteRecurrent(Pass):
    """Write out the steps of short recurrent layers, so that their products are quantized."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per recurrent layer of the main graph."""
        found = [node for node in graph.nodes if graphs.is_op(node, *RECURRENT)]
        if not found:
            return
        shapes.infer(graph)
        names, budget = Names(graph), Budget()
        for node in found:
            why = _refusal(node, budget) if int(graph.opset) >= AXES_ARE_INPUTS else "its opset is too old"
            if why:
                yield Skipped(node.name, f"{why}: it stays one operator, in floats")
                continue
            _write(graph, node, names)
            yield Changed(node.name, f"{node.op} written out")


def _refusal(node: gs.Node, budget: Budget) -> str:
    """Why a recurrent layer is not written out; empty where it is, and has what it takes from the budget."""
    attrs = node.attrs
    ways = 2 if attrs.get("direction", "forward") == "bidirectional" else 1
    if list(attrs.get("activations", _PLAIN[node.op] * ways)) != _PLAIN[node.op] * ways:
        return "its activations are others than the default"
    odd = [name for name in ("clip", "activation_alpha", "activation_beta") if name in attrs]
    odd += [name for name in ("input_forget", "layout") if attrs.get(name, 0)]
    if odd or graphs.is_present(node, 4) or graphs.is_present(node, 7):
        return f"it has {', '.join(odd) or 'sequence lengths or peepholes'}"
    if any(graphs.constant_value(node.inputs[i]) is None for i in (1, 2, 3) if graphs.is_present(node, i)):
        return "its weights are not constant"
    steps = _steps(node)
    if steps is None:
        return "its number of steps is not known"
    if not 1 < steps <= _MOST_STEPS:
        return f"it has {steps} steps, and 2 to {_MOST_STEPS} are written out"
    w, r = (graphs.values_of(node.inputs[index]) for index in (1, 2))
    if min(w.shape[2], r.shape[2]) < _SMALLEST:
        return "its matrices are smaller than one INT8 tile"
    return budget.take(ways * steps * _NODES[node.op], steps * r.nbytes)  # each step stores its recurrent weights


def _steps(node: gs.Node) -> int | None:
    shape = graphs.shape_of(node.inputs[0])
    steps = shape[0] if shape else None
    return steps if isinstance(steps, int) else None


States = Sequence[gs.Tensor | None]  # hidden, and of an LSTM the cell's; None is zero


class _Cell(NamedTuple):
    """One direction of a layer.

    Attributes:
        weight: [inputs, gates], of the product with the inputs.
        bias: [gates], of the inputs; what the state adds to it is in it where that is the same.
        recurrent: [state, gates].
        inner: [state], what a GRU adds to its candidate before the reset gate; None for others.
    """

    weight: Array
    bias: Array
    recurrent: Array
    inner: Array | None


def _cell(node: gs.Node, way: int) -> _Cell:
    w, r = (graphs.values_of(node.inputs[index])[way] for index in (1, 2))
    given = graphs.values_of(node.inputs[3])[way] if graphs.is_present(node, 3) else np.zeros(2 * len(w), w.dtype)
    bias, of_state = np.split(given, 2)
    width = r.shape[1]
    inner = None
    if node.op == "GRU" and node.attrs.get("linear_before_reset", 0):
        inner, of_state = of_state[2 * width :], np.concatenate([of_state[: 2 * width], np.zeros(width, w.dtype)])
    return _Cell(w.T, bias + of_state, r.T, inner)


def _write(graph: gs.Graph, node: gs.Node, names: Names) -> None:
    write = Writer(graph, node, names)
    steps = _steps(node) or 0
    direction = node.attrs.get("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    all_steps: list[list[gs.Tensor]] = []
    last: list[list[gs.Tensor]] = []
    for way, back in enumerate(backwards):
        states = [
            None
            if not graphs.is_present(node, index)
            else write.squeeze(write.add("Slice", [node.inputs[index], *_range(write, way)]), [0])
            for index in (5, 6)[: 2 if node.op == "LSTM" else 1]
        ]
        hidden, ends = _run(write, node, _cell(node, way), steps, back, states)
        all_steps.append(hidden)
        last.append(ends)
    if write.wants(0):
        ways = [write.add("Concat", [write.unsqueeze(one, [0]) for one in hidden], axis=0) for hidden in all_steps]
        write.result(0, write.add("Concat", [write.unsqueeze(one, [1]) for one in ways], axis=1))
    for index in (1, 2):
        if write.wants(index):
            ends = [write.unsqueeze(states[index - 1], [0]) for states in last]
            write.result(index, write.add("Concat", ends, axis=0))
    write.finish()


def _range(write: Writer, way: int) -> list[gs.Tensor]:
    bounds = (("start", way), ("end", way + 1), ("axis", 0))
    return [write.constant(what, np.array([value], np.int64)) for what, value in bounds]


def _run(
    write: Writer, node: gs.Node, cell: _Cell, steps: int, back: bool, states: States
) -> tuple[list[gs.Tensor], list[gs.Tensor]]:
    """All steps of one direction: the hidden state behind each, in the order of the data, and the last states."""
    product = write.matmul(node.inputs[0], write.constant("W", cell.weight), name=write.fresh("input"))
    inputs = write.add("Add", [product, write.constant("B", cell.bias)])
    recurrent, one_step = write.constant("R", cell.recurrent), _STEPS[node.op]
    hidden: list[gs.Tensor] = [inputs] * steps
    last: list[gs.Tensor] = []
    for step in reversed(range(steps)) if back else range(steps):
        gates = write.add("Gather", [inputs, write.constant("step", np.array(step))], axis=0)
        last = one_step(write, gates, recurrent, cell, last or states)
        hidden[step] = last[0]
    return hidden, last


def _of_state(write: Writer, state: gs.Tensor | None, recurrent: gs.Tensor) -> gs.Tensor | None:
    return None if state is None else write.matmul(state, recurrent, name=write.fresh("state/round"))


def _with(write: Writer, gates: gs.Tensor, more: gs.Tensor | None) -> gs.Tensor:
    return gates if more is None else write.add("Add", [gates, more])


def _lstm(write: Writer, gates: gs.Tensor, recurrent: gs.Tensor, cell: _Cell, states: States) -> list[gs.Tensor]:
    width = cell.recurrent.shape[0]
    hidden, kept = states
    whole = _with(write, gates, _of_state(write, hidden, recurrent))
    i, o, f, g = write.split(whole, 1, [width] * 4)
    new = write.add("Mul", [write.add("Sigmoid", [i]), write.add("Tanh", [g])])
    if kept is not None:
        new = write.add("Add", [write.add("Mul", [write.add("Sigmoid", [f]), kept]), new])
    return [write.add("Mul", [write.add("Sigmoid", [o]), write.add("Tanh", [new])]), new]


def _gru(write: Writer, gates: gs.Tensor, recurrent: gs.Tensor, cell: _Cell, states: States) -> list[gs.Tensor]:
    width = cell.recurrent.shape[0]
    (hidden,) = states
    of_gates, of_candidate = write.split(gates, 1, [2 * width, width])
    if cell.inner is not None:  # the product with the whole state stands in front of the reset gate
        product = _of_state(write, hidden, recurrent)
        given = [None, None] if product is None else write.split(product, 1, [2 * width, width])
        z, r = write.split(write.add("Sigmoid", [_with(write, of_gates, given[0])]), 1, [width] * 2)
        inner: gs.Tensor = write.constant("inner", cell.inner)
        inner = inner if given[1] is None else write.add("Add", [given[1], inner])
        of_candidate = write.add("Add", [of_candidate, write.add("Mul", [r, inner])])
    else:
        front = write.constant("R_gates", cell.recurrent[:, : 2 * width]) if hidden is not None else recurrent
        of_gates = _with(write, of_gates, _of_state(write, hidden, front))
        z, r = write.split(write.add("Sigmoid", [of_gates]), 1, [width] * 2)
        if hidden is not None:
            behind = write.constant("R_candidate", cell.recurrent[:, 2 * width :])
            left = write.add("Mul", [r, hidden])
            of_candidate = _with(write, of_candidate, _of_state(write, left, behind))
    candidate = write.add("Tanh", [of_candidate])
    if hidden is None:
        return [write.add("Sub", [candidate, write.add("Mul", [z, candidate])])]
    # (1 - z)·g + z·h
    return [write.add("Add", [candidate, write.add("Mul", [z, write.add("Sub", [hidden, candidate])])])]


def _rnn(write: Writer, gates: gs.Tensor, recurrent: gs.Tensor, cell: _Cell, states: States) -> list[gs.Tensor]:
    return [write.add("Tanh", [_with(write, gates, _of_state(write, states[0], recurrent))])]


_Step = Callable[[Writer, gs.Tensor, gs.Tensor, _Cell, States], list[gs.Tensor]]
_STEPS: Final[dict[str, _Step]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
