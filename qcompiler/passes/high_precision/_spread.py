"""How "stays FP32" spreads from node to neighbour: angles, recurrent layers, indices and islands.

Every step only adds nodes, so repeating until nothing changes ends and gives the same set in any order of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import FP32
from qcompiler.ir.nested import entries, exits
from qcompiler.ir.operators import COMPARES, MOVES, MULTIPLYING, POINTWISE, RECURRENT
from qcompiler.passes.high_precision import _borders as borders
from qcompiler.passes.high_precision._view import NUMPY, TypingView, Verdict

Verdicts = dict[str, Verdict]

_GROWS = frozenset({"Resize", "Upsample", "Tile", "Expand", "Pad"})
_DATA = frozenset({"OneHot", "DequantizeLinear", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})
_LARGE = 4096  # elements of a constant from which on it is a weight or a table, not a list of frequencies
_ANGLE = 4.0  # |x| from which on FP16's rounding of an angle exceeds 0.2 %


def spread(view: TypingView, nodes: Sequence[gs.Node], verdicts: Verdicts) -> None:
    """Adds a verdict for every further node that has to stay FP32 because of its neighbours."""
    placed = {id(node) for node in nodes}
    positional = _positional(view)
    for node in nodes:
        if graphs.is_op(node, "Sin", "Cos"):
            _angle(node, view, placed, positional, verdicts)
        if graphs.is_op(node, *RECURRENT):
            _recurrent(node, view, placed, verdicts)
        if graphs.is_op(node, "Loop", "Scan"):
            _states(node, placed, verdicts)
    _indices(view, nodes, positional, verdicts)
    _islands(_Borders(view, placed, verdicts), nodes, positional)


# --- What is computed from positions and shapes alone -----------------------------------------------------------------


def _positional(view: TypingView) -> set[int]:
    """Ids of the tensors computed from integers and small constants alone."""
    found: set[int] = set()

    def counts(tensor: gs.Tensor) -> bool:
        if isinstance(tensor, gs.Constant):
            return bool(np.prod(tensor.shape) <= _LARGE)
        return id(tensor) in found or view.types.get(id(tensor), FP32).kind in "iub"

    for node in view.nodes:
        if graphs.subgraphs(node) or not graphs.is_standard(node) or node.op in _DATA or not node.inputs:
            continue
        if all(counts(tensor) for tensor in node.inputs if tensor.name):
            found.update(id(tensor) for tensor in node.outputs)
    return found


def _angle(node: gs.Node, view: TypingView, placed: set[int], positional: set[int], verdicts: Verdicts) -> None:
    """Sin and Cos need their argument to a fraction of a turn, whatever its size: keep all of its computation FP32."""
    seen = view.range(node.inputs[0])
    counted = id(node.inputs[0]) in positional
    if not counted and seen is not None and seen.absmax <= _ANGLE:
        return
    reach = "positions" if counted else f"values up to {0.0 if seen is None else seen.absmax:.4g}"
    why = f"the angle of '{node.name}' ({node.op}) is computed from {reach}, which {view.dtype} rounds too far"
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if id(one) in placed:
            verdicts.setdefault(one.name, Verdict("angle", why))
        for tensor in one.inputs:
            before = graphs.producer(tensor)
            if before is None or view.types.get(id(tensor)) != FP32 or before.name in verdicts:
                continue
            cheap = before.op in MOVES or before.op in POINTWISE or (counted and before.op in MULTIPLYING)
            if cheap and (id(tensor) in positional) == counted:
                waiting.append(before)


def _recurrent(node: gs.Node, view: TypingView, placed: set[int], verdicts: Verdicts) -> None:
    """TensorRT-RTX 1.7 cannot build a recurrent layer that reads a Cast: what computes its inputs stays FP32 too."""
    waiting, seen = [node], {id(node)}
    while waiting:
        one = waiting.pop()
        for tensor in one.inputs:
            before = graphs.producer(tensor)
            if before is None or id(before) not in placed or view.types.get(id(tensor)) != FP32:
                continue
            if before.op in MOVES and id(before) not in seen:
                seen.add(id(before))
                waiting.append(before)
            why = f"feeds '{node.name}' ({node.op}), which TensorRT-RTX cannot build behind a Cast"
            verdicts.setdefault(before.name, Verdict("recurrent", why))


def _states(node: gs.Node, placed: set[int], verdicts: Verdicts) -> None:
    """What is added to the state of a Loop or Scan from one step to the next is added in FP32.

    That is every node that lies between a state as it comes and a state as it goes, without a matrix product on the
    way: c' = f * c + i * g. The products that make f, i and g are free to run in half.
    """
    inputs = [entry.tensor for entry in entries(node) if entry.state]
    outputs = [tensor for one in exits(node) if one.state for tensor in one.tensors]
    behind = _reach(inputs, lambda tensor: [reader for reader, _ in graphs.consumers(tensor)], lambda one: one.outputs)
    ahead = _reach(outputs, lambda tensor: [graphs.producer(tensor)], lambda one: one.inputs)
    for one in behind:
        if id(one) in {id(other) for other in ahead} and id(one) in placed:
            why = f"computes the state of '{node.name}' ({node.op}), which would gather rounding from step to step"
            verdicts.setdefault(one.name, Verdict("state", why))


def _reach(
    tensors: Iterable[gs.Tensor],
    step: Callable[[gs.Tensor], Iterable[gs.Node | None]],
    onward: Callable[[gs.Node], Iterable[gs.Tensor]],
) -> list[gs.Node]:
    """Nodes that are reached from tensors without passing a matrix product or a nested graph."""
    waiting, found = list(tensors), dict[int, gs.Node]()
    while waiting:
        for node in step(waiting.pop()):
            if node is None or id(node) in found or graphs.is_op(node, *MULTIPLYING) or graphs.subgraphs(node):
                continue
            found[id(node)] = node
            waiting += onward(node)
    return list(found.values())


def _indices(view: TypingView, nodes: Sequence[gs.Node], positional: set[int], verdicts: Verdicts) -> None:
    """Positions and sizes computed in floats that end as integers, or where only FP32 is read."""
    ends: set[int] = set()

    def is_end(reader: gs.Node, index: int) -> bool:
        if id(reader) in ends or reader.op in COMPARES:
            return True
        if graphs.is_op(reader, "Cast"):
            to = graphs.np_dtype(reader.attrs.get("to"))
            return to is not None and to.kind in "iub"
        return graphs.is_standard(reader) and index not in view.slots(reader).inputs and reader.op != "Shape"

    for node in reversed(nodes):
        floats = [t for t in node.outputs if view.types.get(id(t)) == FP32]
        uses = [use for tensor in floats for use in graphs.consumers(tensor)]
        counted = floats and all(id(t) in positional and not view.is_output(t) for t in floats)
        if counted and uses and all(is_end(*use) for use in uses):
            ends.add(id(node))
            verdicts.setdefault(node.name, Verdict("index", "computes sizes or positions, which must stay exact"))


# --- Islands ----------------------------------------------------------------------------------------------------------


class _Borders:
    """Which sides of a node are FP32. What can be either (constants, results of Cast and DQ) counts as neither."""

    def __init__(self, view: TypingView, placed: set[int], verdicts: Verdicts) -> None:
        self.view, self.placed, self.verdicts = view, placed, verdicts
        self.update()

    def update(self) -> None:
        """Looks again at what crosses between graphs as half; it only gets less as verdicts are added."""
        low = {id(one): self.view.slots(one) for one in self.view.nodes if not self._high(one)}
        nested, ends = borders.between_graphs(self.view, low)
        self.nested, self.ends = nested, self.view.borders | ends

    def sources(self, node: gs.Node, *, edges: bool) -> list[bool]:
        """For each FP32 input: whether an FP32 node writes it; `edges` says whether graph inputs count as one."""
        found = []
        for tensor in {id(t): t for t in node.inputs}.values():
            if isinstance(tensor, gs.Constant) or self.view.types.get(id(tensor)) != FP32:
                continue
            before = graphs.producer(tensor)
            if graphs.is_op(before, "Cast") and before is not None:
                if self.view.types.get(id(before.inputs[0])) == NUMPY[self.view.dtype]:
                    found.append(False)
            elif not graphs.is_op(before, "DequantizeLinear", "ConstantOfShape"):
                if before is not None:
                    found.append(self._high(before) and not self._handed_on(before, tensor))
                elif edges:
                    found.append(id(tensor) not in self.ends)
        return found

    def sinks(self, node: gs.Node, *, edges: bool) -> list[bool]:
        """For each use of an output: whether FP32 is read; `edges` says whether graph outputs and Q count at all."""
        found = []
        for tensor in node.outputs:
            if self.view.types.get(id(tensor)) != FP32:
                continue
            if edges and self.view.is_output(tensor):
                found.append(id(tensor) not in self.ends)
            for reader, index in graphs.consumers(tensor):
                if graphs.is_op(reader, "QuantizeLinear"):
                    found += [True] if edges else []
                elif graphs.is_op(reader, "Cast"):
                    to = graphs.np_dtype(reader.attrs.get("to"))
                    found += [False] if to == NUMPY[self.view.dtype] else []
                elif not graphs.is_op(reader, "Shape", "Size"):
                    low = self.nested[id(reader)] if id(reader) in self.nested else self.view.slots(reader)
                    found.append((self._high(reader) and id(reader) not in self.nested) or index not in low.inputs)
        return found

    def _handed_on(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether an If, Loop or Scan gives this output as half."""
        nested = self.nested.get(id(node))
        return nested is not None and any(node.outputs[i] is tensor for i in nested.outputs)

    def _high(self, node: gs.Node) -> bool:
        return node.name in self.verdicts or id(node) not in self.placed


