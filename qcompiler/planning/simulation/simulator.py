"""The float graph with a switch in front of every quantizable layer, so that one session can try any plan.

A linear node becomes `If(switch, If(fp8, op(f8(x), W_f8), op(i8(x), W_i8)), op(x, W))`: only the branch that is taken
is computed, nothing is rebuilt between two plans, and the weights are lent to the session once. Layers that read the
same activation share a switch. Parts of the graph in which nothing is quantized, or everything in INT8, are run without
any If (`in_parts.py`). Numbers are those of the quantized grids computed in FP32, which is what the engine's
accumulators give up to rounding.

ONNX Runtime rounds to FP8 one element at a time, 15 ns each, so E4M3 is computed from float operators, to the bit:

    k = clip(x / s, ±448)
    |k| ≥ 2⁻⁶ (four significant bits):  p = k · (2²⁰ + 1),  r = p − (p − k)
    |k| < 2⁻⁶ (multiples of 2⁻⁹):       r = (k + 1.5 · 2¹⁴) − 1.5 · 2¹⁴
    y = r · s

Source of the splitting: Veltkamp 1968; Dekker 1971, "A floating-point technique for extending the available precision".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import judged
from qcompiler.judge.views import Views, tensors_of, views_of
from qcompiler.numerics.rounding import E4M3_MAX, LARGEST, Span, format_of, grid, quantize_weight, span
from qcompiler.plan import Candidate
from qcompiler.planning.simulation.bias import Shifts, shared_scales
from qcompiler.planning.simulation.in_parts import InParts, lent
from qcompiler.runtime import switches
from qcompiler.runtime.stream import BUDGET
from qcompiler.support.memory import put_down
from qcompiler.target import DType
from qcompiler.verification.replay import fitting_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray


SWITCH = "qcompiler/switch/"
SCALE = "/scale"
ZERO = "/zero_point"
FP8 = "/fp8"
FP8_OPSET = 19  # the first that has the type
FORMATS = (DType.INT8, DType.FP8)
# by name, what the rounding to E4M3 needs
E4M3 = {
    "high": E4M3_MAX,
    "low": -E4M3_MAX,
    "split": 2.0**20 + 1,
    "smallest": 2.0**-6,
    "magic": 1.5 * 2.0**14,
}


@dataclass(frozen=True, slots=True)
class Use:
    """How an activation and the weights of its readers are quantized.

    Attributes:
        dtype: INT8 or FP8.
        amax: the clipping range of the activation, positive.
    """

    dtype: DType
    amax: float


Uses = Mapping[str, Use]


class Simulator:
    """Runs a float model with any subset of its layers quantized, each in INT8 or FP8.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation tensor they share.
        shifts: what bias correction adds to a layer when it is quantized.
        per_channel: INT8 weight scales per output channel, else per tensor.
        dtypes: the formats that may be asked for; each one costs a byte per weight.
        fp8_per_channel: the same as `per_channel`, for FP8; if not, the readers of one activation share a scale, as in
            `quantize.insert_qdq`.
        scales: by node name, scales of its INT8 weight where they are not amax / 127: [channels] or [].
        views: what `run` returns the tensors of; None for those of the graph, joined ones whole.

    Attributes:
        views: what is judged.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Mapping[str, Sequence[Candidate]],
        shifts: Shifts,
        *,
        per_channel: bool = True,
        dtypes: Sequence[DType] = (DType.INT8,),
        fp8_per_channel: bool = False,
        scales: Mapping[str, NDArray[np.float32]] | None = None,
        views: Views | None = None,
    ) -> None:
        self.groups, self._shifts, self._spans = groups, shifts, shifts.spans
        self.dtypes = tuple(dtype for dtype in FORMATS if dtype in dtypes)
        self._switches = {activation: f"{SWITCH}{i}" for i, activation in enumerate(groups)}
        weights = {t.name: t for t in graphs.tensors(model.graph) if isinstance(t, gs.Constant)}
        shared = shared_scales(model.graph, groups) if DType.FP8 in dtypes and not fp8_per_channel else {}
        given = {DType.INT8: scales or {}, DType.FP8: shared}
        proto, arrays = models.to_proto(model.graph)
        plain = onnx.ModelProto()
        plain.CopyFrom(proto)
        self.views = judged(views_of(model.graph) if views is None else views)
        self.outputs = tensors_of(self.views)
        self.results = [value.name for value in proto.graph.output]
        self._ranks = {c.node: len(weights[c.weight].shape) for members in groups.values() for c in members}
        by_name = {c.node: c for members in groups.values() for c in members}
        protos = {node.name: node for node in proto.graph.node}
        nodes = []
        stored: dict[str, tuple[NDArray[Any], NDArray[np.float32]]] = {}
        for node in proto.graph.node:
            candidate = by_name.get(node.name)
            if candidate is None:
                nodes.append(node)
                continue
            for dtype in self.dtypes:
                axis = candidate.axis if (fp8_per_channel if dtype is DType.FP8 else per_channel) else None
                weight, fitted = weights[candidate.weight].values, candidate.fitted
                if fitted is not None and dtype is DType.INT8 and axis is not None:
                    values, steps = fitted.values, fitted.scales
                else:
                    values, steps = quantize_weight(weight, axis, format_of(dtype), given[dtype].get(node.name))
                if axis is not None:
                    steps = steps.reshape([-1 if d == axis % weight.ndim else 1 for d in range(weight.ndim)])
                if dtype is DType.FP8 and int(model.graph.opset) < FP8_OPSET:
                    values = values.astype(np.float16)  # holds every value of E4M3
                name = f"{SWITCH}{node.name}/w/{dtype}"
                arrays[name] = values = put_down(values)
                if dtype is DType.INT8:
                    stored[node.name] = (values, steps)
                proto.graph.initializer.append(lent(name, values))
                proto.graph.initializer.append(onnx.numpy_helper.from_array(steps, f"{name}{SCALE}"))
            chain = [protos[name] for name in candidate.chain]
            nodes.append(_switched(node, chain, self._switches[candidate.activation], self.dtypes))
            proto.graph.input.append(switches.value_info(f"{SWITCH}{node.name}/b", onnx.TensorProto.FLOAT))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        integer = onnx.TensorProto.INT8 if shifts.spans is None else onnx.TensorProto.UINT8
        for name in self._switches.values():
            proto.graph.input.append(switches.value_info(name, onnx.TensorProto.BOOL, scalar=True))
            proto.graph.input.append(switches.value_info(name + SCALE, onnx.TensorProto.FLOAT, scalar=True))
            if DType.INT8 in self.dtypes:
                proto.graph.input.append(switches.value_info(name + ZERO, integer, scalar=True))
            if len(self.dtypes) > 1:
                proto.graph.input.append(switches.value_info(name + FP8, onnx.TensorProto.BOOL, scalar=True))
        if DType.FP8 in self.dtypes:
            proto.graph.initializer.extend(
                onnx.numpy_helper.from_array(np.array(value, np.float32), SWITCH + name) for name, value in E4M3.items()
            )
        self._session = InParts(
            plain,
            proto,
            arrays,
            layers=frozenset(by_name),
            borders=frozenset(groups),
            outputs=list(dict.fromkeys((*self.outputs, *self.results))),
            quantized=_Quantized(by_name, protos, self._switches, stored) if _fit(stored) else None,
        )

    def run(self, feeds: Feeds, uses: Uses) -> dict[str, NDArray[Any]]:
        """What is judged, with the groups in `uses` quantized, each in that format and range, and all others float.

        Raises:
            ValueError: a format that the simulator was not made for.
        """
        found = self._run(feeds, uses)
        return {name: found[name] for name in self.outputs}

    def infer(self, feeds: Feeds, uses: Uses) -> dict[str, NDArray[Any]]:
        """What the model itself returns, all of its outputs, with the groups in `uses` quantized.

        Floats are taken in any type.

        Raises:
            ValueError: as `run`.
        """
        found = self._run(fitting_inputs(feeds, self._session.inputs), uses, keep=False)
        return {name: found[name] for name in self.results}

    def _run(self, feeds: Feeds, uses: Uses, *, keep: bool = True) -> dict[str, NDArray[Any]]:
        strange = sorted({use.dtype for use in uses.values()} - {*self.dtypes})
        if strange:
            raise ValueError(f"this simulator has {', '.join(self.dtypes)}, not {', '.join(strange)}")
        extra: dict[str, NDArray[Any]] = {}
        for activation, name in self._switches.items():
            use = uses.get(activation)
            extra[name] = np.array(use is not None)
            extra[name + SCALE], zero = self._grid(activation, use or Use(self.dtypes[0], 1.0))
            if DType.INT8 in self.dtypes:
                extra[name + ZERO] = zero
            if len(self.dtypes) > 1:
                extra[name + FP8] = np.array(use is not None and use.dtype is DType.FP8)
            for c in self.groups[activation]:
                extra[f"{SWITCH}{c.node}/b"] = self._bias(c, use)
        on = {c.node: use.dtype for activation, use in uses.items() for c in self.groups.get(activation, ())}
        whole = {name for name, dtype in on.items() if dtype is DType.INT8}
        return self._session.run(feeds, extra, on, whole, keep=keep)

    def _grid(self, activation: str, use: Use) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scale, and zero point for INT8."""
        zero_point = np.array(0, np.int8 if self._spans is None else np.uint8)
        if self._spans is None or activation not in self._spans or use.dtype is DType.FP8:
            zero_point += 128 if self._spans is not None and use.dtype is DType.INT8 else 0  # the same grid, unsigned
            return np.array(use.amax / LARGEST[format_of(use.dtype)], np.float32), zero_point
        scale, zero = grid(*span(use.amax, self._spans[activation]))
        return np.array(scale, np.float32), np.array(zero, np.uint8)

    def _bias(self, candidate: Candidate, use: Use | None) -> NDArray[np.float32]:
        """The correction in a shape that broadcasts along the output channels."""
        if use is None:
            return np.zeros(1, np.float32)
        shift = self._shifts.of(candidate, use.amax, use.dtype)
        if candidate.op == "Conv":
            return shift.reshape(-1, *[1] * (self._ranks[candidate.node] - 2))
        return shift


@dataclass(frozen=True)
class _Quantized:
    """Layers in INT8 without a switch, their weights dequantized once.

    Attributes:
        candidates: by node name.
        protos: all nodes of the float graph by name.
        switches: by activation, whose scales and zero points are read.
        stored: by node name, the weight in INT8 and its steps, which broadcast.
    """

    candidates: Mapping[str, Candidate]
    protos: Mapping[str, onnx.NodeProto]
    switches: Mapping[str, str]
    stored: Mapping[str, tuple[NDArray[Any], NDArray[np.float32]]]

    def replaced(self, nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
        """The nodes with all layers among them quantized, and the weights that these read."""
        made, rounded = list[onnx.NodeProto](), set[str]()
        weights: dict[str, NDArray[Any]] = {}
        for node in nodes:
            candidate = self.candidates.get(node.name)
            if candidate is None:
                made.append(node)
                continue
            switch, own = self.switches[candidate.activation], f"{SWITCH}{node.name}/all/"
            if switch not in rounded:
                rounded.add(switch)
                made += _int8(node.input[0], switch, switch + "/")
            values, steps = self.stored[node.name]
            weights[own + "wd"] = values.astype(np.float32) * steps
            links = _linked([self.protos[name] for name in candidate.chain], own)
            product = _product(node, switch + "/xd", f"{own}wd{len(links) or ''}", own + "y")
            # Other layers are not corrected
            corrected = candidate.op == "Conv"
            product.output[0] = own + "y" if corrected else node.output[0]
            made += [*links, product]
            if corrected:
                made.append(switches.node("Add", [own + "y", f"{SWITCH}{node.name}/b"], [node.output[0]]))
        return made, weights


def _fit(stored: Mapping[str, tuple[NDArray[Any], Any]]) -> bool:
    """Whether weights may stand there as floats, too."""
    return bool(stored) and sum(4 * values.size for values, _ in stored.values()) <= BUDGET


@dataclass(frozen=True)
class Grids:
    """On which grids weights and activations are rounded, their ranges apart.

    Attributes:
        per_channel: INT8 weight scales per output channel, else per tensor.
        fp8_per_channel: the same for FP8.
        spans: lowest and highest value seen of the activations whose INT8 grids are unsigned; None where none is.
    """

    per_channel: bool = True
    fp8_per_channel: bool = False
    spans: Mapping[str, Span] | None = None

    def channels(self, dtype: DType) -> bool:
        """Whether weights in a format have a scale per output channel."""
        return self.fp8_per_channel if dtype is DType.FP8 else self.per_channel


@dataclass(frozen=True, eq=False)
class Simulation:
    """What layers may become, and the simulator that tries it.

    Attributes:
        model: the float model, normalised.
        groups: candidates by the activation tensor they share, one at least.
        offers: formats and clipping ranges to choose from, by activation.
        feeds: samples for the means of bias correction.
        grids: of weights and activations.
        scales: by node name, scales of its INT8 weight where they are not amax / 127.
        shifts: what bias correction adds.
        simulator: runs the model with any of these choices.
    """

    model: models.Model
    groups: Mapping[str, Sequence[Candidate]]
    offers: Mapping[str, Sequence[Use]]
    feeds: Sequence[Feeds]
    grids: Grids
    scales: Mapping[str, NDArray[np.float32]]
    shifts: Shifts
    simulator: Simulator

    @classmethod
    def of(
        cls,
        model: models.Model,
        groups: Mapping[str, Sequence[Candidate]],
        offers: Mapping[str, Sequence[Use]],
        feeds: Sequence[Feeds],
        grids: Grids,
        scales: Mapping[str, NDArray[np.float32]],
        views: Views | None = None,
    ) -> Simulation:
        """Measures the means and makes the session; `views` as of `Simulator`."""
        dtypes = formats_of(offers)
        shifts = Shifts(
            model,
            groups,
            _ranges(offers, DType.INT8),
            feeds,
            fp8=_ranges(offers, DType.FP8) if DType.FP8 in dtypes else None,
            fp8_per_channel=grids.fp8_per_channel,
            per_channel=grids.per_channel,
            spans=grids.spans,
            scales=scales,
        )
        simulator = Simulator(
            model,
            groups,
            shifts,
            per_channel=grids.per_channel,
            dtypes=dtypes,
            fp8_per_channel=grids.fp8_per_channel,
            scales=scales,
            views=views,
        )
        return cls(model, groups, offers, feeds, grids, scales, shifts, simulator)

    def scaled(self, scales: Mapping[str, NDArray[np.float32]]) -> Simulation:
        """The same with other scales of weights."""
        views = self.simulator.views
        return Simulation.of(self.model, self.groups, self.offers, self.feeds, self.grids, scales, views)


def formats_of(offers: Mapping[str, Sequence[Use]]) -> tuple[DType, ...]:
    """The formats on offer."""
    return tuple(dict.fromkeys(use.dtype for uses in offers.values() for use in uses))


def _ranges(offers: Mapping[str, Sequence[Use]], dtype: DType) -> dict[str, list[float]]:
    return {name: [use.amax for use in uses if use.dtype is dtype] for name, uses in offers.items()}


def _switched(
    node: onnx.NodeProto, chain: Sequence[onnx.NodeProto], switch: str, dtypes: Sequence[DType]
) -> onnx.NodeProto:
    """The If that stands for a linear node; `chain` is what stands between its weight and its input 1."""
    own = f"{SWITCH}{node.name}/"
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.output[0] = own + "yf"
    quantized = [_quantized(node, chain, switch, dtype) for dtype in dtypes]
    if len(dtypes) == 1:
        return switches.choice(switch, own, node.output[0], quantized[0], [plain])
    integer, floating = quantized
    inner = switches.choice(switch + FP8, own + "fp8/", own + "yq", floating, integer)
    return switches.choice(switch, own, node.output[0], [inner], [plain])


def _quantized(
    node: onnx.NodeProto, chain: Sequence[onnx.NodeProto], switch: str, dtype: DType
) -> list[onnx.NodeProto]:
    """The nodes of one format's branch; the last one writes the result."""
    own, weight = f"{SWITCH}{node.name}/{dtype}/", f"{SWITCH}{node.name}/w/{dtype}"
    rounded = _e4m3 if dtype is DType.FP8 else _int8
    # Faster than DequantizeLinear with an axis, and to the bit the same
    widen = switches.node("Cast", [weight], [own + "wf"])
    widen.attribute.append(onnx.AttributeProto(name="to", i=onnx.TensorProto.FLOAT, type=onnx.AttributeProto.INT))
    return [
        *rounded(node.input[0], switch, own),
        widen,
        switches.node("Mul", [own + "wf", weight + SCALE], [own + "wd"]),
        *_linked(chain, own),
        _product(node, own + "xd", f"{own}wd{len(chain) or ''}", own + "y"),
        switches.node("Add", [own + "y", f"{SWITCH}{node.name}/b"], [own + "yq"]),
    ]


