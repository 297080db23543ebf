"""In which opsets ONNX Runtime runs the nodes of a graph: it lacks the newest version of some operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir.edit import set_opset
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.graph import dtype_of, is_standard, subgraphs, walk
from qcompiler.ir.model import to_proto
from qcompiler.ir.names import Names
from qcompiler.ir.weights import Weights
from qcompiler.passes.opsets._place import Place
from qcompiler.passes.opsets._steps import raised
from qcompiler.passes.opsets._table import OLDEST
from qcompiler.runtime import schemas
from qcompiler.runtime.one_node import alone, lacks_kernel, small_constants, with_weights


def kinds(graph: gs.Graph) -> Iterator[gs.Node]:
    """One node of each kind that needs a kernel: the same operator, types, number of outputs and attributes."""
    known = set[object]()
    for node in walk(graph):
        if not is_standard(node) or subgraphs(node):
            continue
        kind = (node.op, tuple(str(dtype_of(t)) for t in node.inputs), len(node.outputs), tuple(sorted(node.attrs)))
        if kind not in known:
            known.add(kind)
            yield node


def highest(graph: gs.Graph, old: int, wanted: int) -> tuple[int, str]:
    """The highest opset in which ONNX Runtime has kernels for all that it has them for now, and why not the next."""
    opset, why = wanted, ""
    for node in kinds(graph):
        while opset > old and _lost(node, old, opset):
            found = schemas.schema(node.op, opset)
            why = f"ONNX Runtime has no kernel for {node.op} ('{node.name}') of opset {opset}"
            opset = max(old, min(opset, int(found.since_version)) - 1)
    return opset, why


def runnable(graph: gs.Graph, opset: int) -> tuple[int, str]:
    """The last opset up to this one in which ONNX Runtime has kernels for all nodes, and why not this one.

    It is this one where no older one says the same: then ONNX Runtime tells what it lacks when the model is opened.
    """
    proto, _ = to_proto(graph)
    found, why = opset, ""
    for node in kinds(graph):
        while (known := schemas.schema(node.op, found)) is not None and lacks(node, found):
            why = f"ONNX Runtime has no kernel for {node.op} ('{node.name}') of opset {known.since_version}"
            found = int(known.since_version) - 1
            if found < OLDEST or schemas.unsaid(proto, found) is not None:
                return opset, ""
    return found, why


def _lost(node: gs.Node, old: int, new: int) -> bool:
    """Whether ONNX Runtime runs a node in the old opset and has no kernel for what becomes of it in the new one."""
    before, after = schemas.schema(node.op, old), schemas.schema(node.op, new)
    if before is None or after is None or before.since_version == after.since_version:
        return False
    try:
        after_all = _raised(node, old, new)
    except ModelError:  # what cannot be raised is told of where it is
        return False
    return lacks_kernel(after_all) and not lacks(node, old)


def _raised(node: gs.Node, old: int, new: int) -> onnx.ModelProto:
    """A model of what becomes of a node."""
    proto = alone_typed(node, old)
    if schemas.same_signature(node, old, new):
        proto.opset_import[0].version = new
        return proto
    graph = graph_from_proto(proto, Weights(Path(node.name), np.empty(0, np.uint8)))
    graph.nodes[:] = raised(graph.nodes[0], old, new, Place(graph, Names(graph)))
    set_opset(graph, new)
    return with_weights(graph)


def lacks(node: gs.Node, opset: int) -> bool:
    """Whether ONNX Runtime has no kernel for a node in an opset; a type that nobody knows is taken for FP32."""
    return lacks_kernel(alone_typed(node, opset))


def alone_typed(node: gs.Node, opset: int) -> onnx.ModelProto:
    """A model of a node, with a type on everything: FP32 where nobody knows it."""
    proto = alone(node, opset, small_constants(node))
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto
