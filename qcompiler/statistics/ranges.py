"""Smallest and largest value of every float tensor, observed by running; what the typing pass decides with.

What only rearranges a tensor has its range and is not measured. The reductions run inside the graph, so that only two
scalars per tensor leave ONNX Runtime and no activation is kept for them. Their order matters: ONNX Runtime orders nodes
backwards from the last ones, so with the reduction of the deepest tensor listed first each tensor is reduced where it
arises and freed (measured: 8 MB against 248 MB for 60 tensors of 4 MB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import decoder_io, element_types, nested
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.names import Names
from qcompiler.ir.operators import REARRANGES
from qcompiler.runtime.stream import fill

if TYPE_CHECKING:
    from qcompiler.ir.signature import Feeds
    from qcompiler.runtime.stream import Part


_BLOCK = 640  # nodes; with two reductions for each, no more than a session has that opens fast (`stream.MOST_NODES`)
_REDUCIBLE = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value seen, in the tensor's own unit; both may be infinite (masks), never NaN.

    Attributes:
        low: smallest.
        high: largest.
        low_at: the first sample that has it, by its place in the data; -1 where nobody knows.
        high_at: the same of the largest.
    """

    low: float
    high: float
    low_at: int = field(default=-1, compare=False)
    high_at: int = field(default=-1, compare=False)

    @property
    def absmax(self) -> float:
        """Largest |x| seen."""
        return max(abs(self.low), abs(self.high))

    @property
    def nearest_zero(self) -> float:
        """Smallest |x| that the two ends allow: 0 where the range includes it."""
        return 0.0 if self.low <= 0 <= self.high else min(abs(self.low), abs(self.high))

    def __or__(self, other: Range) -> Range:
        """The range of both together."""
        low = self if self.low <= other.low else other
        high = self if self.high >= other.high else other
        return Range(low.low, high.high, low.low_at, high.high_at)


@dataclass(frozen=True)
class Ranges(Mapping[str, Range]):
    """Observed ranges by tensor name. Tensors that were always empty, or whose graph never ran, are not in it."""

    found: Mapping[str, Range] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Range:
        """The range of a tensor; KeyError where it was not observed."""
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        """Names in graph order."""
        return iter(self.found)

    def __len__(self) -> int:
        """How many tensors were observed."""
        return len(self.found)


def measure(
    model: models.Model | gs.Graph,
    feeds: Iterable[Feeds],
    names: Iterable[str] | None = None,
    *,
    quick: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Ranges:
    """Runs the model over `feeds` and returns the range of FP32 and FP16 tensors, by name.

    Tensors in branches of If and in bodies of Loop and Scan are among them, with the values of every run of their
    graph; those of a branch that was never taken, or of a body that never ran, are not.

    A tensor that is NaN somewhere has the range of its other values, as far as ONNX Runtime's reduction sees them;
    the observation of the calibration data is what reports NaN.

    Args:
        model: a model or graph; it stays as it is.
        feeds: what to run.
        names: of the tensors that are measured; None for all that `wanted` lists.
        quick: as of `qcompiler.runtime.stream.Stream`: for a handful of feeds.
        advance: called with 1 behind each feed.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime refuses the model, or a node fails.
    """
    tapped = Tapped(model, names)
    seen = tapped.accumulator()
    if not seen.tensors:
        return Ranges()
    graph = tapped.graph
    graph.outputs = [end for tap in tapped.taps for end in tap.ends]
    fill(graph, [seen], feeds, quick=quick, advance=advance)
    return tapped.ranges(seen)


def wanted(model: models.Model | gs.Graph) -> tuple[str, ...]:
    """Names of the FP32 and FP16 tensors, of nested graphs too, that are measured where all of them are asked for."""
    graph = model.graph if isinstance(model, models.Model) else model
    types = element_types.infer_all(graph)
    found = (one for inner in graphs.graphs(graph) for one in graphs.tensors(inner) if not _moved(one, inner is graph))
    return tuple(
        dict.fromkeys(one.name for one in found if not graphs.is_constant(one) and types.get(id(one)) in _REDUCIBLE)
    )


def measured_as(tensor: gs.Tensor) -> str:
    """The name under which a tensor of the main graph is measured: that of what is only rearranged to it."""
    while _moved(tensor, True):
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)


def _moved(tensor: gs.Tensor, outermost: bool) -> bool:
    """Whether a tensor has the values of another one; those of a branch may be others than the same outside."""
    node = graphs.producer(tensor)
    if not outermost or node is None or not graphs.is_op(node, *REARRANGES):
        return False
    return not graphs.is_constant(node.inputs[0])


