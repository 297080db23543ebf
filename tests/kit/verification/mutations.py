"""Quantized models broken on purpose, one layer at a time: what a comparison has to find."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

KINDS = ("weight scale", "activation scale", "bias", "swapped channels", "overflow")
FACTOR = 8


def layers(model: onnx.ModelProto) -> list[str]:
    """Nodes with a weight that is stored quantized."""
    makers = _makers(model)
    multiplying = (node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    return [node.name for node in multiplying if _op(makers.get(node.input[1])) == "DequantizeLinear"]


def broken(model: onnx.ModelProto, layer: str, kind: str) -> onnx.ModelProto | None:
    """A copy with one thing wrong in a layer; None where the layer has no such thing.

    Args:
        model: with Q/DQ pairs; stays as it is.
        layer: name of the node.
        kind: of `KINDS`.
    """
    after = copy.deepcopy(model)
    edit = {
        "weight scale": _weight_scale,
        "activation scale": _activation_scale,
        "bias": _bias,
        "swapped channels": _swapped,
        "overflow": _overflow,
    }[kind]
    node = next(node for node in after.graph.node if node.name == layer)
    return after if edit(after, node) else None


def _weight_scale(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    return _scaled(model, _makers(model)[node.input[1]])


def _activation_scale(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    makers = _makers(model)
    back = makers.get(node.input[0])
    forth = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
    if back is None or forth is None or forth.op_type != "QuantizeLinear":
        return False
    return _scaled(model, forth, back)


def _scaled(model: onnx.ModelProto, *pair: onnx.NodeProto) -> bool:
    values = _weights(model).get(pair[0].input[1])
    if values is None:
        return False
    name = _added(model, pair[0].input[1], values * values.dtype.type(FACTOR))
    for one in pair:
        one.input[1] = name
    return True


def _bias(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Of the node itself, or of the Add behind it."""
    weights, makers = _weights(model), _makers(model)
    holder, index = node, 2
    if node.op_type == "MatMul":
        readers = [one for one in model.graph.node if node.output[0] in one.input]
        if len(readers) != 1 or readers[0].op_type != "Add":
            return False
        holder = readers[0]
        index = 1 - list(holder.input).index(node.output[0])
    if index >= len(holder.input):
        return False
    while holder.input[index] not in weights:
        maker = makers.get(holder.input[index])
        if maker is None or maker.op_type not in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            return False
        holder, index = maker, 0
    holder.input[index] = _added(model, holder.input[index], np.zeros_like(weights[holder.input[index]]))
    return True


def _swapped(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """The first half of the output channels in another order."""
    back = _makers(model)[node.input[1]]
    values = _weights(model).get(back.input[0])
    if values is None or node.op_type == "Gemm":
        return False
    axis = 0 if node.op_type == "Conv" else values.ndim - 1
    half = values.shape[axis] // 2
    order = [*range(half)[::-1], *range(half, values.shape[axis])]
    back.input[0] = _added(model, back.input[0], np.take(values, order, axis))
    return bool(half > 1)


def _overflow(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """A tensor behind the layer that FP16 cannot hold, and that is brought back."""
    types = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.value_info, *model.graph.output)}
    output = node.output[0]
    if types.get(output) != onnx.TensorProto.FLOAT16:
        return False
    up, down = (_added(model, output, np.array(factor, np.float16)) for factor in (6e4, 1 / 6e4))
    node.output[0] = f"{output}/before"
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, helper.make_node("Mul", [node.output[0], up], [f"{output}/huge"]))
    model.graph.node.insert(at + 2, helper.make_node("Mul", [f"{output}/huge", down], [output]))
    return True


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _op(node: onnx.NodeProto | None) -> str:
    return "" if node is None else node.op_type


def _weights(model: onnx.ModelProto) -> Mapping[str, NDArray[Any]]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def _added(model: onnx.ModelProto, like: str, values: NDArray[Any]) -> str:
    name = f"{like}/broken{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name
