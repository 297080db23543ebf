"""Which values cross a border as half: inputs and outputs of the model, and what goes in and out of nested graphs.

Between graphs all stays FP32, with Casts inside, but for what is half on both sides anyway: results of an If that every
branch computes in half, what a Loop or Scan stacks up of values in half, elements of a sequence that only half reads.
The states of a Loop or Scan stay FP32: they gather the rounding of every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import nested
from qcompiler.ir.element_types import FP32, Slots
from qcompiler.passes.high_precision._view import MARGIN, TypingView
from qcompiler.passes.recurrent import recurrent_reader
from qcompiler.support.scopes import within
from qcompiler.target import DType


def of_model(view: TypingView) -> dict[str, str]:
    """Adds the graph's float inputs and outputs that fit to `view.borders`; returns why the others stay, by name."""
    refused: dict[str, str] = {}
    for tensor in {id(t): t for t in (*view.graph.inputs, *view.graph.outputs)}.values():
        if view.types.get(id(tensor)) != FP32 or graphs.is_constant(tensor):
            continue
        why = _unfit(tensor, view)
        if why:
            refused[tensor.name] = why
        else:
            view.borders.add(id(tensor))
    return refused


def _unfit(tensor: gs.Tensor, view: TypingView) -> str:
    """Why an input or output of the model cannot have the lower type; empty where it can."""
    if graphs.is_input(view.graph, tensor) and (layer := recurrent_reader(tensor)):
        return f"'{layer}' reads it, a recurrent layer, which TensorRT-RTX cannot build behind a Cast"
    if graphs.is_input(view.graph, tensor) and graphs.is_output(view.graph, tensor):
        return "it is input and output at once"
    seen = view.range(tensor)
    if seen is None:
        return "" if view.dtype is not DType.FP16 else "none of its values was observed, so nothing says that they fit"
    integer = any(
        graphs.is_op(node, "Cast") and (to := graphs.np_dtype(node.attrs.get("to"))) is not None and to.kind in "iu"
        for node, _ in graphs.consumers(tensor)
    )
    if integer and seen.absmax > view.format.exact:
        return f"it counts to {seen.absmax:.6g} and {view.dtype} is exact to {view.format.exact}"
    if view.dtype is DType.FP16 and seen.absmax * MARGIN > view.format.largest:
        return f"it reaches {seen.absmax:.4g}, times a margin of {MARGIN:g} more than FP16's 65504"
    if 0 < seen.absmax < view.format.normal:
        return f"it never exceeds {seen.absmax:.3g}, below the smallest normal {view.dtype} number"
    return ""


def between_graphs(view: TypingView, slots: Mapping[int, Slots]) -> tuple[dict[int, Slots], set[int]]:
    """What of If, Loop and Scan moves in the lower type, by id(node), and the ids of the inner ends of these values.

    Inner nodes are looked at first, so that an If may hand on what an If inside it gives.
    """
    found: dict[int, Slots] = {}
    ends: set[int] = set()
    known = within(slots, found)
    given = Counter(id(output) for one in graphs.graphs(view.graph) for output in one.outputs)
    for node in reversed(view.nodes):
        if not nested.is_typed(node):
            continue
        ins = [one for one in nested.entries(node) if not one.state and _read_low(one.tensor, view, known)]
        outs = [
            one
            for one in nested.exits(node)
            if not one.state
            and one.tensors
            and all(given[id(t)] == 1 and _given_low(node, t, view, known) for t in one.tensors)
        ]
        if not ins and not outs:
            continue
        ends.update(id(one.tensor) for one in ins)
        ends.update(id(tensor) for one in outs for tensor in one.tensors)
        found[id(node)] = Slots(tuple(one.index for one in ins), tuple(one.index for one in outs))
    return found, ends


def _read_low(tensor: gs.Tensor, view: TypingView, slots: Mapping[int, Slots]) -> bool:
    """Whether all that reads an element of a sequence is half."""
    if view.types.get(id(tensor)) != FP32 or view.is_output(tensor):
        return False
    uses = graphs.consumers(tensor)
    return bool(uses) and all(id(node) in slots and index in slots[id(node)].inputs for node, index in uses)


def _given_low(owner: gs.Node, tensor: gs.Tensor, view: TypingView, slots: Mapping[int, Slots]) -> bool:
    """Whether a node of the nested graph itself writes an output of it in half."""
    node = graphs.producer(tensor)
    if node is None or id(node) not in slots or view.types.get(id(tensor)) != FP32:
        return False
    inner = graphs.subgraphs(owner)
    home = view.homes[id(node)]
    low = any(node.outputs[i] is tensor for i in slots[id(node)].outputs)
    return low and any(home is one for one in inner)


def owners(graph: gs.Graph) -> Iterator[tuple[gs.Graph, gs.Tensor]]:
    """Every tensor that a graph takes as input or computes, with that graph, for all nested graphs."""
    for inner in graphs.graphs(graph):
        for tensor in (*inner.inputs, *(t for node in inner.nodes for t in node.outputs)):
            if tensor.name:
                yield inner, tensor
