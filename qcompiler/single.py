"""One node on its own: what size its results have, and what they are, when all its inputs are constant."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.graph import dtype_of, np_dtype, values_of
from qcompiler.model import to_proto
from qcompiler.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALL = 1024


def inferred_bytes(node: gs.Node, opset: int) -> int | None:
    """Bytes of all results by shape inference, before anything is computed; None where it cannot tell."""
    known = {t.name for t in node.inputs if t.name and math.prod(t.shape) <= _SMALL}
    model = onnx.shape_inference.infer_shapes(_alone(node, opset, known), data_prop=True)
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


def run_node(node: gs.Node, opset: int) -> list[NDArray[Any]]:
    """The values of all outputs of a node with constant inputs, in order; an empty array for one that is omitted.

    Raises:
        ModelError: ONNX Runtime has no kernel for it or refuses its inputs.
        DataError: the same, by the types of its inputs.
    """
    feeds = {t.name: np.require(values_of(t), requirements=["C", "A"]) for t in node.inputs if t.name}
    results = Session(_alone(node, opset, set()), optimize=False, threads=1).run(feeds)
    return [np.asarray(results[t.name]) if t.name else np.empty(0, dtype_of(t)) for t in node.outputs]


def _alone(node: gs.Node, opset: int, known: Collection[str]) -> onnx.ModelProto:
    """A model of this node only: its constants named in `known` stay constants, the others are inputs."""
    held = {t.name: t for t in node.inputs if t.name}
    inputs = {name: gs.Variable(name, t.dtype, list(t.shape)) for name, t in held.items() if name not in known}
    inputs |= {name: gs.Constant(name, values_of(t)) for name, t in held.items() if name in known}
    outputs = [gs.Variable(t.name) for t in node.outputs]
    reads = [inputs[t.name] if t.name else gs.Variable.empty() for t in node.inputs]
    twin = gs.Node(node.op, node.name, dict(node.attrs), reads, outputs)
    fed = [t for t in inputs.values() if isinstance(t, gs.Variable)]
    return to_proto(gs.Graph([twin], fed, [t for t in outputs if t.name], opset=opset))[0]