class Tapped:
    """A graph that also computes the smallest and largest value of its tensors.

    Args:
        model: a model or graph; it stays as it is.
        names: of the tensors that are measured; None for all that `wanted` lists.

    Attributes:
        graph: a copy with the reductions, whose outputs are those of the model.
        taps: what is measured, in graph order.
    """

    def __init__(self, model: models.Model | gs.Graph, names: Iterable[str] | None = None) -> None:
        original = model.graph if isinstance(model, models.Model) else model
        self.graph = original.copy()
        chosen = frozenset(wanted(original) if names is None else names)
        self.taps = _Taps(self.graph, chosen).of(self.graph) if chosen else []
        decoder = decoder_io.of_graph(original)
        self._pairs = () if decoder is None else decoder.pairs

    def accumulator(self) -> Ends:
        """What gathers the values while feeds go by, or a part of them."""
        return Ends(self.taps)

    def ranges(self, seen: Ends) -> Ranges:
        """What was gathered; the cache of a decoder that was empty has the range that its `present` has."""
        found = seen.found
        known = {tap.name: found[tap.name] for tap in self.taps if tap.name in found and _real(found[tap.name])}
        past = {pair.past: known[pair.present] for pair in self._pairs if pair.present in known}
        return Ranges(past | known)


def _real(value: Range) -> bool:
    """False where nothing was seen: the maximum of nothing is -inf."""
    return value.low <= value.high and not math.isnan(value.low) and not math.isnan(value.high)


@dataclass(frozen=True, slots=True)
class _Tap:
    """A tensor, and the two scalars of the graph at hand that hold its minimum and maximum."""

    name: str
    dtype: np.dtype[Any]
    ends: tuple[gs.Variable, gs.Variable]


