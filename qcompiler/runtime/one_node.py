"""One node on its own, as a model: what size its results have, and what they are when all its inputs are constant."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir.graph import dtype_of, is_constant, np_dtype, shape_of, values_of
from qcompiler.ir.made import solid
from qcompiler.ir.model import to_proto
from qcompiler.ir.weights import to_tensor
from qcompiler.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray


_NO_KERNEL = "Could not find an implementation"  # ONNX Runtime's words
SMALL = 1024  # elements; larger constants are inputs of the model, so that nothing big is copied


def alone(node: gs.Node, opset: int, known: Collection[str]) -> onnx.ModelProto:
    """A model of this node only: its constants named in `known` stay constants, all else that it reads is an input.

    Types and shapes are those that its tensors carry.
    """
    held = {t.name: t for t in node.inputs if t.name}
    inputs: dict[str, gs.Tensor] = {}
    for name, tensor in held.items():
        if name in known and is_constant(tensor):
            inputs[name] = gs.Constant(name, values_of(tensor))
            continue
        inputs[name] = gs.Variable(
            name, dtype_of(tensor), None if tensor.shape is None else list(shape_of(tensor) or ())
        )
    outputs = [
        gs.Variable(t.name, dtype_of(t), None if t.shape is None else list(shape_of(t) or ())) for t in node.outputs
    ]
    reads = [inputs[t.name] if t.name else gs.Variable.empty() for t in node.inputs]
    twin = gs.Node(node.op, node.name, dict(node.attrs), reads, outputs, node.domain)
    fed = [t for t in inputs.values() if not is_constant(t)]
    return with_weights(gs.Graph([twin], fed, [t for t in outputs if t.name], opset=opset))


def with_weights(graph: gs.Graph) -> onnx.ModelProto:
    """A small graph as a model that stands alone: its weights are copied into it, for nobody could lend them."""
    proto, beside = to_proto(graph)
    for initializer in proto.graph.initializer:
        if initializer.name in beside:
            initializer.CopyFrom(to_tensor(initializer.name, solid(beside[initializer.name])))
    return proto


def small_constants(node: gs.Node) -> set[str]:
    """Names of the constants of a node that have at most `SMALL` elements."""
    return {t.name for t in node.inputs if is_constant(t) and math.prod(t.shape) <= SMALL}


def inferred_bytes(node: gs.Node, opset: int) -> int | None:
    """Bytes of all results by shape inference, before anything is computed; None where it cannot tell."""
    proto = alone(node, opset, small_constants(node))
    for value in proto.graph.output:
        value.ClearField("type")
    model = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    total = 0
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            return None
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in output.type.tensor_type.shape.dim]
        dtype = np_dtype(output.type.tensor_type.elem_type)
        if dtype is None or None in dims:
            return None
        total += math.prod(dim or 0 for dim in dims) * dtype.itemsize
    return total


def lacks_kernel(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime knows the operator of a model of one node and has no kernel for it in this opset and type.

    It is asked by making a session. What it refuses for another reason it may well run inside of a model.
    """
    try:
        Session((proto, {}), quick=True, threads=1, draw=None, older=False)
    except ModelError as error:
        return _NO_KERNEL in str(error.__cause__)
    return False


def run_node(node: gs.Node, opset: int) -> list[NDArray[Any]]:
    """The values of all outputs of a node with constant inputs, in order; an empty array for one that is omitted.

    Raises:
        ModelError: ONNX Runtime has no kernel for it or refuses its inputs.
        DataError: the same, by the types of its inputs.
    """
    proto = alone(node, opset, ())
    for value in proto.graph.output:
        value.ClearField("type")
    feeds = {t.name: np.require(values_of(t), requirements=["C", "A"]) for t in node.inputs if t.name}
    results = Session((proto, {}), quick=True, threads=1).run(feeds)
    return [np.asarray(results[t.name]) if t.name else np.empty(0) for t in node.outputs]