def _linked(chain: Sequence[onnx.NodeProto], own: str) -> list[onnx.NodeProto]:
    """The nodes of a chain behind the tensor `own`wd."""
    links = []
    for i, link in enumerate(chain):
        links.append(onnx.NodeProto())
        links[-1].CopyFrom(link)
        links[-1].name, links[-1].input[0], links[-1].output[0] = f"{own}{i}", f"{own}wd{i or ''}", f"{own}wd{i + 1}"
    return links


def _product(node: onnx.NodeProto, x: str, weight: str, y: str) -> onnx.NodeProto:
    """A layer with other tensors."""
    product = onnx.NodeProto()
    product.CopyFrom(node)
    product.input[0], product.input[1], product.output[0] = x, weight, y
    return product


def _int8(x: str, switch: str, own: str) -> list[onnx.NodeProto]:
    """DQ(Q(x)) as `own`xd."""
    return [
        switches.node("QuantizeLinear", [x, switch + SCALE, switch + ZERO], [own + "xq"]),
        switches.node("DequantizeLinear", [own + "xq", switch + SCALE, switch + ZERO], [own + "xd"]),
    ]


def _e4m3(x: str, switch: str, own: str) -> list[onnx.NodeProto]:
    """The same on the grid of E4M3."""
    steps = [
        ("Div", (x, switch + SCALE), "xs"),
        ("Clip", (own + "xs", SWITCH + "low", SWITCH + "high"), "k"),
        ("Mul", (own + "k", SWITCH + "split"), "p"),
        ("Sub", (own + "p", own + "k"), "pk"),
        ("Sub", (own + "p", own + "pk"), "normal"),
        ("Add", (own + "k", SWITCH + "magic"), "km"),
        ("Sub", (own + "km", SWITCH + "magic"), "subnormal"),
        ("Abs", (own + "k",), "size"),
        ("Less", (own + "size", SWITCH + "smallest"), "small"),
        ("Where", (own + "small", own + "subnormal", own + "normal"), "r"),
        ("Mul", (own + "r", switch + SCALE), "xd"),
    ]
    return [switches.node(op, inputs, [own + output]) for op, inputs, output in steps]
