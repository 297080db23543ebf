"""Which nodes of a model ONNX Runtime cannot run: operators it has never heard of, or has no CPU kernel for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import graph as graphs
from qcompiler.runtime.one_node import alone, small_constants
from qcompiler.runtime.session import Session

_SIGNS = ("which ONNX Runtime does not know", "Could not find an implementation", "No Op registered for")
_NARROW = frozenset(map(np.dtype, (np.float16, np.float64, ml_dtypes.bfloat16)))


def unknown_nodes(graph: gs.Graph) -> list[gs.Node]:
    """Nodes of operators that ONNX Runtime cannot run, those of nested graphs included, in graph order.

    ONNX's own operators are taken to be known. Of all others ONNX Runtime is asked, once for each operator, in FP32: a
    type that it lacks a kernel for can be widened. Calls of local functions are known where their bodies are.
    """
    asked = _Asked(graph)
    return [node for node in graphs.walk(graph) if asked.cannot_run(node)]


@dataclass
class _Asked:
    """What has been asked of one model."""

    graph: gs.Graph
    answers: dict[tuple[str, str], bool] = field(default_factory=dict)

    def cannot_run(self, node: gs.Node) -> bool:
        domain = "" if graphs.is_standard(node) else str(node.domain)
        if not domain and onnx.defs.has(node.op):
            return False
        key = (domain, node.op)
        if key not in self.answers:
            self.answers[key] = False  # a function that calls itself is nobody's plugin
            body = self._body(domain, node.op)
            inner = None if body is None else [self.cannot_run(one) for one in _called(body)]
            self.answers[key] = _refused(node, self.graph) if inner is None else any(inner)
        return self.answers[key]

    def _body(self, domain: str, op: str) -> onnx.FunctionProto | None:
        """The local function of that name."""
        for one in self.graph.functions:
            if (one.domain or "", one.name) == (domain, op):
                found: onnx.FunctionProto = vars(one)["carried"]
                return found
        return None


def _called(body: onnx.FunctionProto) -> Iterator[gs.Node]:
    """What the nodes of a function say of their operators; types are not known there."""
    for node in body.node:
        reads, writes = (
            [gs.Variable(name, np.float32) if name else gs.Variable.empty() for name in names]
            for names in (node.input, node.output)
        )
        yield gs.Node(node.op_type, node.name or node.op_type, {}, reads, writes, node.domain)


def _refused(node: gs.Node, graph: gs.Graph) -> bool:
    """Whether ONNX Runtime says that it has no such operator, or no kernel for it; what else it says is no matter."""
    try:
        Session((_wide(node, graph), {}), quick=True, threads=1, draw=None, older=False)
    except ModelError as error:
        # In ONNX's own domain, of which ONNX does not know it: ONNX Runtime has it for another processor, if at all
        said = f"{error} {error.__cause__}"
        unofficial = graphs.is_standard(node) and "Type Error" not in said
        return unofficial or any(sign in said for sign in _SIGNS)
    return False


def _wide(node: gs.Node, graph: gs.Graph) -> onnx.ModelProto:
    """The node as a model of its own, whose floats are FP32, as are values of an unknown type."""
    proto = alone(node, int(graph.opset), small_constants(node))
    versions: Mapping[str, int] = {one.domain: one.version for one in graph.import_domains or []}
    have = {one.domain for one in proto.opset_import}
    if node.domain and node.domain not in have:
        proto.opset_import.add(domain=node.domain, version=versions.get(node.domain, 1))
    for value in (*proto.graph.input, *proto.graph.output):
        tensor = value.type.tensor_type
        if graphs.np_dtype(tensor.elem_type) in {None, *_NARROW}:
            tensor.elem_type = onnx.TensorProto.FLOAT
    return proto
