"""What is planned instead, where quantized layers are predicted to cost more than they save.

Kernels of two listings, of the engine and of the same model in high precision, are compared: a kernel stands for the
layers that it works for, and kernels that share a layer form one region. A region that takes longer in the engine loses
time, and its quantized layers go back to high precision, where their rounding, their wide outputs and their broken
fusions end. What that does to the regions around them is known only from another build; so it is built again, a few
times, and the fastest engine of all counts. The same is tried with one scale for each INT8 weight, which spares
TensorRT-RTX writing FP32: accuracy must then be shown to hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.engines.prediction import Prediction
from qcompiler.engines.rates import Gpu
from qcompiler.engines.roofline import PricedLaunch, Roofline
from qcompiler.ir import graph as graphs
from qcompiler.ir.linear import weight_of
from qcompiler.numerics.rounding import LARGEST
from qcompiler.plan import Decision
from qcompiler.planning.changes import in_high_precision, with_one_scale
from qcompiler.planning.chosen import Chosen
from qcompiler.target import DType

RULE = "slower"
SAME = 1.0 + 1e-6  # of a predicted time: as fast, and more accurate
MOST = 4  # builds from the plan as it is, and from that with one scale for each weight
ONE_SCALE = "one weight scale: with one per channel the engine writes FP32 and scales it in another kernel"

Price = Callable[[Chosen], Prediction]


@dataclass(frozen=True, eq=False)
class KernelRegion:
    """Layers whose kernels belong together.

    Attributes:
        nodes: names of ONNX nodes.
        lost: by SM, how many seconds longer the engine takes here than in high precision; below 0 where it saves.
    """

    nodes: frozenset[str]
    lost: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Faster:
    """A plan that is predicted to be faster than the one that stands.

    Attributes:
        chosen: the plan.
        prediction: for it.
        single: layers that have one weight scale now.
        floats: layers that went back to high precision.
    """

    chosen: Chosen
    prediction: Prediction
    single: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset()


def regions(
    engine: Roofline, high: Roofline, gpus: Sequence[Gpu], nodes: Collection[str], layers: Collection[str]
) -> list[KernelRegion]:
    """The regions of two engines of one model.

    Args:
        engine: with quantized layers.
        high: without.
        gpus: where times are compared.
        nodes: names of the float graph's nodes.
        layers: those of them that are quantized: rounding in a kernel that works for none of them belongs to those that
            read it, otherwise to that kernel's own layer, which needs the kernel anyway.
    """
    groups, readers = _Groups(), _readers(engine, nodes)
    both = ((launch, sign) for one, sign in ((engine, 1), (high, -1)) for launch in one.launches)
    found = [(launch, _own(launch, nodes, layers, readers), sign) for launch, sign in both]
    for _, own, _ in found:
        groups.join(own)
    members: dict[str, set[str]] = {}
    lost: dict[str, dict[str, float]] = {}
    for launch, own, sign in found:
        if not own:
            continue
        root = groups.root(own[0])
        members.setdefault(root, set()).update(own)
        times = lost.setdefault(root, dict.fromkeys((gpu.sm for gpu in gpus), 0.0))
        for gpu in gpus:
            times[gpu.sm] += sign * launch.kernel.seconds(gpu)
    return [KernelRegion(frozenset(members[root]), lost[root]) for root in members]


def _own(
    launch: PricedLaunch, nodes: Collection[str], layers: Collection[str], readers: Mapping[str, Sequence[str]]
) -> list[str]:
    """The float nodes that a kernel works for, and where none of them is quantized, those that read what it rounds."""
    own = [node for node in launch.nodes if node in nodes]
    if any(node in layers for node in own):
        return own
    rounded = (name for name in launch.nodes if name.endswith(_ROUND))
    return own + [reader for name in rounded for reader in readers.get(_tensor(name), ())]


def _readers(engine: Roofline, nodes: Collection[str]) -> dict[str, list[str]]:
    """By the name of a quantized tensor, the float nodes whose kernels undo its rounding."""
    found: dict[str, list[str]] = {}
    for launch in engine.launches:
        for name in launch.nodes:
            if name.endswith(_UNDO):
                found.setdefault(_tensor(name), []).extend(node for node in launch.nodes if node in nodes)
    return found


_ROUND, _UNDO = "/QuantizeLinear", "/DequantizeLinear"  # how `InsertQDQ` names a pair, behind the tensor


def _tensor(name: str) -> str:
    return name.removesuffix(_ROUND).removesuffix(_UNDO)


class _Groups:
    """Names that belong together."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, name: str) -> str:
        while self._above.setdefault(name, name) != name:
            self._above[name] = self._above[self._above[name]]
            name = self._above[name]
        return name

    def join(self, names: Sequence[str]) -> None:
        for other in names[1:]:
            self._above[self.root(other)] = self.root(names[0])


