"""A graph cut into segments that are run one after the other, each fed with what the ones before hand on.

Where a cut may lie is decided so that ONNX Runtime computes the same numbers in parts as in one run. A cut makes an
output of every tensor that crosses it, and an output cannot vanish in a fusion; so only those may cross that vanish in
none anyway: tensors that are asked for, which are outputs in one run too; integers and truth values, which have nothing
to round; and tensors that several nodes read, such as a residual stream or a mask. A cut lies right behind a tensor
that is asked for. Where a graph has no such place, a segment is as long as it must be.

Behind convolutions ONNX Runtime keeps maps in blocks of channels until somebody needs them as they were, and an average
over a map adds up in another order then. So no tensor may cross that reaches an average before the next convolution.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_EXACT = frozenset(
    {
        onnx.TensorProto.BOOL,
        *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64),
        *(onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
    }
)
# What rounds in another way where channels are in blocks, and what passes such blocks on
_BY_LAYOUT = frozenset({"AveragePool", "BatchNormalization", "GlobalAveragePool", "Resize", "Upsample"})
_PASSING = frozenset(
    {
        *(
            "Add",
            "Concat",
            "Div",
            "Identity",
            "Max",
            "Min",
            "Mul",
            "Sub",
            "Sum",
            "Transpose",
            "GlobalMaxPool",
            "MaxPool",
        ),
        *(
            "Clip",
            "Elu",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "PRelu",
            "Relu",
            "Sigmoid",
            "Softplus",
            "Tanh",
        ),
    }
)


STRIDE = 64  # nodes between the places where a cut is thought of, if it may lie anywhere


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive nodes of a graph.

    Attributes:
        start: index of the first node.
        stop: index behind the last one.
        reads: tensors that it is fed: inputs of the graph, and what segments before it hand on.
        tensors: those of the tensors asked for that it computes, in graph order.
        hands_on: what it computes and a later segment reads; may be among `tensors`.
    """

    start: int
    stop: int
    reads: tuple[str, ...]
    tensors: tuple[str, ...]
    hands_on: tuple[str, ...]


def cut(
    proto: onnx.ModelProto,
    tensors: Collection[str],
    sizes: Mapping[str, int],
    budget: int,
    *,
    most: int | None = None,
) -> list[Segment]:
    """The fewest segments, from front to back, in which what is fetched and handed on fits `budget` bytes.

    Args:
        proto: nodes in an order in which they can run; if they are in none, it is not cut.
        tensors: computed by the main graph, whose values are asked for.
        sizes: bytes of the tensors in one run; those that are missing count as nothing.
        budget: of one segment; one that cannot be cut further may take more.
        most: nodes of one segment, likewise; only for runs without optimisations, where a cut changes no number
            wherever it lies.
    """
    wanted = frozenset(tensors)
    reads = [tuple(dict.fromkeys(read_by(node))) for node in proto.graph.node]
    ends: list[int] = []
    fetched: set[str] = set()  # by the segment at hand, up to `place`
    place = 0
    for stop, crossing in _cuts(proto, reads, wanted, STRIDE if most is not None else 0):
        new = {name for node in proto.graph.node[place:stop] for name in node.output if name in wanted}
        full = new and sum(sizes.get(name, 0) for name in {*fetched, *new, *crossing}) > budget
        long = most is not None and stop - (ends[-1] if ends else 0) > most
        if place and (full or long):
            ends.append(place)
            fetched = set()
        fetched |= new
        place = stop
    return _between(proto, reads, wanted, [*ends, len(reads)])


def crossings(proto: onnx.ModelProto) -> list[int | None]:
    """How many computed tensors cross a cut in front of each node, as far as the main graph makes them.

    Returns:
        for each node; None where no cut may lie, for the type of a tensor that crosses is not known, or nodes are in no
        order.
    """
    reads = [tuple(dict.fromkeys(read_by(node))) for node in proto.graph.node]
    readers = _readers(reads)
    if _unsorted(proto, readers):
        return [None] * len(reads)
    known = _types(proto)
    crossing: dict[str, bool] = {}  # whether its type is known
    found: list[int | None] = []
    for at, node in enumerate(proto.graph.node):
        found.append(len(crossing) if all(crossing.values()) else None)
        for name in reads[at]:
            if readers[name][-1] == at:
                crossing.pop(name, None)
        for name in node.output:
            if name in readers:
                crossing[name] = name in known and known[name].type.HasField("tensor_type")
    return found


def at_places(proto: onnx.ModelProto, tensors: Collection[str], starts: Sequence[int]) -> list[Segment]:
    """The segments that begin at these nodes, 0 first, wherever ONNX Runtime would have fused across a cut.

    Args:
        proto: nodes in an order in which they can run.
        tensors: computed by the main graph, whose values are asked for.
        starts: ascending.
    """
    reads = [tuple(dict.fromkeys(read_by(node))) for node in proto.graph.node]
    return _between(proto, reads, frozenset(tensors), [*starts[1:], len(reads)])


