"""The float graph with a switch in front of every quantizable layer, so that one session can try any plan.

A linear node becomes `If(switch, op(DQ(Q(x)), DQ(W₈)), op(x, W))`: only the branch that is taken is computed, nothing
is rebuilt between two plans, and the weights are lent to the session once. Layers that read the same activation share
a switch. Numbers are those of the INT8 grid computed in FP32, which is what the engine's INT32 accumulation gives up
to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.bias import Shifts
from qcompiler.decide import Candidate
from qcompiler.numerics import quantize_weight
from qcompiler.session import Feeds, Session
from qcompiler.unsigned import grid, span

if TYPE_CHECKING:
    from numpy.typing import NDArray

SWITCH = "qcompiler/switch/"
SCALE = "/scale"
ZERO = "/zero_point"


class Simulator:
    """Runs a float model with any subset of its layers quantized.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation tensor they share.
        shifts: what bias correction adds to a layer when it is quantized.
        per_channel: weight scales per output channel, else per tensor.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Mapping[str, Sequence[Candidate]],
        shifts: Shifts,
        *,
        per_channel: bool = True,
    ) -> None:
        self.groups, self._shifts, self._spans = groups, shifts, shifts.spans
        self._switches = {activation: f"{SWITCH}{i}" for i, activation in enumerate(groups)}
        weights = {t.name: t for t in graphs.tensors(model.graph) if isinstance(t, gs.Constant)}
        proto, arrays = models.to_proto(model.graph)
        self._softmax = _softmax_inputs(model.graph)
        floats = [value.name for value in proto.graph.output if _is_float(value)]
        self.outputs = list(dict.fromkeys(self._softmax.get(name, (name, 0))[0] for name in floats))
        self._ranks = {c.node: len(weights[c.weight].shape) for members in groups.values() for c in members}
        by_name = {c.node: c for members in groups.values() for c in members}
        protos = {node.name: node for node in proto.graph.node}
        nodes = []
        for node in proto.graph.node:
            candidate = by_name.get(node.name)
            if candidate is None:
                nodes.append(node)
                continue
            axis = candidate.axis if per_channel else None
            values, scales = quantize_weight(weights[candidate.weight].values, axis)
            arrays[f"{SWITCH}{node.name}/w"] = values
            proto.graph.initializer.append(_external(f"{SWITCH}{node.name}/w", values))
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(scales.astype(np.float32), f"{SWITCH}{node.name}/ws")
            )
            zeros = np.zeros(scales.shape, np.int8)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, f"{SWITCH}{node.name}/wz"))
            chain = [protos[name] for name in candidate.chain]
            nodes.append(_switched(node, chain, self._switches[candidate.activation], axis))
            proto.graph.input.append(_value_info(f"{SWITCH}{node.name}/b", onnx.TensorProto.FLOAT))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        for name in self._switches.values():
            proto.graph.input.append(_value_info(name, onnx.TensorProto.BOOL, scalar=True))
            proto.graph.input.append(_value_info(name + SCALE, onnx.TensorProto.FLOAT, scalar=True))
            integer = onnx.TensorProto.INT8 if shifts.spans is None else onnx.TensorProto.UINT8
            proto.graph.input.append(_value_info(name + ZERO, integer, scalar=True))
        self._session = Session((proto, arrays), outputs=self.outputs, quick=True)

    def run(self, feeds: Feeds, amax: Mapping[str, float]) -> dict[str, NDArray[Any]]:
        """The float outputs with the groups in `amax` quantized, each with that clipping range, and all others float.

        In place of the result of a Softmax comes what it is computed from, less its mean (which a Softmax ignores):
        probabilities near 0 and 1 hide errors and exaggerate others.
        """
        switches = {name: np.array(activation in amax) for activation, name in self._switches.items()}
        scales = {}
        for activation, name in self._switches.items():
            scales[name + SCALE], scales[name + ZERO] = self._grid(activation, amax.get(activation, 1.0))
        biases = {
            f"{SWITCH}{c.node}/b": self._bias(c, amax.get(activation))
            for activation, members in self.groups.items()
            for c in members
        }
        outputs = self._session.run({**feeds, **switches, **scales, **biases})
        for name, axis in self._softmax.values():
            outputs[name] = outputs[name] - outputs[name].mean(axis=axis, keepdims=True)
        return outputs

    def _grid(self, activation: str, amax: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scale and zero point."""
        if self._spans is None:
            return np.array(amax / 127.0, np.float32), np.array(0, np.int8)
        scale, zero = grid(*span(amax, self._spans[activation]))
        return np.array(scale, np.float32), np.array(zero, np.uint8)

    def _bias(self, candidate: Candidate, amax: float | None) -> NDArray[np.float32]:
        """The correction in a shape that broadcasts along the output channels."""
        if amax is None:
            return np.zeros(1, np.float32)
        shift = self._shifts.of(candidate, amax)
        if candidate.op == "Conv":
            return shift.reshape(-1, *[1] * (self._ranks[candidate.node] - 2))
        return shift


def _switched(node: onnx.NodeProto, chain: Sequence[onnx.NodeProto], switch: str, axis: int | None) -> onnx.NodeProto:
    """The If that stands for a linear node; `chain` is what stands between its weight and its input 1."""
    own = f"{SWITCH}{node.name}/"
    quantized, plain = onnx.NodeProto(), onnx.NodeProto()
    quantized.CopyFrom(node)
    plain.CopyFrom(node)
    quantized.output[0], plain.output[0] = own + "y", own + "yf"
    links = []
    for i, link in enumerate(chain):
        links.append(onnx.NodeProto())
        links[-1].CopyFrom(link)
        links[-1].input[0], links[-1].output[0] = f"{own}wd{i or ''}", f"{own}wd{i + 1}"
    quantized.input[0], quantized.input[1] = own + "xd", f"{own}wd{len(chain) or ''}"
    dequantize_weight = _node("DequantizeLinear", [own + "w", own + "ws", own + "wz"], [own + "wd"])
    if axis is not None:
        dequantize_weight.attribute.append(onnx.AttributeProto(name="axis", i=axis, type=onnx.AttributeProto.INT))
    then = [
        _node("QuantizeLinear", [node.input[0], switch + SCALE, switch + ZERO], [own + "xq"]),
        _node("DequantizeLinear", [own + "xq", switch + SCALE, switch + ZERO], [own + "xd"]),
        dequantize_weight,
        *links,
        quantized,
        _node("Add", [own + "y", own + "b"], [own + "yq"]),
    ]
    made = _node("If", [switch], [node.output[0]], name=own + "If")
    made.attribute.append(_body("then_branch", _branch(own + "then", then)))
    made.attribute.append(_body("else_branch", _branch(own + "else", [plain])))
    return made


def _branch(name: str, nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
    branch = onnx.GraphProto(name=name, node=nodes)
    branch.output.append(_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT))
    return branch


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "") -> onnx.NodeProto:
    return onnx.NodeProto(op_type=op, input=inputs, output=outputs, name=name)


def _body(name: str, graph: onnx.GraphProto) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, g=graph, type=onnx.AttributeProto.GRAPH)


def _value_info(name: str, element: int, *, scalar: bool = False) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = element
    if scalar:
        value.type.tensor_type.shape.SetInParent()
    return value


def _external(name: str, array: NDArray[Any]) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=onnx.TensorProto.INT8)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="lent")
    return tensor


def _softmax_inputs(graph: gs.Graph) -> dict[str, tuple[str, int]]:
    """By name of a graph output that a Softmax writes: the name of what it reads, and its axis."""
    found = {}
    for tensor in graph.outputs:
        node = graphs.producer(tensor)
        if node is not None and node.op in ("Softmax", "LogSoftmax") and not isinstance(node.inputs[0], gs.Constant):
            found[tensor.name] = (node.inputs[0].name, int(node.attrs.get("axis", -1)))
    return found


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
