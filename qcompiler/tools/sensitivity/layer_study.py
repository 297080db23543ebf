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

What lies in front of a layer is run once for each sample (`stretches`): a trial is fed with what crosses into the part
of the model that it changes. Outputs are kept sample by sample: what they differ by says how certain a figure is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.macs import Shapes
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, judged
from qcompiler.judge.variation import Varying
from qcompiler.judge.views import find_views, tensors_of
from qcompiler.numerics.sqnr import power
from qcompiler.plan import Candidate
from qcompiler.runtime import segments
from qcompiler.runtime.stream import OpenModel
from qcompiler.tools.sensitivity.formats import NumberFormat
from qcompiler.tools.sensitivity.stretches import Spot, TrialStretch, stretches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.statistics.histogram import Histogram

    Floats = NDArray[np.float64]


PREFIX: Final = "qcompiler/study/"
ROOM: Final = 256 << 20  # bytes of outputs that are held at a time
MOST: Final = 8  # samples that go through a stretch together

_PLAIN: Final = ""  # no format
_NOTHING: Final = np.zeros(0, np.float32)

Groups = Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True, slots=True)
class Own:
    """Noise-to-signal powers at the outputs of a group's own layers.

    Attributes:
        weights: with only their weights rounded.
        activations: with only the activation; None where the format is for weights.
        layer: with both.
    """

    weights: float
    activations: float | None
    layer: float


@dataclass(frozen=True, eq=False)
class StudyErrors:
    """What a study has measured so far.

    Attributes:
        groups: by their activation, in the order of `errors`.
        errors: by format, sums of squared errors of what is judged: [samples, groups, views].
        signals: sums of squares of what the float model gives, less what is the same in every sample: [samples, views].
        own: at the groups' own outputs, by activation and format.
    """

    groups: tuple[str, ...]
    errors: Mapping[str, Floats]
    signals: Floats
    own: Mapping[str, Mapping[str, Own]]

    @property
    def samples(self) -> int:
        """How many samples were run."""
        return len(self.signals)


