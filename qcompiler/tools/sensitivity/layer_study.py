"""Which layers a number format hurts, one group of layers at a time: the measurements behind `qcompiler sensitivity`.

Layers that read the same activation x share its scale, so they are studied together. For each format, with x̂ and Ŵ
the round trips of activation and weight through it and y = op(x, W):

    weights      y against op(x, Ŵ)
    activations  y against op(x̂, W)
    layer        y against op(x̂, Ŵ)
    outputs      the outputs of the model against those with op(x̂, Ŵ) in place of y, everything else float

each as Σ (ref − other)² / Σ ref², pooled over the samples, averaged over the layers of a group; of what is judged the
worst view. op runs in ONNX Runtime on the rounded values, and its result is fed into the model behind a switch:
`y = If(switch, fed, op(x, W))`. So any format can be studied that numpy can round to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, Tally, judged, shares_of
from qcompiler.judge.views import find_views, tensors_of
from qcompiler.numerics.sqnr import power
from qcompiler.plan import Candidate
from qcompiler.runtime.stream import OpenModel
from qcompiler.tools.sensitivity.formats import NumberFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.statistics.histogram import Histogram


PREFIX: Final = "qcompiler/study/"
BUDGET: Final = 128 << 20  # bytes of activations that are held at a time
MOST: Final = 32  # groups whose activations one run taps

Groups = Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise-to-signal powers of one group of layers in one format.

    Attributes:
        weights: at the layers' own outputs, with only their weights rounded.
        activations: the same with only the activation; None where the format is for weights.
        layer: the same with both.
        outputs: at the outputs of the model, with both.
    """

    weights: float
    activations: float | None
    layer: float
    outputs: float