def rest_of(proto: onnx.ModelProto, tensors: Collection[str], start: int) -> Segment:
    """All nodes from one on, as a segment that hands on nothing; arguments as of `at_places`."""
    return at_places(proto, tensors, (0, start) if start else (0,))[-1]


def extract(
    proto: onnx.ModelProto, weights: Mapping[str, Array], plan: Iterable[Segment]
) -> Iterator[tuple[onnx.ModelProto, dict[str, Array]]]:
    """The segments as models of their own, each with those of the weights that it reads."""
    known, inside = _types(proto), {one.name: one for one in proto.graph.initializer}
    for segment in plan:
        nodes = proto.graph.node[segment.start : segment.stop]
        used = dict.fromkeys(name for node in nodes for name in read_by(node))
        graph = onnx.GraphProto(name=proto.graph.name, node=nodes)
        graph.input.extend(known[name] for name in segment.reads)
        graph.initializer.extend(inside[name] for name in used if name in inside)
        graph.value_info.extend(known[name] for node in nodes for name in node.output if name in known)
        graph.output.extend(
            known.get(name) or onnx.ValueInfoProto(name=name)
            for name in dict.fromkeys((*segment.tensors, *segment.hands_on))
        )
        alone = onnx.ModelProto(
            ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions, graph=graph
        )
        yield alone, {name: weights[name] for name in used if name in weights}


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, also those that its nested graphs read from around it."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _free(graph)


def _free(graph: onnx.GraphProto) -> list[str]:
    made = {one.name for one in (*graph.input, *graph.initializer)}
    made |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in read_by(node)]
    return [name for name in (*read, *(one.name for one in graph.output)) if name not in made]


def _types(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What is known of each tensor that is no weight."""
    return {one.name: one for one in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}


def _cuts(
    proto: onnx.ModelProto, reads: Sequence[Sequence[str]], tensors: AbstractSet[str], stride: int
) -> Iterator[tuple[int, Collection[str]]]:
    """Where a cut may lie, as the index of the node behind it, with the computed tensors that cross it; the end last.

    With a stride, it may lie behind every so many nodes, whatever ONNX Runtime would have fused across it.
    """
    readers = _readers(reads)
    if _unsorted(proto, readers):
        yield len(reads), ()
        return
    known, pooled = _types(proto), set() if stride else _reach_averages(proto)
    crossing: dict[str, bool] = {}  # whether it may
    for at, node in enumerate(proto.graph.node):
        for name in reads[at]:
            if readers[name][-1] == at:
                crossing.pop(name, None)
        for name in node.output:
            if name in readers:
                visible = bool(stride) or name in tensors or len(readers[name]) > 1
                crossing[name] = name not in pooled and _may_cross(known.get(name), visible)
        here = (at + 1) % stride == 0 if stride else not tensors.isdisjoint(node.output)
        if here and at + 1 < len(reads) and all(crossing.values()):
            yield at + 1, crossing
    yield len(reads), ()


def _readers(reads: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """By tensor, the nodes that read it, in order."""
    readers: dict[str, list[int]] = {}
    for at, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(at)
    return readers


def _unsorted(proto: onnx.ModelProto, readers: Mapping[str, Sequence[int]]) -> bool:
    """Whether it cannot be cut: nodes are in no order in which they can run, or weights are sparse."""
    made = {name: at for at, node in enumerate(proto.graph.node) for name in node.output if name}
    unsorted = any(at <= made.get(name, -1) for name, found in readers.items() for at in found)
    return unsorted or bool(proto.graph.sparse_initializer)


def _reach_averages(proto: onnx.ModelProto) -> set[str]:
    """Tensors whose layout an average depends on."""
    found: set[str] = set()
    for node in reversed(proto.graph.node):
        if node.op_type in _BY_LAYOUT:
            found.update(node.input[:1])
        if node.op_type in _BY_LAYOUT | _PASSING and not found.isdisjoint(node.output):
            found.update(node.input)
    return found


def _may_cross(value: onnx.ValueInfoProto | None, visible: bool) -> bool:
    if value is None or not value.type.HasField("tensor_type"):
        return False
    element = value.type.tensor_type.elem_type
    return element in _EXACT or (visible and element in _FLOATS)


def _between(
    proto: onnx.ModelProto, reads: Sequence[Sequence[str]], tensors: AbstractSet[str], ends: Sequence[int]
) -> list[Segment]:
    """The segments that end at these nodes."""
    given = {one.name for one in proto.graph.initializer}
    later: set[str] = set()
    found: list[Segment] = []
    for start, stop in zip([*ends[-2::-1], 0], reversed(ends), strict=True):
        made = dict.fromkeys(name for node in proto.graph.node[start:stop] for name in node.output if name)
        outer = dict.fromkeys(name for names in reads[start:stop] for name in names if name not in made)
        found.append(
            Segment(
                start,
                stop,
                tuple(name for name in outer if name not in given),
                tuple(name for name in made if name in tensors),
                tuple(name for name in made if name in later),
            )
        )
        later |= outer.keys()
    return found[::-1]