class Study:
    """Measures groups of layers of one model on samples, as many at a time as there are.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation they share.
        histograms: of the activations, for their ranges.
        feed: a sample.
        formats: to round to.
        macs: multiply-accumulates by node, which say where the model is cut.
        shapes: of the tensors of a sample, as far as they are known; they say how much is held.
        samples: so many will be run, about.
        per_channel: weight scales per output channel, else per tensor.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Groups,
        histograms: Mapping[str, Histogram],
        feed: Feeds,
        formats: Sequence[NumberFormat],
        *,
        macs: Mapping[str, int],
        shapes: Shapes,
        samples: int,
        per_channel: bool = True,
    ) -> None:
        self._groups, self._formats, self._per_channel = groups, formats, per_channel
        self._weights = {t.name: t for t in graphs.tensors(model.graph) if isinstance(t, gs.Constant)}
        self._proto, self._arrays = models.to_proto(model.graph)
        self._views = judged(find_views(model.graph, feed))
        self._tensors = tensors_of(self._views)
        self._layers = {name: _Layers(self._proto, self._arrays, members) for name, members in groups.items()}
        self._ranges = {
            name: {one.name: one.range(histograms[name]) for one in formats if one.activations} for name in groups
        }
        work = [float(macs.get(node.name, 0)) for node in self._proto.graph.node]
        spots = _spots(self._proto, self._layers, self._weights, shapes, len(formats))
        self._stretches = stretches(self._proto, spots, work, samples * len(formats))
        asked = {name for one in self._layers.values() for name in one.reads} | set(self._tensors)
        starts = [one.start for one in self._stretches]
        self._heads = segments.at_places(self._proto, asked, starts)
        held = sum(4 * math.prod(shapes.get(name, (0,))) for name in self._tensors)
        self._most = max(1, min(MOST, ROOM // max(held, 1)))
        self._spread = Varying(self._views)
        self._signals: list[Floats] = []
        self._errors: dict[str, list[Floats]] = {one.name: [] for one in formats}
        self._own = {(name, one.name): _Losses() for name in groups for one in formats}

    @property
    def size(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    @property
    def cost(self) -> float:
        """How many runs of the model one sample takes."""
        trials = sum(len(one.groups) * one.share for one in self._stretches)
        return trials * len(self._formats) + 3 + 3 * len(self._formats)

    def run(self, feeds: Sequence[Feeds], advance: Callable[[int], None]) -> None:
        """Adds samples; `advance` is called with 1 for each group of each sample."""
        for start in range(0, len(feeds), self._most):
            self._run(feeds[start : start + self._most], advance)

    def found(self) -> StudyErrors:
        """All that was measured."""
        shares = self._spread.shares()
        own = {name: {one.name: self._own[name, one.name].own(one) for one in self._formats} for name in self._groups}
        signals = np.stack(self._signals) * [shares.get(view, 1.0) for view in self._views]
        return StudyErrors(
            tuple(self._groups), {name: np.stack(rows) for name, rows in self._errors.items()}, signals, own
        )

    def _run(self, feeds: Sequence[Feeds], advance: Callable[[int], None]) -> None:
        handed: list[Feeds] = [dict(feed) for feed in feeds]  # what crosses into a stretch, by sample
        expected: list[Expected] = []
        errors = {one.name: np.zeros((len(feeds), len(self._groups), len(self._views))) for one in self._formats}
        place = {name: at for at, name in enumerate(self._groups)}
        for at, stretch in enumerate(self._stretches):
            behind = _Behind(self._proto, self._arrays, stretch, self._layers, self._tensors)
            expected = expected or [Expected.of(self._views, behind.run(feed, {}), feed) for feed in feeds]
            head = _Head(self._proto, self._arrays, self._heads[at])
            rounded = {name: self._rounded(name) for name in stretch.groups}
            needed = {name for later in self._heads[at + 1 :] for name in later.reads}
            for sample, reference in enumerate(expected):
                fed = handed[sample]
                made = head.run(fed)
                for name in stretch.groups:
                    for one, other in self._replaced(name, made, rounded[name]):
                        errors[one][sample, place[name]] = behind.errors(reference, fed, other)
                    advance(1)
                handed[sample] = {name: value for name, value in made.items() if name in needed}
        for reference in expected:
            self._spread.add(reference.feed, reference.values)
            self._signals.append(np.array([reference.signals.get(view, 0.0) for view in self._views]))
        for one, rows in errors.items():
            self._errors[one].extend(rows)

    def _rounded(self, group: str) -> dict[str, Feeds]:
        """The weights of a group by format, and as they are."""
        axes = {c.weight: c.axis if self._per_channel else None for c in self._layers[group].members}
        plain = {name: self._weights[name].values for name in axes}
        rounded = {
            one.name: {name: one.weights(values, axes[name]) for name, values in plain.items()} for one in self._formats
        }
        return {_PLAIN: plain, **rounded}

    def _replaced(self, group: str, made: Feeds, weights: Mapping[str, Feeds]) -> Iterator[tuple[str, Feeds]]:
        """What the layers of a group give in each format, where that differs; takes in what they lose themselves."""
        layers, sums = self._layers[group], self._own
        exact = layers.run(made, weights[_PLAIN])
        for one in self._formats:
            coarse = made
            if one.activations:
                coarse = {**made, group: one.values(made[group], self._ranges[group][one.name])}
            both = layers.run(coarse, weights[one.name])
            sums[group, one.name].layer.add(exact, both)
            sums[group, one.name].weights.add(exact, layers.run(made, weights[one.name]) if one.activations else both)
            if one.activations:
                sums[group, one.name].activations.add(exact, layers.run(coarse, weights[_PLAIN]))
            if any(not np.array_equal(exact[name], value) for name, value in both.items()):
                yield one.name, both


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


class _Losses:
    """What the layers of a group lose in one format."""

    def __init__(self) -> None:
        self.weights, self.activations, self.layer = _Sum(), _Sum(), _Sum()

    def own(self, one: NumberFormat) -> Own:
        """As powers."""
        return Own(self.weights.ratio, self.activations.ratio if one.activations else None, self.layer.ratio)


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


class _Head:
    """The nodes of a stretch, up to the next one."""

    def __init__(self, proto: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], segment: segments.Segment) -> None:
        self._reads = segment.reads
        outputs = list(dict.fromkeys((*segment.tensors, *segment.hands_on)))
        self._session = None
        if outputs:
            ((alone, lent),) = segments.extract(proto, arrays, [segment])
            self._session = OpenModel((alone, lent), outputs=outputs, quick=True)

    def run(self, fed: Feeds) -> Feeds:
        """What it is fed with, and what it makes of it."""
        return {**fed, **(self._session.run({name: fed[name] for name in self._reads}) if self._session else {})}


class _Behind:
    """The model from a stretch on, with a switch behind each of its layers that takes what is fed instead."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        arrays: Mapping[str, NDArray[Any]],
        stretch: TrialStretch,
        layers: Mapping[str, _Layers],
        tensors: Sequence[str],
    ) -> None:
        segment = segments.rest_of(proto, tensors, stretch.start)
        ((alone, lent),) = segments.extract(proto, arrays, [segment])
        tried = {c.node for name in stretch.groups for c in layers[name].members}
        nodes = [_switch(node) if node.name in tried else node for node in alone.graph.node]
        self._tried = [node.output[0] for node in alone.graph.node if node.name in tried]
        del alone.graph.node[:]
        alone.graph.node.extend(nodes)
        for name in self._tried:
            alone.graph.input.append(_value(f"{PREFIX}{name}"))
            alone.graph.input.append(_value(f"{PREFIX}{name}/on", onnx.TensorProto.BOOL, scalar=True))
        self._reads, self._made = segment.reads, frozenset(segment.tensors)
        self._session = OpenModel((alone, lent), outputs=segment.tensors)

    def run(self, fed: Feeds, replaced: Feeds) -> Feeds:
        """What is judged and behind, with the results of some layers replaced."""
        switches: Feeds = {}
        for name in self._tried:
            switches[f"{PREFIX}{name}"] = replaced.get(name, _NOTHING)
            switches[f"{PREFIX}{name}/on"] = np.array(name in replaced)
        return self._session.run({**{name: fed[name] for name in self._reads}, **switches})

    def errors(self, expected: Expected, fed: Feeds, replaced: Feeds) -> list[float]:
        """Sum of squared errors of each view; 0 of what lies in front."""
        found = self.run(fed, replaced)
        known = [view in expected.values and view.tensor in self._made for view in expected.views]
        return [expected.error(view, found) if has else 0.0 for view, has in zip(expected.views, known, strict=True)]


def _spots(
    proto: onnx.ModelProto,
    layers: Mapping[str, _Layers],
    weights: Mapping[str, gs.Constant],
    shapes: Shapes,
    formats: int,
) -> dict[str, Spot]:
    """Where each group lies, and what it holds: its weights in all formats, and what it reads of one sample."""
    at = {node.name: index for index, node in enumerate(proto.graph.node)}
    made = {name: index for index, node in enumerate(proto.graph.node) for name in node.output}
    found = {}
    for activation, group in layers.items():
        held = sum(4 * math.prod(weights[c.weight].shape) for c in group.members) * formats
        held += sum(4 * math.prod(shapes.get(name, (0,))) for name in group.reads)
        ready = max((made[name] + 1 for name in group.reads if name in made), default=0)
        found[activation] = Spot(min(at[c.node] for c in group.members), ready, held)
    return found


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