@dataclass(frozen=True, eq=False)
class Descent:
    """The search for plans that are predicted faster than the one that stands and than high precision.

    Attributes:
        chosen: the plan that stands.
        graph: the float graph that it speaks of.
        ours: names of the layers whose plan may change (`changes.changeable`).
        high: the target's high-precision type.
        now: what is predicted for the plan that stands.
        price: builds a plan and predicts what it takes.
        least: share of the multiply-accumulates that must stay quantized, 0..1.
    """

    chosen: Chosen
    graph: gs.Graph
    ours: frozenset[str]
    high: DType
    now: Prediction
    price: Price
    least: float = 0.0

    def found(self) -> list[Faster]:
        """At most one plan with the weights as they are and one with single scales, the fastest first."""
        return self._faster([self._best(Faster(self.chosen, self.now)), *self._with_one_scale(self._wide())])

    def with_few_scales(self) -> list[Faster]:
        """The same with single scales only where they save most time for their error, within half the error of all."""
        wide = self._wide()
        if not wide:
            return []
        saved = self._saved(self.price(with_one_scale(self.chosen, wide, ONE_SCALE)))
        errors = {name: self._coarser(name) for name in wide if saved.get(name, 0.0) > 0}
        errors = {name: error for name, error in errors.items() if math.isfinite(error)}  # others keep their scales
        left, few = sum(errors.values()) / 2, list[str]()
        worth = {name: saved[name] / max(error, 1e-30) for name, error in errors.items()}
        for name in sorted(worth, key=lambda name: (-worth[name], name)):
            if errors[name] <= left:
                left -= errors[name]
                few.append(name)
        return self._faster(self._with_one_scale(few))

    def _faster(self, found: Iterable[Faster]) -> list[Faster]:
        limit = min(1.0, self.now.ratio) - 1e-9
        return sorted((one for one in found if one.prediction.ratio < limit), key=lambda one: one.prediction.ratio)

    def _wide(self) -> list[str]:
        """The INT8 layers whose weights have a scale per channel."""
        plan = self.chosen.plan
        return [name for name in self.ours if plan.precision(name) is DType.INT8 and plan.axes.get(name) is not None]

    def _with_one_scale(self, names: Collection[str]) -> list[Faster]:
        """Single scales for these layers, or for those of them alone that save time by it."""
        if not names:
            return []
        one = with_one_scale(self.chosen, names, ONE_SCALE)
        found = Faster(one, self.price(one), frozenset(names))
        saved = self._saved(found.prediction)
        some = frozenset(name for name in names if saved.get(name, 0.0) > 0)
        if some and some != found.single:
            fewer = with_one_scale(self.chosen, some, ONE_SCALE)
            other = Faster(fewer, self.price(fewer), some)
            found = other if other.prediction.ratio <= found.prediction.ratio * SAME else found
        return [self._best(found)]

    def _saved(self, other: Prediction) -> dict[str, float]:
        """By layer, the seconds that another engine saves around it, the mean over GPUs; a region's are divided."""
        quantized = {decision.node for decision in self.chosen.plan.quantized()}
        nodes = {node.name for node in self.graph.nodes}
        found: dict[str, float] = {}
        for region in regions(self.now.engine, other.engine, other.gpus, nodes, quantized):
            layers = region.nodes & self.ours
            for name in layers:
                found[name] = sum(region.lost.values()) / len(region.lost) / len(layers)
        return found

    def _coarser(self, name: str) -> float:
        """What one scale for its weight adds to the error of a layer, times what that error is worth at the outputs.

        The first is the power of rounding, relative to that of the weight; the second what the layer alone sent to the
        outputs, where that was measured.
        """
        node = next(node for node in self.graph.nodes if node.name == name)
        weight = weight_of(node)
        if weight is None:
            return math.inf
        values = np.abs(np.asarray(graphs.values_of(weight.tensor), np.float64))
        axis = self.chosen.plan.axes[name]
        each = values.max(axis=tuple(at for at in range(values.ndim) if at != axis))
        power = float(np.mean(values**2))
        if not power:
            return 0.0
        added = (float(values.max()) ** 2 - float(np.mean(each**2))) / (12 * LARGEST["int8"] ** 2 * power)
        known = self.chosen.net.noise
        return added * known.get(node.inputs[0].name, float(np.mean(list(known.values()))) if known else 1.0)

    def _best(self, start: Faster) -> Faster:
        """The fastest of the plans that lose their slow layers one build after the other."""
        return min([start, *self._steps(start)], key=lambda one: one.prediction.ratio)

    def _steps(self, now: Faster) -> Iterator[Faster]:
        for _ in range(MOST - 1):
            slow = _slow(now, self.graph, self.ours)
            if not slow:
                return
            after = in_high_precision(now.chosen, self.graph, slow, self.high, RULE, partial(_why, slow))
            if after.plan.share() < self.least or not after.plan.quantized():
                return
            now = Faster(after, self.price(after), now.single - slow.keys(), now.floats | slow.keys())
            yield now


