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
from qcompiler.decide import Candidate
from qcompiler.numerics import quantize_weight
from qcompiler.session import Feeds, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

SWITCH = "qcompiler/switch/"
SCALE = "/scale"


class Simulator:
    """Runs a float model with any subset of its layers quantized.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation tensor they share.
        per_channel: weight scales per output channel, else per tensor.
    """

    def __init__(
        self,
        model: models.Model,
        groups: Mapping[str, Sequence[Candidate]],
        *,
        per_channel: bool = True,
    ) -> None:
        self.groups = groups
        self._switches = {activation: f"{SWITCH}{i}" for i, activation in enumerate(groups)}
        weights = {t.name: t for t in graphs.tensors(model.graph) if isinstance(t, gs.Constant)}
        proto, arrays = models.to_proto(model.graph)
        self.outputs = [value.name for value in proto.graph.output if _is_float(value)]
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
            proto.graph.initializer.append(onnx.numpy_helper.from_array(scales.astype(np.float32), f"{SWITCH}{node.name}/ws"))
            zeros = np.zeros(scales.shape, np.int8)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, f"{SWITCH}{node.name}/wz"))
            chain = [protos[name] for name in candidate.chain]
            nodes.append(_switched(node, chain, self._switches[candidate.activation], axis))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), f"{SWITCH}zero"))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        for name in self._switches.values():
            proto.graph.input.append(_value_info(name, onnx.TensorProto.BOOL, scalar=True))
            proto.graph.input.append(_value_info(name + SCALE, onnx.TensorProto.FLOAT, scalar=True))
        self._session = Session((proto, arrays), outputs=self.outputs, quick=True)

    def run(self, feeds: Feeds, amax: Mapping[str, float]) -> dict[str, NDArray[Any]]:
        """The float outputs with the groups in `amax` quantized, each with that clipping range, and all others float."""
        switches = {name: np.array(activation in amax) for activation, name in self._switches.items()}
        scales = {
            name + SCALE: np.array(amax.get(activation, 1.0) / 127.0, np.float32)
            for activation, name in self._switches.items()
        }
        return self._session.run({**feeds, **switches, **scales})


def _switched(
    node: onnx.NodeProto, chain: Sequence[onnx.NodeProto], switch: str, axis: int | None
) -> onnx.NodeProto:
    """The If that stands for a linear node; `chain` is what stands between its weight and its input 1."""
    own = f"{SWITCH}{node.name}/"
    quantized, plain = onnx.NodeProto(), onnx.NodeProto()
    quantized.CopyFrom(node)
    plain.CopyFrom(node)
    quantized.output[0], plain.output[0] = own + "yq", own + "yf"
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
        _node("QuantizeLinear", [node.input[0], switch + SCALE, SWITCH + "zero"], [own + "xq"]),
        _node("DequantizeLinear", [own + "xq", switch + SCALE, SWITCH + "zero"], [own + "xd"]),
        dequantize_weight,
        *links,
        quantized,
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


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
