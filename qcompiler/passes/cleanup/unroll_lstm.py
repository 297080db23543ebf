"""An LSTM of one step inside a branch of If is written out, for TensorRT takes no recurrent layer there.

LSTM(x, W, R, B, h, c)  ⇒  i, o, f, g = Split(x·Wᵀ + h·Rᵀ + B);  c' = σ(f)·c + σ(i)·tanh(g);  h' = σ(o)·tanh(c')

Source: ONNX operator specification, LSTM, default activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import InternalError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import RECURRENT
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.runtime import shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_DEFAULTS = {"direction": "forward", "activations": ["Sigmoid", "Tanh", "Tanh"], "input_forget": 0, "layout": 0}


@dataclass(frozen=True)
class UnrollLSTM(Pass):
    """Write out one step of an LSTM inside a branch, where TensorRT takes no recurrent layer."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per recurrent layer inside a branch."""
        found = [(inner, node) for inner in graphs.branches(graph) for node in inner.nodes if _is_recurrent(node)]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            why = _refusal(node)
            if why:
                yield Skipped(node.name, f"{why}; TensorRT refuses it inside a branch of If")
                continue
            count = _write_out(inner, node, names)
            yield Changed(node.name, f"one step of LSTM written out as {count} nodes")


def _is_recurrent(node: gs.Node) -> bool:
    return graphs.is_op(node, *RECURRENT)


def _refusal(node: gs.Node) -> str:
    """Why a recurrent layer cannot be written out."""
    if node.op != "LSTM":
        return f"{node.op} is not written out"
    given = [name for name, value in _DEFAULTS.items() if node.attrs.get(name, value) != value]
    given += [name for name in ("clip", "activation_alpha", "activation_beta") if name in node.attrs]
    if given or graphs.is_present(node, 4) or graphs.is_present(node, 7):
        return f"it has {', '.join(given) or 'sequence lengths or peepholes'}"
    shape = graphs.shape_of(node.inputs[0])
    if shape is None or len(shape) != 3 or shape[0] != 1:
        return "it has more than one step, or a number that is not fixed"
    weights = (1, 2, *((3,) if graphs.is_present(node, 3) else ()))
    if any(graphs.constant_value(node.inputs[i]) is None for i in weights):
        return "its weights are not constant"
    return "" if graphs.is_float(node.inputs[1]) else "its type is not known"


def _write_out(graph: gs.Graph, node: gs.Node, names: Names) -> int:
    """Replaces an LSTM; every tensor between is [1, batch, features]. Returns the number of nodes."""
    name, at = node.name, edit.index_of(graph, node)
    reads = [tensor if tensor.name else None for tensor in node.inputs] + [None] * 8
    x, w, r, bias, _, hidden, cell = reads[:7]
    all_steps, last, last_cell = [*node.outputs, *[gs.Variable.empty()] * 3][:3]
    dtype = graphs.dtype_of(node.inputs[1])
    edit.remove_node(graph, node)
    nodes: list[gs.Node] = []

    def value(tensor: gs.Tensor | None) -> Array | None:
        return None if tensor is None else graphs.constant_value(tensor)

    def constant(what: str, values: Array) -> gs.Constant:
        return edit.add_constant(names.fresh(f"{name}/{what}"), values)

    def add(op: str, what: str, inputs: Sequence[gs.Tensor | None], out: gs.Tensor | None = None) -> gs.Tensor:
        made = out if out is not None and out.name else gs.Variable(names.fresh(f"{name}/{what}"), dtype)
        nodes.append(gs.Node(op, names.fresh(f"{name}/{what}/{op}"), {}, list(inputs), [made]))
        return made

    gates = add("MatMul", "input", [x, constant("W", _matrix(value(w)).T)])
    if hidden is not None:
        recurrent = add("MatMul", "recurrent", [hidden, constant("R", _matrix(value(r)).T)])
        gates = add("Add", "gates", [gates, recurrent])
    if bias is not None:
        of_input, of_recurrent = np.split(_matrix(value(bias)), 2)
        gates = add("Add", "biased", [gates, constant("B", of_input + of_recurrent)])
    width = _matrix(value(r)).shape[1]
    parts = [gs.Variable(names.fresh(f"{name}/{gate}"), dtype) for gate in ("i", "o", "f", "c")]
    sizes = constant("sizes", np.full(4, width, np.int64))
    nodes.append(gs.Node("Split", names.fresh(f"{name}/Split"), {"axis": 2}, [gates, sizes], parts))
    i, o, f = (add("Sigmoid", f"{part.name.rpartition('/')[2]}_open", [part]) for part in parts[:3])
    candidate = add("Tanh", "candidate", [parts[3]])
    if cell is None:
        new = add("Mul", "cell", [i, candidate], last_cell)
    else:
        kept, let_in = add("Mul", "kept", [f, cell]), add("Mul", "let_in", [i, candidate])
        new = add("Add", "cell", [kept, let_in], last_cell)
    result = add("Mul", "hidden", [o, add("Tanh", "bounded", [new])], last)
    if all_steps.name:
        add("Unsqueeze", "steps", [result, constant("axis", np.array([0]))], all_steps)
    edit.insert_at(graph, at, nodes)
    return len(nodes)


def _matrix(values: Array | None) -> Array:
    """What the one direction of a weight holds, as a view."""
    if values is None:
        raise InternalError("a weight of an LSTM is constant for _refusal and not for _write_out")
    matrix: Array = values[0]
    return matrix
