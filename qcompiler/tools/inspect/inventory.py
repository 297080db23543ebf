"""What is in a graph as it was loaded: its values, weights, operators and nested graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import QUANTIZED_OPS

Value = tuple[str, tuple[int | str | None, ...] | None]  # element type, and shape where it has one

_NOT_WEIGHTS = frozenset(np.dtype(name) for name in (np.int64, np.int32, np.bool_, object))
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", *QUANTIZED_OPS)


def operators(graph: gs.Graph) -> dict[str, int]:
    """How often each operator occurs, nested graphs included, most frequent first."""
    return dict(Counter(node.op for node in graphs.walk(graph)).most_common())


def custom(graph: gs.Graph) -> dict[str, int]:
    """Operators of other domains as `domain::op`, the same way."""
    named = (f"{node.domain}::{node.op}" for node in graphs.walk(graph) if not graphs.is_standard(node))
    return dict(Counter(named).most_common())


def quantizers(graph: gs.Graph) -> dict[str, int]:
    """Operators of an earlier quantization, with their counts."""
    every = operators(graph)
    return {op: every[op] for op in _QUANTIZERS if op in every}


def described(tensor: gs.Tensor) -> Value:
    """Element type and shape of a value; a sequence or an optional has no shape."""
    if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
        return str(tensor.type).removesuffix("_type"), None
    dtype = graphs.dtype_of(tensor)
    spelled = "unknown" if dtype is None else "string" if dtype.kind == "O" else str(dtype)
    return spelled, graphs.shape_of(tensor)


def control_flow(graph: gs.Graph) -> tuple[str, ...]:
    """Nodes of the main graph with graphs of their own, as `name (op)`, and how many are inside them."""
    own = [f"{node.name} ({node.op})" for node in graph.nodes if graphs.subgraphs(node)]
    nested = sum(bool(graphs.subgraphs(node)) for node in graphs.walk(graph)) - len(own)
    return (*own, f"{nested} more inside") if nested else tuple(own)


def _weights(graph: gs.Graph) -> Iterator[tuple[np.dtype[Any], int]]:
    """Element type and size of each weight: initializers and Constant nodes, nested graphs included."""
    seen: set[int] = set()
    for inner in graphs.graphs(graph):
        constants = [t for t in graphs.tensors(inner) if graphs.is_constant(t)]
        constants += [n.attrs["value"] for n in inner.nodes if graphs.is_op(n, "Constant") and "value" in n.attrs]
        for tensor in constants:
            dtype = graphs.dtype_of(tensor)
            if id(tensor) in seen or dtype is None or dtype in _NOT_WEIGHTS:
                continue
            seen.add(id(tensor))
            yield dtype, math.prod(tensor.shape)


def parameters(graph: gs.Graph) -> int:
    """Elements of all weights; integer constants such as shapes are not counted."""
    return sum(size for _, size in _weights(graph))


def weight_bytes(graph: gs.Graph) -> dict[str, int]:
    """Bytes of the weights by element type."""
    found: Counter[str] = Counter()
    for dtype, size in _weights(graph):
        found[str(dtype)] += -(-size // 2) if "int4" in str(dtype) else size * dtype.itemsize
    return dict(found.most_common())


def table(column: str, values: Mapping[str, Value]) -> list[dict[str, str]]:
    """Values as rows of text, the name under `column`."""
    return [
        {column: name, "type": dtype, "shape": "unknown" if shape is None else f"[{', '.join(_dims(shape))}]"}
        for name, (dtype, shape) in values.items()
    ]


def _dims(shape: tuple[int | str | None, ...]) -> Iterator[str]:
    return ("?" if dim is None else str(dim) for dim in shape)
