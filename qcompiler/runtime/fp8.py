"""Whether a model file holds FP8: ONNX Runtime's CPU optimiser breaks such graphs.

Version 1.31 fuses their Q/DQ pairs as if they were INT8 (MatMulIntegerToFloat, Clip into QuantizeLinear) and then
refuses what it has made. Without optimisations it computes them right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from qcompiler.ir import model as models

TYPES = frozenset(
    {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ}
)
_STATES_TYPE = ("to", "output_dtype")


def in_file(path: str | Path) -> bool:
    """Whether an ONNX file holds FP8 anywhere; no for what is not an ONNX file. Weights are not read."""
    proto = models.skeleton(path)
    return proto is not None and in_proto(proto)


def in_proto(proto: onnx.ModelProto) -> bool:
    """Whether a model holds FP8: in a weight, a zero point, a constant, an input, or as the type that a node writes."""
    inputs = (value.type.tensor_type.elem_type for value in proto.graph.input)
    return (
        any(kind in TYPES for kind in inputs)
        or any(map(_graph, _graphs(proto.graph)))
        or any(_nodes(function.node) for function in proto.functions)
    )


def _graph(graph: onnx.GraphProto) -> bool:
    return any(one.data_type in TYPES for one in graph.initializer) or _nodes(graph.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> bool:
    attributes = (attribute for node in nodes for attribute in node.attribute)
    return any((one.name in _STATES_TYPE and one.i in TYPES) or one.t.data_type in TYPES for one in attributes)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
