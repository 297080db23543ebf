"""A graph with switches that is run part by part: what lies in front of the first switch that is on is known already.

Most runs of a search quantize one group of layers. What is in front of it is float, and the same in all of them: it is
kept for each feed. What is behind is float, too, so that it can be run as ONNX Runtime likes it best, without switches,
with its convolutions laid out in blocks of channels. Only a part with a switch that is on is run with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from qcompiler.errors import DataError, ModelError
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import randomness, segments
from qcompiler.runtime.stream import BUDGET, OpenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
    Values = dict[str, NDArray[Any]]

PARTS = 8  # at most: each has two sessions, and each border is a place where nothing can be fused
LAYERS = 4  # of a part at least, those with a switch
KEPT = BUDGET  # bytes of float values that are kept for all feeds together


@dataclass
class _Begun:
    """What the first parts give for a feed, in float.

    Attributes:
        feed: kept, so that its identity is nobody else's.
        parts: of each part from the front, what it hands on and what was asked for of it.
    """

    feed: Feeds
    parts: list[Values] = field(default_factory=list)


class InParts:
    """A float graph and the same graph with switches, node for node.

    Args:
        plain: the float graph; weights that it marks as external are in `arrays`.
        switched: with another node in the place of each layer that can be switched, which reads `extra` inputs.
        arrays: weights of both by name.
        layers: names of the nodes of `plain` that have a switch.
        borders: tensors in front of layers, at which a cut breaks no fusion.
        outputs: names of what is returned, any tensors of the main graph.
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
    ) -> None:
        self._outputs, self._kept = list(outputs), 0
        self._given = {one.name for one in plain.graph.input}
        self._begun: dict[int, _Begun] = {}
        ends = _ends(plain, arrays, layers, borders) if _can_be_cut(plain, outputs) else []
        self._whole: OpenModel | None = None
        if not ends:
            self._whole = OpenModel((switched, arrays), outputs=list(dict.fromkeys(outputs)), quick=True)
            return
        self._plan = segments.divide(switched, outputs, ends)
        self._float_plan = [
            segments.Segment(one.start, one.stop, one.reads, other.tensors, other.hands_on)
            for one, other in zip(segments.divide(plain, outputs, ends), self._plan, strict=True)
        ]
        self._layers = [
            frozenset(node.name for node in plain.graph.node[one.start : one.stop] if node.name in layers)
            for one in self._plan
        ]
        self._switched = [
            OpenModel(one, quick=True, pooled=True) for one in segments.extract(switched, arrays, self._plan)
        ]
        # Without convolutions there is nothing to win by laying things out, and copies of weights to lose
        self._sources = list(segments.extract(plain, arrays, self._float_plan))
        self._floats: list[OpenModel | None] = [None] * len(self._plan)

    @property
    def inputs(self) -> Inputs:
        """dtype and shape of each input that is read."""
        if self._whole is not None:
            return self._whole.inputs
        found = {name: one for part in self._switched for name, one in part.inputs.items()}
        handed = {name for part in self._plan for name in part.hands_on}
        return {name: one for name, one in found.items() if name not in handed}

    def run(self, feed: Feeds, extra: Arrays, on: Collection[str], *, keep: bool = True) -> Values:
        """What was asked for, by name.

        Args:
            feed: the model's own inputs; who comes again with the same object is spared what it gave in float.
            extra: the inputs of all switches.
            on: the layers whose switches are on.
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
        for part in begun.parts[:first]:
            known |= part
        for at in range(min(len(begun.parts), first), len(active)):
            try:
                made = self._part(at, active[at], {**feed, **extra, **known})
            except (DataError, ModelError) as error:
                error.fed = feed  # of the model, not of the part
                raise
            known |= made
            if keep and at < first and at == len(begun.parts):
                self._keep(begun, made)
        return {name: feed[name] if name in self._given else known[name] for name in self._outputs}

    def _part(self, at: int, switched: bool, values: Values) -> Values:
        """What a part makes of what it reads."""
        plan = self._plan if switched else self._float_plan
        own = {name: values[name] for name in plan[at].reads if name in values}
        session = self._switched[at] if switched else self._float(at)
        return dict(session.run(own))

    def _float(self, at: int) -> OpenModel:
        """The session of a part in float, made when it is first asked for."""
        found = self._floats[at]
        if found is None:
            proto, arrays = self._sources[at]
            blocks = any(node.op_type == "Conv" for node in proto.graph.node)
            found = OpenModel((proto, arrays), quick=not blocks, optimize=blocks, pooled=True)
            self._floats[at] = found
        return found

    def _keep(self, begun: _Begun, made: Values) -> None:
        """Keeps what a part gave, as far as there is room."""
        size = sum(one.nbytes for one in made.values())
        if self._kept + size <= KEPT:
            self._kept += size
            begun.parts.append(made)


def _can_be_cut(proto: onnx.ModelProto, outputs: Sequence[str]) -> bool:
    """Whether parts give what the whole gives: nothing is drawn, and what is asked for is computed or fed."""
    made = {name for node in proto.graph.node for name in node.output} | {one.name for one in proto.graph.input}
    return not randomness.in_proto(proto) and made.issuperset(outputs)


def _ends(proto: onnx.ModelProto, arrays: Arrays, layers: Collection[str], borders: Collection[str]) -> list[int]:
    """Where parts end, as indices of the nodes behind: about as many layers in each, little to hand on between them."""
    before, count = [0], 0
    for node in proto.graph.node:
        count += node.name in layers
        before.append(count)
    parts = min(PARTS, count // LAYERS)
    places = {stop: size for stop, names, size in _places(proto) if names & set(borders)}
    found: list[int] = []
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
