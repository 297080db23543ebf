"""Which ranks a tensor can have in a run that succeeds: its readers often leave one where inference knows none.

`x: 2 or 3 → Unsqueeze(axes=[0]) → LSTM`, which takes rank 3: `x` has rank 2.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import RECURRENT
from qcompiler.support.scopes import within

ANY = frozenset(range(9))  # TensorRT takes no more than 8
Ranks = MutableMapping[int, frozenset[int]]  # by identity of the tensor

_SAME = frozenset(
    {"Abs", "Cast", "Clip", "Dropout", "Elu", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Neg"}
    | {"Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"}
)
_RECURRENT_INPUTS = (3, 3, 3, 2, 1, 3, 3, 2)  # X, W, R, B, sequence_lens, initial_h, initial_c, P


def possible(graph: gs.Graph, around: Mapping[int, frozenset[int]] | None = None) -> Ranks:
    """The ranks that each tensor of one graph can have; none where every run fails.

    What a node demands of its inputs counts where a graph output depends on it: others may not be run at all. An If
    may give what either of its branches gives.

    Args:
        graph: shapes are inferred.
        around: what is known of the tensors of the graphs around.
    """
    own: dict[int, frozenset[int]] = {}
    found: Ranks = within(around or {}, own)
    for tensor in graphs.tensors(graph):
        shape = graphs.shape_of(tensor)
        if shape is not None:
            found[id(tensor)] = frozenset({len(shape)})
    live = _live(graph)
    while True:
        before = dict(own)
        for node in graph.nodes:
            _forward(node, found)
        for node in reversed(graph.nodes):
            if id(node) in live:
                _backward(node, found)
        if own == before:
            return found


def impossible(branch: gs.Graph, node: gs.Node, found: Mapping[int, frozenset[int]]) -> str:
    """Why no run that succeeds can take this branch of an If, as the end of a sentence; empty where one can."""
    inside = possible(branch, found)
    for inner, outer in zip(branch.outputs, node.outputs, strict=True):
        gives, wanted = inside.get(id(inner), ANY), found.get(id(outer), ANY)
        if wanted and gives and not gives & wanted:
            return f"'{outer.name}' would have rank {_spell(gives)}, and what reads it takes rank {_spell(wanted)}"
    return ""


def _live(graph: gs.Graph) -> set[int]:
    """Nodes, by identity, that outputs depend on; what nested graphs read counts as read by their owner."""
    needed = {tensor.name for tensor in graph.outputs}
    live: set[int] = set()
    for node in reversed(graph.nodes):
        if not any(tensor.name in needed for tensor in node.outputs if tensor.name):
            continue
        live.add(id(node))
        needed |= {tensor.name for one in (node, *_inner(node)) for tensor in one.inputs}
    return live


def _inner(node: gs.Node) -> list[gs.Node]:
    return [nested for inner in graphs.subgraphs(node) for nested in graphs.walk(inner)]


def _forward(node: gs.Node, found: Ranks) -> None:
    if graphs.is_op(node, "If"):
        branches = [(inner, possible(inner, found)) for inner in graphs.subgraphs(node)]
        for i, output in enumerate(node.outputs):
            given = [inside.get(id(inner.outputs[i]), ANY) for inner, inside in branches]
            _narrow(found, output, frozenset().union(*given))
        return
    if graphs.is_op(node, *RECURRENT):
        for output, rank in zip(node.outputs, (4, 3, 3), strict=False):
            _narrow(found, output, frozenset({rank}))
    if graphs.is_op(node, "Conv", "ConvTranspose"):
        _narrow(found, node.outputs[0], _common(node, found))
    step = _step(node)
    if step is not None:
        before = found.get(id(node.inputs[0]), ANY)
        _narrow(found, node.outputs[0], frozenset(rank + step for rank in before if rank + step >= 0))


def _backward(node: gs.Node, found: Ranks) -> None:
    if graphs.is_op(node, *RECURRENT):
        for tensor, rank in zip(node.inputs, _RECURRENT_INPUTS, strict=False):
            _narrow(found, tensor, frozenset({rank}))
    if graphs.is_op(node, "Conv", "ConvTranspose"):
        _narrow(found, node.inputs[0], _common(node, found))
    step = _step(node)
    if step is not None:
        wanted = found.get(id(node.outputs[0]), ANY)
        _narrow(found, node.inputs[0], frozenset(rank - step for rank in wanted))


def _common(node: gs.Node, found: Ranks) -> frozenset[int]:
    return found.get(id(node.inputs[0]), ANY) & found.get(id(node.inputs[1]), ANY)


def _narrow(found: Ranks, tensor: gs.Tensor, to: frozenset[int]) -> None:
    if tensor.name:
        found[id(tensor)] = found.get(id(tensor), ANY) & to


def _step(node: gs.Node) -> int | None:
    """By how much the first output's rank exceeds the first input's; None where that is not fixed."""
    if not graphs.is_standard(node) or not node.inputs or not node.outputs:
        return None
    if node.op in _SAME:
        return 0
    if node.op not in ("Squeeze", "Unsqueeze"):
        return None
    axes = graphs.axes_of(node)
    return None if axes is None else len(axes) * (1 if node.op == "Unsqueeze" else -1)


def _spell(ranks: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(ranks)))
