"""Breaking a quantized model on purpose: one thing that is wrong in one layer, at places that a seed chooses.

weight scale x8      of the DequantizeLinear of a weight
activation scale x8  of the DequantizeLinear in front of a layer
range x8             of the Q/DQ pair in front of a layer: three bits fewer
range /8             of the same: large values are clipped
dropped bias         zeros in its place
FP16 overflow        Mul by 2^15 and by 2^-15 behind a layer: nothing in FP32, infinite in half
swapped channels     two channels of an output, or of a part of it: of the layer that makes them, with all parameters
flipped sign         of the weights of an eighth of the output channels
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

FACTOR: Final = 8
HUGE: Final = 2.0**15  # half holds 65504; this and its inverse are exact in it
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STORING = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose")
_VIEWS = (*_STORING, "Flatten", "Reshape", "Squeeze", "Unsqueeze")
_PASSING = (*_VIEWS, "Add", "Clip", "Concat", "HardSigmoid", "LogSoftmax", "Relu", "Sigmoid", "Softmax", "Tanh")
_LOUDEST: Final = 8  # channels that are swapped are among them: those that are always near zero change nothing


@dataclass(frozen=True)
class Weight:
    """Where the weight of a layer is stored.

    Attributes:
        reader: the node that reads the initializer, and `index`, by which input.
        scaled: the DequantizeLinear; None where it is stored in float.
        axis: of the output channels, as it is stored.
        half: the layer reads it in FP16.
    """

    reader: onnx.NodeProto
    index: int
    scaled: onnx.NodeProto | None
    axis: int
    half: bool


@dataclass(frozen=True)
class Break:
    """What is wrong.

    Attributes:
        kind: of `KINDS`.
        layer: name of the layer it was done to.
        detail: which values.
        guilty: nodes that may be named for it: the layer, the Add of its bias, all layers that read what was changed.
    """

    kind: str
    layer: str
    detail: str
    guilty: frozenset[str]


@dataclass
class Draft:
    """A copy of a quantized model in which something can be changed."""

    proto: onnx.ModelProto
    values: dict[str, TensorProto] = field(init=False)
    makers: dict[str, onnx.NodeProto] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {one.name: one for one in self.proto.graph.initializer}
        self.makers = {name: node for node in self.proto.graph.node for name in node.output if name}

    @property
    def layers(self) -> list[onnx.NodeProto]:
        """Products with a stored weight that nothing else reads, in graph order."""
        return [node for node in self.proto.graph.node if node.op_type in _LINEAR and self.weight(node) is not None]

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """All nodes that read a tensor."""
        return [node for node in self.proto.graph.node if tensor in node.input]

    def array(self, tensor: str) -> Array | None:
        """The values of an initializer."""
        held = self.values.get(tensor)
        return None if held is None else numpy_helper.to_array(held)

    def weight(self, layer: onnx.NodeProto) -> Weight | None:
        """None where it is computed, or where other nodes read it."""
        node, index, scaled = layer, 1, None
        half = False
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(layer.op_type, 1 - int(_stated(layer, "transB", 0)))
        while node.input[index] not in self.values:
            maker = self.makers.get(node.input[index])
            if maker is None or maker.op_type not in _STORING or len(self.readers(node.input[index])) > 1:
                return None
            half = half or (
                node is layer and maker.op_type == "Cast" and _stated(maker, "to", 0) == TensorProto.FLOAT16
            )
            scaled = maker if maker.op_type == "DequantizeLinear" else scaled
            axis = _stated(maker, "perm", None)[axis] if maker.op_type == "Transpose" else axis
            node, index = maker, 0
        held = self.values[node.input[index]]
        shared = len(self.readers(held.name)) > 1
        half = half or held.data_type == TensorProto.FLOAT16
        return None if shared or len(held.dims) < 2 else Weight(node, index, scaled, axis % len(held.dims), half)

    def pair(self, layer: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """The Q/DQ pair in front of a layer; None where it reads floats."""
        name = layer.input[0]
        while (maker := self.makers.get(name)) is not None and maker.op_type in _VIEWS:
            before = self.makers.get(maker.input[0])
            if maker.op_type == "DequantizeLinear":
                return (before, maker) if before is not None and before.op_type == "QuantizeLinear" else None
            name = maker.input[0]
        return None

    def bias(self, layer: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto, int] | None:
        """The node that adds the bias, and where it is stored: a node and the index of its input."""
        adds, index = layer, 2
        if layer.op_type == "MatMul":
            found = self.readers(layer.output[0])
            if len(found) != 1 or found[0].op_type != "Add":
                return None
            adds, index = found[0], 1 - list(found[0].input).index(layer.output[0])
        if index >= len(adds.input) or not adds.input[index]:
            return None
        node, at = adds, index
        while node.input[at] not in self.values:
            maker = self.makers.get(node.input[at])
            if maker is None or maker.op_type not in _STORING:
                return None
            node, at = maker, 0
        return adds, node, at

    def fed(self, tensor: str) -> Iterator[str]:
        """Names of the layers that read a tensor, through what only stores it in another way."""
        for node in self.readers(tensor):
            if node.op_type in _VIEWS:
                yield from self.fed(node.output[0])
            else:
                yield node.name

    def put(self, node: onnx.NodeProto, index: int, values: Array) -> None:
        """Gives one node another constant."""
        name = f"{node.input[index]}/broken{len(self.values)}"
        held = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.proto.graph.initializer.append(held)
        self.values[name] = held
        node.input[index] = name


Edit = Callable[[Draft, onnx.NodeProto, np.random.Generator], tuple[str, frozenset[str]] | None]


def broken(
    model: onnx.ModelProto, kind: str, layer: str, random: np.random.Generator
) -> tuple[onnx.ModelProto, Break] | None:
    """A copy with one thing wrong; None where the layer has no such thing.

    Args:
        model: with Q/DQ pairs; stays as it is.
        kind: of `KINDS`.
        layer: name of a node, as `layers_of` gives it.
        random: chooses channels.
    """
    draft = Draft(copy.deepcopy(model))
    node = next(node for node in draft.proto.graph.node if node.name == layer)
    done = KINDS[kind](draft, node, random)
    return None if done is None else (draft.proto, Break(kind, layer, done[0], frozenset((layer, *done[1]))))


def layers_of(model: onnx.ModelProto, kind: str) -> list[str]:
    """The layers that may be broken in this way, in graph order; channels are swapped where they are an output's."""
    draft = Draft(model)
    layers = draft.layers
    if kind != SWAPPED:
        return [node.name for node in layers]
    behind = {name: node for node in layers for name in node.output}
    found: list[str] = []
    waiting, seen = [one.name for one in model.graph.output], set[str]()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or (maker := draft.makers.get(tensor)) is None:
            continue
        seen.add(tensor)
        if tensor in behind:
            found.append(behind[tensor].name)
        elif maker.op_type in _PASSING:
            waiting += maker.input
    return [node.name for node in layers if node.name in found]


