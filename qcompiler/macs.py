"""Multiply-accumulates of linear nodes, from the shapes that one real sample gives every tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import model as models
from qcompiler.operators import LINEAR
from qcompiler.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE_OF = "shape_of/"

Shapes = Mapping[str, tuple[int, ...]]


def concrete_shapes(
    graph: gs.Graph, feeds: Mapping[str, NDArray[Any]], wanted: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of `wanted` tensors for one sample: by inference from the sample's own shapes, else by running it.

    Inference costs milliseconds and no weights; what it cannot tell (data-dependent shapes) is read off one run with
    a Shape node behind each such tensor. Tensors that the run does not reach are left out.
    """
    found = inferred_shapes(models.to_proto(graph)[0], feeds)
    result = {name: found[name] for name in wanted if name in found}
    missing = [name for name in dict.fromkeys(wanted) if name not in result]
    if missing:
        result.update(_measured(graph, feeds, missing))
    return result


def inferred_shapes(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors for one sample as ONNX's inference tells them from the sample's own; others are left out.

    What `proto` says of shapes is taken out of it.
    """
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name not in feeds or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in feeds[value.name].shape:
            shape.dim.add(dim_value=size)
    for value in proto.graph.output:  # their declared shapes are symbolic at best, and some exporters' are wrong
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer})
    return shapes


def _measured(graph: gs.Graph, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    proto, weights = models.to_proto(graph)
    present = {name for node in proto.graph.node for name in node.output} | {value.name for value in proto.graph.input}
    asked = [name for name in names if name in present]
    if not asked:
        return {}
    nodes = [onnx.NodeProto(op_type="Shape", input=[name], output=[SHAPE_OF + name]) for name in asked]
    proto.graph.node.extend(nodes)
    session = Session((proto, weights), outputs=[SHAPE_OF + name for name in asked], quick=True)
    return {name: tuple(map(int, shape)) for name, shape in zip(asked, session.run(feeds).values(), strict=True)}


def macs_of(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one run of a Conv, ConvTranspose, Gemm or MatMul; 0 where a shape is not known."""
    if node.op not in LINEAR or len(node.inputs) < 2:
        return 0
    first, second, out = (_shape(tensor, shapes) for tensor in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if first is None or second is None or out is None:
        return 0
    if node.op == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    depth = first[0] if node.op == "Gemm" and node.attrs.get("transA", 0) else first[-1] if first else 1
    return math.prod(out) * depth


def _shape(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...] | None:
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    return shapes.get(tensor.name)