class Study:
    """Measures groups of layers of one model on a few samples.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation they share.
        histograms: of the activations, for their ranges.
        feeds: the samples.
        per_channel: weight scales per output channel, else per tensor.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Groups,
        histograms: Mapping[str, Histogram],
        feeds: Sequence[Feeds],
        *,
        per_channel: bool = True,
    ) -> None:
        self._graph, self._groups, self._histograms, self._feeds = model.graph, groups, histograms, feeds
        self._per_channel = per_channel
        self._weights = {t.name: t for t in graphs.tensors(model.graph) if isinstance(t, gs.Constant)}
        self._proto, self._arrays = models.to_proto(model.graph)
        self._fed = {value.name for value in self._proto.graph.input}
        views = judged(find_views(model.graph, feeds[0]))
        layers = [c.node for members in groups.values() for c in members]
        self._model = _Switched(model.graph, layers, tensors_of(views))
        self._reference = [Expected.of(views, self._model.run(feed, {}), feed) for feed in feeds]
        self._shares = shares_of(self._reference)

    def run(
        self, formats: Sequence[NumberFormat], advance: Callable[[float], None]
    ) -> Iterator[tuple[str, dict[str, Noise]]]:
        """Each group's activation with its noise by format, in graph order; `advance` is called with 1 after each."""
        waiting, size = list(self._groups), 1
        while waiting:
            chunk, waiting = waiting[:size], waiting[size:]
            layers = {activation: _Layers(self._proto, self._arrays, self._groups[activation]) for activation in chunk}
            taps = self._tap({name for group in layers.values() for name in group.reads})
            held = sum(array.nbytes for row in taps for array in row.values())
            for activation, group in layers.items():
                yield activation, {one.name: self._measure(activation, group, taps, one) for one in formats}
                advance(1)
            size = max(1, min(BUDGET * len(chunk) // max(held, 1), MOST))

    def _tap(self, names: Iterable[str]) -> list[Feeds]:
        """What the layers read, for each sample."""
        session = OpenModel(self._graph, outputs=sorted(set(names)), quick=True)
        return [{**feed, **session.run(feed)} for feed in self._feeds]

    def _measure(self, activation: str, layers: _Layers, taps: Sequence[Feeds], one: NumberFormat) -> Noise:
        plain = {c.weight: self._weights[c.weight].values for c in layers.members}
        axes = {c.weight: c.axis if self._per_channel else None for c in layers.members}
        rounded = {name: one.weights(values, axes[name]) for name, values in plain.items()}
        amax = one.range(self._histograms[activation]) if one.activations else 0.0
        weights, activations, layer, outputs = _Sum(), _Sum(), _Sum(), Tally(self._shares)
        for feed, tap, reference in zip(self._feeds, taps, self._reference, strict=True):
            exact = layers.run(tap, plain)
            both = layers.run(tap, rounded)
            weights.add(exact, both)
            if one.activations:
                coarse = {**tap, activation: one.values(tap[activation], amax)}
                activations.add(exact, layers.run(coarse, plain))
                both = layers.run(coarse, rounded)
            layer.add(exact, both)
            outputs.add(reference, self._model.run(feed, both))
        return Noise(weights.ratio, activations.ratio if one.activations else None, layer.ratio, outputs.worst())


class _Sum:
    """Energies of references and errors by name."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    def add(self, reference: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> None:
        for name, value in reference.items():
            self._signal[name] = self._signal.get(name, 0.0) + power(value)
            error = power(np.asarray(other[name], np.float32) - np.asarray(value, np.float32))
            self._noise[name] = self._noise.get(name, 0.0) + (error if math.isfinite(error) else math.inf)

    @property
    def ratio(self) -> float:
        """Mean over the names of noise to signal; those that are zero do not count."""
        ratios = [self._noise[name] / signal for name, signal in self._signal.items() if signal > 0]
        return sum(ratios) / len(ratios) if ratios else 0.0


class _Layers:
    """The layers of one group alone, with their weights as inputs.

    Attributes:
        members: the layers.
        reads: the tensors of the model that must be fed.
    """

    def __init__(
        self, proto: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], members: Sequence[Candidate]
    ) -> None:
        self.members = members
        wanted = {name for c in members for name in (c.node, *c.chain)}
        nodes = [node for node in proto.graph.node if node.name in wanted]  # in the order of the graph
        made = {name for node in nodes for name in node.output}
        weights = {c.weight for c in members}
        constants = [one for one in proto.graph.initializer if one.name not in weights]
        known = {one.name for one in constants} | made | weights
        self.reads = sorted({name for node in nodes for name in node.input if name} - known)
        used = {name for node in nodes for name in node.input}
        graph = onnx.GraphProto(name="layers", node=nodes, initializer=[one for one in constants if one.name in used])
        graph.input.extend(_value(name) for name in (*self.reads, *sorted(weights)))
        outputs = [node.output[0] for node in nodes if node.name in {c.node for c in members}]
        graph.output.extend(_value(name) for name in outputs)
        alone = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)
        lent = {one.name: arrays[one.name] for one in graph.initializer if one.name in arrays}
        self._session = OpenModel((alone, lent), outputs=outputs, quick=True)

    def run(self, tap: Feeds, weights: Feeds) -> Feeds:
        """Outputs by name, with these activations and weights."""
        return self._session.run({**{name: tap[name] for name in self.reads}, **weights})


class _Switched:
    """The model, with a switch behind each layer that takes what is fed instead of what the layer computes."""

    def __init__(self, graph: gs.Graph, layers: Iterable[str], tensors: Sequence[str]) -> None:
        proto, arrays = models.to_proto(graph)
        studied = set(layers)
        nodes = []
        self._layers = []
        for node in proto.graph.node:
            if node.name not in studied:
                nodes.append(node)
                continue
            name = node.output[0]
            self._layers.append(name)
            nodes.append(_switch(node))
            proto.graph.input.append(_value(f"{PREFIX}{name}"))
            proto.graph.input.append(_value(f"{PREFIX}{name}/on", onnx.TensorProto.BOOL, scalar=True))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        self._session = OpenModel((proto, arrays), outputs=tensors, quick=True)

    def run(self, feed: Feeds, replaced: Mapping[str, NDArray[Any]]) -> Feeds:
        """The tensors that are judged, with the results of some layers replaced."""
        switches: Feeds = {}
        for name in self._layers:
            switches[f"{PREFIX}{name}"] = replaced.get(name, np.zeros(0, np.float32))
            switches[f"{PREFIX}{name}/on"] = np.array(name in replaced)
        return self._session.run({**feed, **switches})


def _switch(node: onnx.NodeProto) -> onnx.NodeProto:
    own = f"{PREFIX}{node.output[0]}"
    fed, computed = onnx.NodeProto(op_type="Identity", input=[own], output=[f"{own}/fed"]), onnx.NodeProto()
    computed.CopyFrom(node)
    computed.output[0] = f"{own}/computed"
    made = onnx.NodeProto(op_type="If", name=f"{own}/if", input=[f"{own}/on"], output=[node.output[0]])
    for name, inner in (("then_branch", fed), ("else_branch", computed)):
        branch = onnx.GraphProto(name=f"{own}/{name}", node=[inner], output=[_value(inner.output[0])])
        made.attribute.append(onnx.AttributeProto(name=name, g=branch, type=onnx.AttributeProto.GRAPH))
    return made


def _value(name: str, element: int = onnx.TensorProto.FLOAT, *, scalar: bool = False) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = element
    if scalar:
        value.type.tensor_type.shape.SetInParent()
    return value