def _weight_scale(draft: Draft, layer: onnx.NodeProto, _: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    weight = draft.weight(layer)
    if weight is None or weight.scaled is None or (scale := draft.array(weight.scaled.input[1])) is None:
        return None
    draft.put(weight.scaled, 1, scale * scale.dtype.type(FACTOR))
    return f"all {scale.size} scales of the weight", frozenset()


def _activation(factor: float, *, both: bool) -> Edit:
    """Another scale in DequantizeLinear, and in QuantizeLinear too if both are asked for."""

    def edit(draft: Draft, layer: onnx.NodeProto, _: np.random.Generator) -> tuple[str, frozenset[str]] | None:
        pair = draft.pair(layer)
        if pair is None or (scale := draft.array(pair[0].input[1])) is None:
            return None
        for node in (*draft.readers(pair[0].output[0]), *((pair[0],) if both else ())):
            draft.put(node, 1, (scale * factor).astype(scale.dtype))
        return f"'{pair[0].input[0]}'", frozenset(draft.fed(pair[0].output[0]))

    return edit


def _bias(draft: Draft, layer: onnx.NodeProto, _: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    found = draft.bias(layer)
    if found is None or (values := draft.array(found[1].input[found[2]])) is None or not values.any():
        return None
    adds, node, index = found
    draft.put(node, index, np.zeros_like(values))
    return f"{values.size} values", frozenset((adds.name,))


def _overflow(draft: Draft, layer: onnx.NodeProto, _: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    weight, tensor = draft.weight(layer), layer.output[0]
    if weight is None or not weight.half:
        return None
    readers = frozenset(draft.fed(tensor))
    layer.output[0] = f"{tensor}/before"
    up, down = (
        helper.make_node(
            "Mul", [f"{tensor}/{first}", "?"], [f"{tensor}/{last}" if last else tensor], f"{tensor}/{name}"
        )
        for first, last, name in (("before", "huge", "up"), ("huge", "", "down"))
    )
    for node, factor in ((up, HUGE), (down, 1 / HUGE)):
        draft.put(node, 1, np.array(factor, np.float16))
    at = list(draft.proto.graph.node).index(layer)
    draft.proto.graph.node.insert(at + 1, down)
    draft.proto.graph.node.insert(at + 1, up)
    return f"'{tensor}'", readers


def _swapped(draft: Draft, layer: onnx.NodeProto, random: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    weight, bias = draft.weight(layer), draft.bias(layer)
    if weight is None or int(_stated(layer, "group", 1)) != 1:
        return None
    values = draft.array(weight.reader.input[weight.index])
    scale = None if weight.scaled is None else draft.array(weight.scaled.input[1])
    if values is None or values.shape[weight.axis] < 2:
        return None
    count = values.shape[weight.axis]
    loud = np.abs(values.astype(np.float32)).sum(tuple(i for i in range(values.ndim) if i != weight.axis))
    loud = loud * scale.astype(np.float32) if scale is not None and scale.size == count else loud
    added = None if bias is None else draft.array(bias[1].input[bias[2]])
    first, second = sorted(random.choice(np.argsort(-loud)[:_LOUDEST], 2, replace=False).tolist())
    order = np.arange(count)
    order[[first, second]] = second, first
    draft.put(weight.reader, weight.index, np.take(values, order, weight.axis))
    if weight.scaled is not None and scale is not None and scale.size == count:
        draft.put(weight.scaled, 1, scale.reshape(-1)[order].reshape(scale.shape))
    if bias is not None and added is not None and added.size == count:
        draft.put(bias[1], bias[2], added.reshape(-1)[order].reshape(added.shape))
    return f"channels {first} and {second} of {count}", frozenset() if bias is None else frozenset((bias[0].name,))


def _flipped(draft: Draft, layer: onnx.NodeProto, random: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    weight = draft.weight(layer)
    if weight is None or (values := draft.array(weight.reader.input[weight.index])) is None:
        return None
    count = values.shape[weight.axis]
    size = max(1, count // 8)
    start = int(random.integers(0, count - size + 1))
    block = (slice(None),) * weight.axis + (slice(start, start + size),)
    after = values.copy()
    after[block] = -np.maximum(values[block], -127) if values.dtype == np.int8 else -values[block]
    draft.put(weight.reader, weight.index, after)
    return f"channels {start} to {start + size - 1} of {count}", frozenset()


SWAPPED: Final = "swapped channels"
KINDS: dict[str, Edit] = {
    "weight scale x8": _weight_scale,
    "activation scale x8": _activation(FACTOR, both=False),
    "range x8": _activation(FACTOR, both=True),
    "range /8": _activation(1 / FACTOR, both=True),
    "dropped bias": _bias,
    "FP16 overflow": _overflow,
    SWAPPED: _swapped,
    "flipped sign": _flipped,
}


def _stated(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    found: Sequence[Any] = [helper.get_attribute_value(one) for one in node.attribute if one.name == name]
    return found[0] if found else otherwise
