"""Calls of the model's local functions are replaced by the nodes of their bodies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import inliner

from qcompiler.ir.edit import remove_nodes, set_opset
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.graph import walk
from qcompiler.ir.model import to_proto
from qcompiler.ir.weights import Weights
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Replace calls of local functions by their bodies.

    A function written for another opset than the model stays a call, and what is in it stays float.
    """

    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per call."""
        before = {node.name: node for node in walk(graph) if _calls(graph, node)}
        if not before:
            return
        proto, arrays = to_proto(graph)
        weights = [tensor for tensor in proto.graph.initializer if tensor.name in arrays]
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in arrays]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        # Weights are inputs of the model while it is away, so that no copy of them is made.
        for tensor in weights:
            value = proto.graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = tensor.data_type
            value.type.tensor_type.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=dim) for dim in tensor.dims
            )
        inlined = graph_from_proto(inliner.inline_local_functions(proto), Weights(Path("model"), np.empty(0, np.uint8)))
        for tensor in inlined.inputs:
            if tensor.name in arrays:
                tensor.to_constant(arrays[tensor.name])
        _take_over(graph, inlined, set(arrays))
        left = {node.name for node in walk(graph) if _calls(graph, node)}
        for name, node in before.items():
            if name in left:
                yield Skipped(name, f"function '{node.op}' is written for another opset than the model")
                continue
            yield Changed(name, f"function '{node.op}' inlined")


def _calls(graph: gs.Graph, node: gs.Node) -> bool:
    return any(
        function.name == node.op and (function.domain or "") == (node.domain or "") for function in graph.functions
    )


def _take_over(graph: gs.Graph, other: gs.Graph, lifted: set[str]) -> None:
    remove_nodes(graph, list(graph.nodes))
    graph.nodes[:] = other.nodes
    graph.inputs[:] = [tensor for tensor in other.inputs if tensor.name not in lifted]
    graph.outputs[:] = other.outputs
    graph.functions = other.functions
    graph.import_domains = other.import_domains
    set_opset(graph, int(other.opset))
