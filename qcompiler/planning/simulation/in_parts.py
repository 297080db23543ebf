"""A graph with switches that is run part by part: what lies in front of the first switch that is on is known already.

Most runs of a search quantize one group of layers. What is in front of it is float, and the same in all of them: it is
kept for each feed. What is behind is float, too, so that it can be run as ONNX Runtime likes it best, without switches,
with its convolutions laid out in blocks of channels, and so can a part with all its layers quantized in one format.
Only a part of which some switches are on is run with switches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import onnx

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import randomness, segments
from qcompiler.runtime.stream import BUDGET, OpenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
    Values = dict[str, NDArray[Any]]

PARTS = 8  # at most: each has two sessions, and each border is a place where nothing can be fused
KEPT = BUDGET  # bytes of float values that are kept for all feeds together


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the nodes, ready to run, and the names of what they read."""

    session: OpenModel
    reads: tuple[str, ...]

    @classmethod
    def of(cls, source: tuple[onnx.ModelProto, Arrays], *, quick: bool) -> _Part:
        """The session, without optimisations where that is `quick`; parts share memory, for they are run in turns."""
        session = OpenModel(source, quick=quick, optimize=not quick, pooled=True)
        return cls(session, tuple(session.inputs))


@dataclass
class _Begun:
    """What the first parts give for a feed, in float.

    Attributes:
        feed: kept, so that its identity is nobody else's.
        parts: of each part from the front, what it hands on and what was asked for of it.
    """

    feed: Feeds
    parts: list[Values] = field(default_factory=list)


class Quantized(Protocol):
    """Writes a graph with all of its layers quantized."""

    def replaced(self, nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], Values]:
        """The nodes with all layers among them quantized, and the weights that these read, by name."""


class InParts:
    """A float graph and the same graph with switches, node for node.

    Args:
        plain: the float graph; weights that it marks as external are in `arrays`.
        switched: with another node in the place of each layer that can be switched, which reads `extra` inputs.
        arrays: weights of both by name.
        layers: names of the nodes of `plain` that have a switch.
        borders: tensors in front of layers, at which a cut breaks no fusion.
        outputs: names of what is returned, any tensors of the main graph.
        quantized: writes parts without switches that have all layers quantized; None to run them with switches.
    """

    def __init__(
        self,
        plain: onnx.ModelProto,
        switched: onnx.ModelProto,
        arrays: Arrays,
        *,
        layers: Collection[str],
        borders: Collection[str],
        outputs: Sequence[str],
        quantized: Quantized | None = None,
    ) -> None:
        self._outputs, self._kept = list(outputs), 0
        self._given = {one.name for one in plain.graph.input}
        self._begun: dict[int, _Begun] = {}
        ends = _ends(plain, layers, borders) if _can_be_cut(plain, outputs) else []
        self._whole: OpenModel | None = None
        if not ends:
            self._whole = OpenModel((switched, arrays), outputs=list(dict.fromkeys(outputs)), quick=True)
            return
        starts = (0, *ends[:-1])
        self._plan = segments.at_places(switched, outputs, starts)
        own = [
            segments.Segment(one.start, one.stop, one.reads, other.tensors, other.hands_on)
            for one, other in zip(segments.at_places(plain, outputs, starts), self._plan, strict=True)
        ]
        self._layers = [
            frozenset(node.name for node in plain.graph.node[one.start : one.stop] if node.name in layers)
            for one in self._plan
        ]
        self._switched = list(segments.extract(switched, arrays, self._plan))
        self._plain = list(segments.extract(plain, arrays, own))
        self._extra = {one.name: one for one in switched.graph.input if one.name not in self._given}
        self._quantized = quantized
        self._open: dict[tuple[int, bool, bool], _Part] = {}

    @property
    def inputs(self) -> Inputs:
        """dtype and shape of each input that is read."""
        if self._whole is not None:
            return self._whole.inputs
        parts = [self._part(at, quantized=True, whole=False) for at in range(len(self._plan))]
        found = {name: one for part in parts for name, one in part.session.inputs.items()}
        handed = {name for part in self._plan for name in part.hands_on}
        return {name: one for name, one in found.items() if name not in handed}

    def run(self, feed: Feeds, extra: Arrays, on: Collection[str], whole: Collection[str], *, keep: bool) -> Values:
        """What was asked for, by name.

        Args:
            feed: the model's own inputs; who comes again with the same object is spared what it gave in float.
            extra: the inputs of all switches.
            on: the layers whose switches are on.
            whole: those of them that are in the format that `quantized` writes.
            keep: whether this feed will come again.

        Raises:
            DataError: the feed does not fit the graph.
            ModelError: a node fails.
        """
        if self._whole is not None:
            return dict(self._whole.run({**feed, **extra}))
        active = [not own.isdisjoint(on) for own in self._layers]
        first = active.index(True) if True in active else len(active)
        begun = self._begun.setdefault(id(feed), _Begun(feed)) if keep else _Begun(feed)
        known: Values = {}
        for had in begun.parts[:first]:
            known |= had
        for at in range(min(len(begun.parts), first), len(active)):
            values = {**feed, **extra, **known}
            part = self._part(at, quantized=active[at], whole=self._layers[at].issubset(whole))
            try:
                made = dict(part.session.run({name: values[name] for name in part.reads}))
            except (DataError, ModelError) as error:
                error.fed = feed  # of the model, not of the part
                raise
            known |= made
            if keep and at < first and at == len(begun.parts):
                self._keep(begun, made)
        return {name: feed[name] if name in self._given else known[name] for name in self._outputs}

    def _part(self, at: int, *, quantized: bool, whole: bool) -> _Part:
        """A part in one of its forms, made when it is first asked for."""
        switched = quantized and not (whole and self._quantized is not None)
        key = at, quantized, switched
        if key not in self._open:
            proto, arrays = self._switched[at] if switched else self._plain[at]
            if quantized and not switched and self._quantized is not None:
                proto, arrays = self._all_on(proto, arrays, self._quantized)
            # Without convolutions there is nothing to win by laying things out, and copies of weights to lose
            blocks = not switched and any(node.op_type == "Conv" for node in proto.graph.node)
            self._open[key] = _Part.of((proto, arrays), quick=not blocks)
        return self._open[key]

    def _all_on(
        self, plain: onnx.ModelProto, arrays: Arrays, quantized: Quantized
    ) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
        """A part with all of its layers quantized."""
        nodes, weights = quantized.replaced(plain.graph.node)
        proto = onnx.ModelProto()
        proto.CopyFrom(plain)
        read = dict.fromkeys(name for node in nodes for name in segments.read_by(node))
        initializers = [one for one in proto.graph.initializer if one.name in read]
        for field_, values in (("node", nodes), ("initializer", initializers)):
            proto.graph.ClearField(field_)
            getattr(proto.graph, field_).extend(values)
        proto.graph.initializer.extend(lent(name, array) for name, array in weights.items())
        proto.graph.input.extend(self._extra[name] for name in read if name in self._extra)
        return proto, {**{name: array for name, array in arrays.items() if name in read}, **weights}

    def _keep(self, begun: _Begun, made: Values) -> None:
        """Keeps what a part gave, as far as there is room."""
        size = sum(one.nbytes for one in made.values())
        if self._kept + size <= KEPT:
            self._kept += size
            begun.parts.append(made)