class Ends:
    """Smallest and largest values by tensor name, from the two scalars of each tap, which may come one by one."""

    def __init__(self, taps: Sequence[_Tap]) -> None:
        """`taps` as of `Tapped`."""
        self._taps = taps
        self._lows: dict[str, _End] = {}
        self._highs: dict[str, _End] = {}

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the scalars."""
        return [end.name for tap in self._taps for end in tap.ends]

    @property
    def found(self) -> dict[str, Range]:
        """By tensor name, in graph order, as far as they came by; where one was always empty, inf and -inf."""
        names = [tap.name for tap in self._taps if tap.name in self._lows]
        ends = ((name, self._lows[name], self._highs[name]) for name in names)
        return {name: Range(low[0], high[0], low[1], high[1]) for name, low, high in ends}

    def __getstate__(self) -> dict[str, object]:
        """What was seen, without the graph that shows it."""
        return {"_taps": (), "_lows": self._lows, "_highs": self._highs}

    def merge(self, other: Ends) -> None:
        """Adds what another one has seen of the same tensors, in any order."""
        for name, (value, at) in other._lows.items():
            self._lows[name] = _lower(self._lows.get(name, _NO_LOW), value, at)
        for name, (value, at) in other._highs.items():
            self._highs[name] = _higher(self._highs.get(name, _NO_HIGH), value, at)

    def update(self, part: Part) -> None:
        """Takes in the scalars that are in the part; its index is the place of the sample."""
        values, at = part.values, part.index
        for tap in self._taps:
            low, high = tap.ends[0].name, tap.ends[1].name
            if low in values:
                self._lows[tap.name] = _lower(self._lows.get(tap.name, _NO_LOW), float(values[low]), at)
            if high in values:
                self._highs[tap.name] = _higher(self._highs.get(tap.name, _NO_HIGH), float(values[high]), at)


_End = tuple[float, int]  # a value, and the place of the first sample that has it
_NO_LOW: _End = (math.inf, -1)
_NO_HIGH: _End = (-math.inf, -1)


def _lower(known: _End, value: float, at: int) -> _End:
    """The lower of two ends, of equals the first sample; NaN is none."""
    return (value, at) if value < known[0] or (value == known[0] and not 0 <= known[1] <= at) else known


def _higher(known: _End, value: float, at: int) -> _End:
    return (value, at) if value > known[0] or (value == known[0] and not 0 <= known[1] <= at) else known


_ENDS = (("ReduceMin", math.inf), ("ReduceMax", -math.inf))  # and what stands for nothing seen


class _Taps:
    """Adds the reductions to a graph and to those that it nests.

    A nested graph hands its scalars out as further outputs of its node. A Loop or Scan stacks them, one per run of the
    body, and they are reduced once more outside. An If has the same outputs whichever branch it takes: the other one
    gives plus and minus infinity for them.
    """

    def __init__(self, graph: gs.Graph, chosen: AbstractSet[str]) -> None:
        self.chosen = chosen
        self.types = element_types.infer_all(graph)
        self.names = Names(graph)

    def of(self, graph: gs.Graph) -> list[_Tap]:
        """The taps of a graph whose nodes now compute them; they are no outputs yet."""
        within = [tap for node in list(graph.nodes) for tap in self._nested(node)]
        borrowed = {id(t) for t in graphs.tensors(graph)} - _own(graph)
        taps: list[_Tap] = []
        made: dict[int, list[gs.Node]] = {}  # by the tensor that they reduce
        for tensor in list(graphs.tensors(graph)):
            dtype = self.types.get(id(tensor))
            if tensor.name not in self.chosen or dtype not in _REDUCIBLE or id(tensor) in borrowed:
                continue
            taps.append(self._reduce(tensor.name, dtype, (tensor, tensor), made.setdefault(id(tensor), [])))
        nodes: list[gs.Node] = []
        taps += [self._reduce(tap.name, tap.dtype, tap.ends, nodes) if tap.ends[0].shape else tap for tap in within]
        graph.nodes[:] = [*_in_blocks(graph, made), *reversed(nodes)]
        return taps

    def _reduce(self, name: str, dtype: Any, sources: tuple[gs.Tensor, gs.Tensor], nodes: list[gs.Node]) -> _Tap:
        ends = []
        for (op, _), source in zip(_ENDS, sources, strict=True):
            end = gs.Variable(self.names.fresh(f"{name}/{op}"), dtype, [])
            nodes.append(gs.Node(op, self.names.fresh(end.name), {"keepdims": 0}, [source], [end]))
            ends.append(end)
        return _Tap(name, dtype, (ends[0], ends[1]))

    def _nested(self, node: gs.Node) -> list[_Tap]:
        if not nested.is_typed(node):
            return []
        inner = graphs.subgraphs(node)
        found = [(one, tap) for one in inner for tap in self.of(one)]
        stacked = not graphs.is_op(node, "If")
        taps = []
        for owner, tap in found:
            ends = []
            for end, (op, nothing) in zip(tap.ends, _ENDS, strict=True):
                for one in inner:
                    one.outputs.append(end if one is owner else self._nothing(one, nothing, tap.dtype))
                out = gs.Variable(self.names.fresh(f"{tap.name}/{op}"), tap.dtype, [None] if stacked else [])
                node.outputs.append(out)
                ends.append(out)
            taps.append(_Tap(tap.name, tap.dtype, (ends[0], ends[1])))
        for axes in ("scan_output_axes", "scan_output_directions"):
            if node.attrs.get(axes):
                node.attrs[axes] = [*node.attrs[axes], *[0] * (2 * len(found))]
        return taps

    def _nothing(self, graph: gs.Graph, value: float, dtype: Any) -> gs.Variable:
        out = gs.Variable(self.names.fresh("nothing"), dtype, [])
        held = gs.Constant(self.names.fresh("nothing"), np.array(value, dtype))
        graph.nodes.append(gs.Node("Constant", self.names.fresh("nothing"), {"value": held}, [], [out]))
        return out


def _in_blocks(graph: gs.Graph, made: Mapping[int, Sequence[gs.Node]]) -> Iterator[gs.Node]:
    """The nodes of a graph, behind each block of them what reduces their tensors, the last tensor first.

    In that order ONNX Runtime reduces a tensor soon after it is there, and frees it. Blocks let a long graph be cut.
    """
    waiting = [node for tensor in graph.inputs for node in made.get(id(tensor), ())]
    seen = {id(tensor) for tensor in graph.inputs}
    for place, node in enumerate(graph.nodes, start=1):
        yield node
        waiting += [one for tensor in node.outputs for one in made.get(id(tensor), ())]
        seen.update(id(tensor) for tensor in node.outputs)
        if place % _BLOCK == 0:
            yield from reversed(waiting)
            waiting = []
    waiting += [one for key, nodes in made.items() if key not in seen for one in nodes]
    yield from reversed(waiting)


def _own(graph: gs.Graph) -> set[int]:
    """Ids of the tensors that a graph takes as inputs or computes; what it reads from around it is not among them."""
    return {id(t) for t in graph.inputs} | {id(t) for node in graph.nodes for t in node.outputs}