def _islands(sides: _Borders, nodes: Sequence[gs.Node], positional: set[int]) -> None:
    rules: Iterable[Callable[[gs.Node, _Borders], str]] = (_moves, _compares, _between, _square)
    waiting = [node for node in nodes if node.name not in sides.verdicts and graphs.is_standard(node)]
    grown = True
    while grown:
        grown = False
        sides.update()
        for node in waiting:
            why = next((text for rule in rules if (text := rule(node, sides))), "")
            why = why or _counted(node, sides, positional)
            if why:
                sides.verdicts[node.name] = Verdict("island", why)
                grown = True
        waiting = [node for node in waiting if node.name not in sides.verdicts]


def _moves(node: gs.Node, sides: _Borders) -> str:
    """What FP32 nodes write is moved as FP32; the Cast stands where half begins to compute.

    Operators that copy a value many times are the exception: they move half where half is read.
    """
    sources = sides.sources(node, edges=True) if node.op in MOVES else []
    if not sources or not all(sources):
        return ""
    if node.op not in _GROWS or any(sides.sinks(node, edges=True)):
        return "moves values of nodes that stay FP32"
    return ""


def _compares(node: gs.Node, sides: _Borders) -> str:
    """A comparison of FP32 values must not see them rounded."""
    found = node.op in COMPARES and any(sides.sources(node, edges=True))
    return "compares values that are computed in FP32" if found else ""