def lent(name: str, array: NDArray[Any]) -> onnx.TensorProto:
    """An initializer whose values are given beside the model."""
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=graphs.onnx_type(array.dtype))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="lent")
    return tensor


def _can_be_cut(proto: onnx.ModelProto, outputs: Sequence[str]) -> bool:
    """Whether parts give what the whole gives: nothing is drawn, and what is asked for is computed or fed."""
    made = {name for node in proto.graph.node for name in node.output} | {one.name for one in proto.graph.input}
    return not randomness.in_proto(proto) and made.issuperset(outputs)


def _ends(proto: onnx.ModelProto, layers: Collection[str], borders: Collection[str]) -> list[int]:
    """Where parts end, as indices of the nodes behind: in front of the first layer, then behind as many layers each.

    Of the places nearby, the one is taken that has least to hand on.
    """
    before, count = [0], 0
    for node in proto.graph.node:
        count += node.name in layers
        before.append(count)
    parts = min(PARTS, count)
    places = {stop: size for stop, names, size in _places(proto) if names & set(borders)}
    # In front of the first layer everything is float in all runs
    found = [max(stop for stop in places if not before[stop])] if any(not before[stop] for stop in places) else []
    for part in range(1, parts):
        wanted, room = part * count / parts, count / parts / 2
        near = [stop for stop in places if abs(before[stop] - wanted) < room and stop > (found[-1] if found else 0)]
        if near:
            found.append(min(near, key=lambda stop: (places[stop], abs(before[stop] - wanted))))
    return [*found, len(proto.graph.node)] if found else []


def _places(proto: onnx.ModelProto) -> list[tuple[int, set[str], int]]:
    """Places between nodes that a graph can be cut at: the node behind, the tensors that cross, their elements."""
    last: dict[str, int] = {}
    for at, node in enumerate(proto.graph.node):
        last.update(dict.fromkeys(segments.read_by(node), at))
    known = {one.name: one for one in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}
    fixed = {one.name for one in proto.graph.initializer}
    fed, crossing, found = {one.name for one in proto.graph.input}, set[str](), list[tuple[int, set[str], int]]()
    moving = set(fed)  # what depends on the feed
    made = {name for node in proto.graph.node for name in node.output}
    for at, node in enumerate(proto.graph.node):
        reads = set(segments.read_by(node))
        if reads & made - moving - fixed - crossing:
            return []  # in no order in which it can run
        crossing |= {name for name in node.output if name in last}
        crossing = {name for name in crossing if last[name] > at}
        moving |= set(node.output) if reads & moving else set()
        if crossing and crossing <= moving and all(_is_tensor(known.get(name)) for name in crossing):
            found.append((at + 1, set(crossing), sum(_elements(known[name]) for name in crossing)))
    return found


def _is_tensor(value: onnx.ValueInfoProto | None) -> bool:
    return value is not None and value.type.HasField("tensor_type") and bool(value.type.tensor_type.elem_type)


def _elements(value: onnx.ValueInfoProto) -> int:
    """Elements of a tensor, free axes as one."""
    return math.prod(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
