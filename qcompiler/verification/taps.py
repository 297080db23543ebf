"""The inner tensors at which a quantized graph is held against its float original, and what is measured there.

Tapped are the outputs of linear and recurrent nodes that both graphs know by the same name and read by the same
operators: where a pass has folded a BatchNormalization or a bias into the node, its output keeps the name and means
something else. So does the product of an activation that was moved onto the middle of its grid: only behind its bias
both are the same again. Between them lie borders: sums that several nodes read (a residual stream) and the outputs of
the graph.

At each of them two errors are measured:

    total = float graph - quantized graph
    own   = float layer on the inputs that the quantized graph has for it - quantized graph     (see `replay`)

The own error is what the layer and the nodes between the tapped tensors before it and itself do wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.operators import TAPPED
from qcompiler.ir.signature import inputs_of
from qcompiler.numerics.sqnr import sqnr_db
from qcompiler.runtime.stream import OpenModel, Stream
from qcompiler.verification.replay import Replay, fitting, fitting_inputs

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_STORING = ("Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear")
_CHANNELS_SECOND = ("Conv", "ConvTranspose", "BatchNormalization")
_BUDGET = 64 << 20  # bytes of tapped tensors that a run of one graph may hold
STRANGE_DB: Final = 3.0  # noise of half the power, as in the verdict on outputs
_NO_SIGNAL: Final = 1e-10  # share of the mean energy below which a channel says nothing


class Tap(NamedTuple):
    """A tensor that is measured.

    Attributes:
        name: in both graphs.
        node: of the float graph, that writes it.
        layer: it is what a layer computes; else a border.
    """

    name: str
    node: gs.Node
    layer: bool


class TapNoise:
    """Energies of a tensor and of an error of it, channel by channel, summed over samples.

    Args:
        axis: of the channels; those of other ranks are taken together.
    """

    def __init__(self, axis: int = -1) -> None:
        self._axis = axis
        self._sums = np.zeros((2, 1))

    def add(self, reference: Array, got: Array) -> None:
        """Counts one sample, where the reference is finite; the noise is infinite where `got` is not."""
        found = energies(reference, got, self._axis)
        if found.shape != self._sums.shape and self._sums.any():
            found, self._sums = found.sum(1, keepdims=True), self._sums.sum(1, keepdims=True)
        self._sums = self._sums + found

    @property
    def db(self) -> float:
        """SQNR of all values, in dB."""
        signal, noise = self._sums.sum(1)
        return sqnr_db(float(signal), float(noise))

    @property
    def level(self) -> float:
        """TapNoise-to-signal power: that of all values, or the mean over channels (each 1 at most) if that is more.

        So a loud channel does not hide what becomes of the quiet ones, and a channel that is always near zero does not
        count more than the others.
        """
        signal, noise = self._sums
        if not np.isfinite(noise).all():
            return math.inf
        whole = float(noise.sum() / signal.sum()) if signal.sum() > 0 else (math.inf if noise.any() else 0.0)
        alive = signal > _NO_SIGNAL * signal.mean()
        each = np.minimum(noise[alive] / signal[alive], 1.0)
        return max(whole, float(each.sum() / signal.size))

    @property
    def strange(self) -> bool:
        """Whether it is something else: not finite, or noise of half the power of a signal, over all values."""
        signal, noise = (float(one) for one in self._sums.sum(1))
        return not math.isfinite(noise) or (signal > 0 and sqnr_db(signal, noise) < STRANGE_DB)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found at the taps.

    Attributes:
        taps: in graph order.
        total: the error against the float graph, by name.
        own: the error that is added there, by name.
        before: the taps that each one is computed from, by name.
    """

    taps: tuple[Tap, ...] = ()
    total: Mapping[str, TapNoise] = field(default_factory=dict)
    own: Mapping[str, TapNoise] = field(default_factory=dict)
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def ends(self) -> list[Tap]:
        """Outputs of the graph, and layers that no other layer reads: what an error has to reach to matter."""
        behind: set[str] = set()  # taps with a layer behind them, through borders too
        for tap in reversed(self.taps):
            if tap.layer or tap.name in behind:
                behind |= self.before[tap.name]
        return [tap for tap in self.taps if tap.name not in behind]


def find_taps(reference: gs.Graph, quantized: gs.Graph, most: int) -> list[Tap]:
    """Where both graphs can be compared, in graph order.

    Args:
        reference: the float graph.
        quantized: the other one.
        most: taps, of borders as of layers; they are taken evenly over the graph.
    """
    layers = common(reference, quantized, (node for node in reference.nodes if graphs.is_op(node, *TAPPED)))
    known = {id(node) for node in layers}
    borders = common(
        reference, quantized, (node for node in reference.nodes if id(node) not in known and _border(reference, node))
    )
    kept = {id(node) for node in (*_spaced(layers, most), *_spaced(borders, most))}
    return [Tap(node.outputs[0].name, node, id(node) in known) for node in reference.nodes if id(node) in kept]