def _between(node: gs.Node, sides: _Borders) -> str:
    """Pointwise between FP32 nodes: x - mean(x) in a written-out normalisation, and its division by the deviation."""
    if node.op not in POINTWISE:
        return ""
    sources, sinks = sides.sources(node, edges=False), sides.sinks(node, edges=False)
    several = len(sources) > 1
    if any(sources) and any(sinks) and (several or all(sinks)):
        return "sits between nodes that stay FP32"
    return "all it reads is FP32: one Cast behind it instead of several before it" if several and all(sources) else ""


def _square(node: gs.Node, sides: _Borders) -> str:
    """Squares that are only summed up in FP32: the Cast may as well stand before them."""
    squares = node.op == "Pow" or (node.op == "Mul" and node.inputs[0] is node.inputs[1])
    sinks = sides.sinks(node, edges=False) if squares else []
    return "its squares are only summed up, in FP32" if sinks and all(sinks) else ""


def _counted(node: gs.Node, sides: _Borders, positional: set[int]) -> str:
    """Computed from integers and only read in FP32: nothing is gained in half."""
    counted = all(id(tensor) in positional for tensor in node.outputs) and node.op not in MULTIPLYING
    sinks = sides.sinks(node, edges=True) if counted else []
    return "computed from integers for nodes that stay FP32" if sinks and all(sinks) else ""
