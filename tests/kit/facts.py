"""What each `Fact` promises, checked on a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import (
    constant_value,
    consumers,
    dtype_of,
    graphs,
    is_constant,
    is_float,
    is_op,
    is_output,
    is_present,
    producer,
    tensors,
    walk,
)
from qcompiler.ir.linear import weight_of
from qcompiler.ir.model import to_proto
from qcompiler.ir.qdq import is_weight_only
from qcompiler.passes.base import Changed, Fact

_TRANSPARENT = ("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")


def verify(fact: Fact, graph: gs.Graph) -> list[str]:
    """Where a graph breaks a fact: one sentence each, in graph order, empty if it holds."""
    return _CHECKS[fact](graph)


def _named(graph: gs.Graph) -> list[str]:
    found = [f"a node ({node.op}) has no name" for node in walk(graph) if not node.name]
    nodes = Counter(node.name for node in walk(graph) if node.name)
    found += [f"{count} nodes are named '{name}'" for name, count in nodes.items() if count > 1]
    bearers: dict[str, set[int]] = {}
    for inner in graphs(graph):
        for tensor in tensors(inner):
            bearers.setdefault(tensor.name, set()).add(id(tensor))
    return found + [f"{len(ids)} tensors are named '{name}'" for name, ids in bearers.items() if len(ids) > 1]


def _constants(graph: gs.Graph) -> list[str]:
    found: list[str] = []
    for inner in graphs(graph):
        found += [f"input '{tensor.name}' is an initializer" for tensor in inner.inputs if is_constant(tensor)]
        for node in inner.nodes:
            value = constant_value(node.outputs[0]) if is_op(node, "Constant") else None
            if value is not None and value.dtype != object and not is_output(inner, node.outputs[0]):
                found.append(f"node '{node.name}' is a Constant")
    return found


def _folded(graph: gs.Graph) -> list[str]:
    from qcompiler.passes.cleanup.eliminate_identities import EliminateIdentities
    from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
    from qcompiler.passes.cleanup.fold_constants import FoldConstants

    twin = graph.copy()
    return [
        f"'{one.name()}' still finds '{note.node}': {note.text}"
        for one in (FoldConstants(), EliminateIdentities(), FoldBatchNorm())
        for note in one(twin).notes
        if isinstance(note, Changed)
    ]


def _unshared(graph: gs.Graph) -> list[str]:
    found: list[str] = []
    for node in walk(graph):
        weight = weight_of(node)
        if weight is None:
            continue
        links = [weight.tensor, *(link.outputs[0] for link in weight.chain)]
        found += [
            f"weight '{tensor.name}' of '{node.name}' has {len(consumers(tensor))} readers"
            for tensor in links
            if len(consumers(tensor)) > 1
        ]
    return found


def _qdq(graph: gs.Graph) -> list[str]:
    found: list[str] = []
    for node in walk(graph):
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            found += _pair(node)
    return found


def _pair(node: gs.Node) -> list[str]:
    found: list[str] = []
    scale = constant_value(node.inputs[1])
    alone = is_weight_only(node) or node.attrs.get("block_size", 0)  # no accumulator is rescaled: half is sound
    if scale is None or (scale.dtype != np.float32 and not alone):
        found.append(f"the scale of '{node.name}' is not a constant float32")
    elif not (np.isfinite(scale) & (scale > 0)).all():
        found.append(f"a scale of '{node.name}' is not positive and finite")
    zero = constant_value(node.inputs[2]) if is_present(node, 2) else None
    if zero is None:
        found.append(f"'{node.name}' has no constant zero point")
    source = node.inputs[0]
    if is_op(node, "QuantizeLinear") and constant_value(source) is not None:
        found.append(f"'{node.name}' quantizes the constant '{source.name}', which should be stored quantized")
    if is_op(node, "DequantizeLinear") and not _quantized_source(source):
        found.append(f"'{node.name}' reads '{source.name}', which nothing quantized")
    return found


def _quantized_source(tensor: gs.Tensor) -> bool:
    while not is_constant(tensor):
        node = producer(tensor)
        if node is None or is_op(node, "QuantizeLinear"):
            return True
        if not is_op(node, *_TRANSPARENT):
            return not is_float(tensor)
        tensor = node.inputs[0]
    dtype = dtype_of(tensor)
    return dtype is None or dtype.itemsize == 1


def _typed(graph: gs.Graph) -> list[str]:
    """ONNX's own strict inference with type checks, on the graph without its weights."""
    proto, _ = to_proto(graph)
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        return [" ".join(str(error).split())]
    return []


def _legal(graph: gs.Graph) -> list[str]:
    return _qdq(graph) + _typed(graph)


_CHECKS: dict[Fact, Callable[[gs.Graph], list[str]]] = {
    Fact.NAMED: _named,
    Fact.CONSTANTS: _constants,
    Fact.FOLDED: _folded,
    Fact.UNSHARED: _unshared,
    Fact.QDQ: _qdq,
    Fact.TYPED: _typed,
    Fact.LEGAL: _legal,
}