def common(reference: gs.Graph, quantized: gs.Graph, nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """The nodes of the float graph whose first output both graphs have, as floats, and read in the same way."""
    written = {t.name: t for node in quantized.nodes for t in node.outputs if _readable(t)}
    return [
        node
        for node in nodes
        if node.outputs
        and _readable(tensor := node.outputs[0])
        and tensor.name in written
        and _readers(reference, tensor) == _readers(quantized, written[tensor.name])
        and not _moved(node, written[tensor.name])
    ]


def _moved(node: gs.Node, quantized: gs.Tensor) -> bool:
    """Whether a product reads the same activation with a constant added, which only the bias behind it takes off again.

    Args:
        node: of the float graph.
        quantized: what the same node of the other graph writes.
    """
    twin = graphs.producer(quantized)
    if twin is None or not (graphs.is_op(node, "MatMul") and graphs.is_op(twin, "MatMul")):
        return False
    *_, first = _stored(twin.inputs[0])
    maker, known = graphs.producer(first), {one.name for one in _stored(node.inputs[0])}
    if first.name in known or maker is None or not graphs.is_op(maker, "Add"):
        return False
    added = [read for read in maker.inputs if not graphs.is_constant(read)]
    return len(added) == 1 and any(one.name in known for one in _stored(added[0]))


def _stored(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """A tensor and those in front of it that it is another way to store of."""
    while True:
        yield tensor
        node = graphs.producer(tensor)
        if node is None or not graphs.is_op(node, *_STORING):
            return
        tensor = node.inputs[0]


def _border(graph: gs.Graph, node: gs.Node) -> bool:
    if not node.outputs:
        return False
    joins = (
        graphs.is_op(node, "Add", "Sum") and len({id(reader) for reader, _ in graphs.consumers(node.outputs[0])}) > 1
    )
    return joins or graphs.is_output(graph, node.outputs[0])


def _readers(graph: gs.Graph, tensor: gs.Tensor) -> set[str]:
    """The operators that read a tensor, looking through those that only store it in another way."""
    found = {""} if graphs.is_output(graph, tensor) else set()
    for node, _ in graphs.consumers(tensor):
        found |= _readers(graph, node.outputs[0]) if graphs.is_op(node, *_STORING) else {node.op}
    return found


def _readable(tensor: gs.Tensor) -> bool:
    """ONNX Runtime hands float tensors to numpy; BF16 it cannot."""
    dtype = graphs.dtype_of(tensor)
    return bool(tensor.name) and (dtype is None or dtype in (np.float16, np.float32, np.float64))


def _spaced(nodes: list[gs.Node], most: int) -> list[gs.Node]:
    if len(nodes) <= most:
        return nodes
    return [nodes[round(i * (len(nodes) - 1) / (most - 1))] for i in range(most)]


def measure(
    float_model: models.Model, quantized: models.Model, feeds: Sequence[Feeds], taps: Sequence[Tap]
) -> Measured:
    """Runs both graphs on the feeds and the layers of the one on the inputs of the other.

    Taps whose shape differs between the graphs, or that hold no floats, are left out.

    Memory: tensors of all runs that take more than 64 MiB for a graph are fetched in groups, once more.

    Raises:
        ModelError: a graph cannot be run.
    """
    names = [tap.name for tap in taps]
    (shapes, reference), (others, got) = (_fetched(model, feeds, names) for model in (float_model, quantized))
    same = [tap for tap in taps if shapes.get(tap.name, ()) == others.get(tap.name)]
    cuts = [tap.name for tap in same]
    total = {tap.name: TapNoise(axis_of(tap.node)) for tap in same}
    own = {tap.name: TapNoise(axis_of(tap.node)) for tap in same}
    if cuts and reference is not None and got is not None:
        replay = Replay(float_model.graph, cuts, cuts)
        for values in zip(feeds, reference, got, strict=True):
            _add(replay, values, cuts, (total, own))
    else:
        for group in _grouped(cuts, shapes):
            _measure(float_model, quantized, feeds, (cuts, group), (total, own))
    return Measured(tuple(same), total, own, _before(float_model.graph, frozenset(cuts)))


def _fetched(
    model: models.Model, feeds: Sequence[Feeds], names: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], list[Feeds] | None]:
    """Shapes of the float tensors of the first run, and the tensors of all runs; None where these do not fit together.

    A sequence or optional has no shape.
    """
    opened, inputs = Stream(model, names, quick=True), inputs_of(model.graph)
    shapes: dict[str, tuple[int, ...]] = {}
    runs, held = list[Feeds](), 0
    for index, feed in enumerate(feeds):
        values: dict[str, Array] = {}
        for part in opened.parts(index, fitting_inputs(feed, inputs)):
            arrays = {name: one for name, one in part.values.items() if isinstance(one, np.ndarray)}
            floats = {name: one for name, one in arrays.items() if one.dtype.kind == "f"}
            shapes.update({name: one.shape for name, one in floats.items()} if not index else {})
            held += sum(one.nbytes for one in floats.values())
            values.update(floats if held <= _BUDGET else {})
        runs.append(values)
        if held * len(feeds) > _BUDGET * len(runs):
            return shapes, None
    return shapes, runs


def _grouped(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Consecutive names of tensors that fit the budget together; one at least."""
    group, held = list[str](), 0
    for name in names:
        size = 4 * math.prod(shapes[name])
        if group and held + size > _BUDGET:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _measure(
    float_model: models.Model,
    quantized: models.Model,
    feeds: Sequence[Feeds],
    names: tuple[Sequence[str], Sequence[str]],
    noises: tuple[Mapping[str, TapNoise], Mapping[str, TapNoise]],
) -> None:
    """Adds what a group of the cuts shows."""
    (cuts, group), (total, own) = names, noises
    replay = Replay(float_model.graph, cuts, group)
    exact = OpenModel(float_model, outputs=group, quick=True)
    rounded = OpenModel(quantized, outputs=list(dict.fromkeys((*group, *replay.reads))), quick=True)
    for feed in feeds:
        values = feed, exact.run(fitting(feed, exact)), rounded.run(fitting(feed, rounded))
        _add(replay, values, group, (total, own))


def _add(
    replay: Replay,
    values: tuple[Feeds, Feeds, Feeds],
    names: Sequence[str],
    noises: tuple[Mapping[str, TapNoise], Mapping[str, TapNoise]],
) -> None:
    """Adds what a feed shows: the feed, what the float graph makes of it, and what the other one does."""
    (feed, reference, got), (total, own) = values, noises
    again = replayed(replay, feed, got)
    for name in names:
        total[name].add(reference[name], got[name])
        own[name].add(again.get(name, reference[name]), got[name])


def replayed(replay: Replay, feed: Feeds, got: Feeds) -> Feeds:
    """What the float layers make of the other graph's inputs; empty where they cannot be run on them.

    A broken graph can give a layer what it does not take: an index made of NaN. Then all its error counts as its own.
    """
    try:
        return replay.run(feed, got)
    except (ModelError, DataError):
        return {}


def axis_of(node: gs.Node) -> int:
    """The axis of the channels of what a node computes."""
    if graphs.is_op(node, *_CHANNELS_SECOND):
        return 1
    return int(node.attrs.get("axis", -1)) if graphs.is_op(node, "Concat") else -1


def energies(reference: Array, got: Array, axis: int | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[sum ref^2, sum (ref - got)^2] where the reference is finite; the noise is infinite where `got` is not.

    Args:
        reference: any shape; complex values count by their magnitude.
        got: of the same shape; of another, all is noise.
        axis: sums for each place along this axis, float64 [2, C]; None for one sum, float64 [2].
    """
    if reference.shape != got.shape:
        return np.array([0.0, math.inf]) if axis is None else np.array([[0.0], [math.inf]])
    along = axis is not None and -reference.ndim <= axis < reference.ndim
    count = reference.shape[axis] if along and axis is not None else 1
    first, second = (np.moveaxis(one, axis, 0) if along and axis is not None else one for one in (reference, got))
    total = np.zeros((2, count))
    a, b = first.reshape(count, -1), second.reshape(count, -1)
    step = max(1, (1 << 18) // max(count, 1))
    for start in range(0, a.shape[1], step):
        total += _sums(a[:, start : start + step].astype(np.float64), b[:, start : start + step].astype(np.float64))
    return total if axis is not None else total.sum(1)


def _sums(a: Array, b: Array) -> Array:
    keep = np.isfinite(a)
    if not keep.all():
        a, b = np.where(keep, a, 0.0), np.where(keep, b, 0.0)
    error = a - b
    noise = np.einsum("ij,ij->i", error, error)
    return np.stack([np.einsum("ij,ij->i", a, a), np.where(np.isfinite(noise), noise, math.inf)])


def _before(graph: gs.Graph, cuts: frozenset[str]) -> dict[str, frozenset[str]]:
    """The cuts that each cut is computed from, with none between."""
    nearest: dict[str, frozenset[str]] = {}
    found: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        inside = (tensor for inner in graphs.subgraphs(node) for tensor in _reads(inner))
        reads = itertools.chain(node.inputs, inside)
        behind = frozenset().union(*(nearest.get(tensor.name, frozenset()) for tensor in reads))
        for tensor in node.outputs:
            nearest[tensor.name] = frozenset((tensor.name,)) if tensor.name in cuts else behind
            if tensor.name in cuts:
                found[tensor.name] = behind
    return found


def _reads(graph: gs.Graph) -> Iterable[gs.Tensor]:
    return (tensor for node in graphs.walk(graph) for tensor in node.inputs)