def _slow(now: Faster, graph: gs.Graph, ours: frozenset[str]) -> dict[str, float]:
    """The quantized layers that lose time on some GPU, with the microseconds that are lost around them."""
    one, beside = now.prediction, _beside(graph)
    quantized = {decision.node for decision in now.chosen.plan.quantized()}
    around: dict[frozenset[str], dict[str, float]] = {}
    for region in regions(one.engine, one.high, one.gpus, beside.keys(), quantized):
        layers = frozenset(region.nodes & quantized)
        if not layers and max(region.lost.values()) > 0:  # a fusion that a layer nearby has broken
            layers = _nearest(region.nodes, quantized, beside)
        lost = around.setdefault(layers, dict.fromkeys(region.lost, 0.0))
        for sm, seconds in region.lost.items():
            lost[sm] += seconds
    losing = ((layers & ours, max(lost.values())) for layers, lost in around.items())
    return {layer: worst * 1e6 for layers, worst in losing if worst > 0 for layer in layers}


def _beside(graph: gs.Graph) -> dict[str, set[str]]:
    """By node, the nodes that write what it reads, or read what it writes."""
    found: dict[str, set[str]] = {node.name: set() for node in graph.nodes}
    for node in graph.nodes:
        for reader, _ in (pair for tensor in node.outputs for pair in graphs.consumers(tensor)):
            if reader.name in found:
                found[node.name].add(reader.name)
                found[reader.name].add(node.name)
    return found


def _nearest(nodes: Collection[str], wanted: Collection[str], beside: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Those of the wanted nodes that are fewest steps away."""
    seen, edge = set(nodes), set(nodes)
    while edge:
        met = edge.intersection(wanted)
        if met:
            return frozenset(met)
        edge = {other for node in edge for other in beside[node]} - seen
        seen |= edge
    return frozenset()


def _why(slow: Mapping[str, float], old: Decision) -> str:
    before = old.why.removeprefix(f"{ONE_SCALE}; ")
    return f"quantized, its kernels are predicted to take {slow[old.node]:.2f} µs longer than in float; {before}"


def all_high(chosen: Chosen, graph: gs.Graph, nodes: Collection[str], high: DType, now: Prediction) -> Chosen:
    """The plan with everything in high precision, because no part of it is predicted to be faster quantized.

    Args:
        chosen: the plan that stands.
        graph: the float graph that it speaks of.
        nodes: names of its quantized layers, all of them ours to change.
        high: the target's high-precision type.
        now: what is predicted for the plan that stands.
    """
    why = f"the model is predicted to take {now.ratio:.2f} times as long quantized, and no part of it is faster so"
    return in_high_precision(chosen, graph, nodes, high, RULE, lambda old: f"{why}; {old.why}")
