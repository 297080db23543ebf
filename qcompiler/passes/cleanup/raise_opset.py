"""The graph is rewritten in the terms of a newer opset, node by node.

    Squeeze{axes=[1]}(x)   ⇒  Squeeze(x, [1])                             from opset 13
    Softmax{axis=1}(x)     ⇒  Reshape(Softmax{axis=-1}(Flatten{axis=1}(x)))    from opset 13, where rank(x) > 2

ONNX's version converter does the work on one node at a time: it then reaches nested graphs, never sees a weight, leaves
foreign domains and names alone, and what it cannot do is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir.edit import add_constant, detach, set_opset
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.graph import attribute_value, dtype_of, graphs, is_constant, is_op, is_standard, subgraphs, walk
from qcompiler.ir.names import Names
from qcompiler.ir.weights import Weights
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.runtime.one_node import alone, lacks_kernel, small_constants


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Raise the model to an ONNX opset, as far as ONNX Runtime has kernels; a newer one stays as it is.

    ONNX Runtime runs the model for every measurement, and it lacks the newest version of some operators. So the opset
    is the highest one, up to that which is asked for, in which it has a kernel for all that it runs now.

    Raises:
        ModelError: an operator means something else in the new opset and cannot be converted; the message names the
            node.
    """

    opset: int = 21

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node that had to be written differently, and one for the number."""
        old = int(graph.opset)
        if old >= self.opset:
            return
        new, why = _highest(graph, old, self.opset)
        if new == old:
            yield Skipped(graph.name, f"opset {old} stays: {why}")
            return
        names = Names(graph)
        for inner in list(graphs(graph)):
            nodes: list[gs.Node] = []
            for node in inner.nodes:
                replacement, note = _converted(node, old, new, names)
                nodes += replacement
                if note is not None:
                    yield note
            inner.nodes[:] = nodes
        set_opset(graph, new)
        yield Changed(graph.name, f"opset {old} raised to {new}" + (f": {why}" if why else ""))


def _highest(graph: gs.Graph, old: int, wanted: int) -> tuple[int, str]:
    """The highest opset in which ONNX Runtime has kernels for all that it has them for now, and why not the next."""
    opset, why, known = wanted, "", set[object]()
    for node in walk(graph):
        if not is_standard(node) or subgraphs(node):
            continue
        kind = (node.op, tuple(str(dtype_of(t)) for t in node.inputs), len(node.outputs), tuple(sorted(node.attrs)))
        if kind in known:
            continue
        known.add(kind)
        while opset > old and _lacking(node, old, opset):
            why = f"ONNX Runtime has no kernel for {node.op} ('{node.name}') of opset {opset}"
            opset = max(old, min(opset, int(_schema(node, opset).since_version)) - 1)
    return opset, why


def _lacking(node: gs.Node, old: int, new: int) -> bool:
    """Whether ONNX Runtime runs a node in the old opset and has no kernel for what becomes of it in the new one."""
    before, after = _schema(node, old), _schema(node, new)
    if before is None or after is None or before.since_version == after.since_version:
        return False
    proto = _typed(alone(node, old, small_constants(node)))
    if same_signature(node, old, new):
        raised = _typed(alone(node, new, small_constants(node)))
    else:
        try:
            raised = onnx.version_converter.convert_version(proto, new)
        except Exception:  # what cannot be converted is told of where it is
            return False
    return lacks_kernel(raised) and not lacks_kernel(proto)


def _converted(node: gs.Node, old: int, new: int, names: Names) -> tuple[list[gs.Node], Note | None]:
    """The nodes that stand for `node` in the new opset (itself, where nothing changes), and what to tell."""
    if not is_standard(node) or same_signature(node, old, new):
        return [node], None
    if subgraphs(node):
        return [node], Skipped(node.name, f"{node.op} keeps its nested graphs and is taken to mean the same")
    before = _typed(alone(node, old, small_constants(node)))
    try:
        proto = onnx.version_converter.convert_version(before, new)
    except Exception as error:  # the converter raises RuntimeError, ConvertError and others
        return [node], _kept(node, old, new, error)
    if len(proto.graph.node) == 1 and _spelled(proto.graph.node[0]) == _spelled(before.graph.node[0]):
        return [node], None
    nodes = _graft(proto, node, names)
    return nodes, Changed(node.name, f"{node.op} is now {' → '.join(one.op for one in nodes)}")


def same_signature(node: gs.Node, old: int, new: int) -> bool:
    """Whether inputs, outputs, attributes and defaults are the same in both opsets, so that only types were added."""
    before, after = _schema(node, old), _schema(node, new)
    if before is None or after is None:
        return False
    return before.since_version == after.since_version or _signature(before) == _signature(after)


def _schema(node: gs.Node, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(node.op, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None


def _signature(schema: Any) -> tuple[object, ...]:
    return (
        tuple((one.name, one.option) for one in schema.inputs),
        tuple((one.name, one.option) for one in schema.outputs),
        tuple(
            (name, one.type, one.required, one.default_value.SerializeToString())
            for name, one in sorted(schema.attributes.items())
        ),
        schema.deprecated,
    )


def _typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The converter wants an element type on every input; FLOAT stands for those that nobody knows."""
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


def _kept(node: gs.Node, old: int, new: int, error: Exception) -> Note:
    """A node that the converter refuses stays if the new opset can only have added to what it means.

    Raises:
        ModelError: it may mean something else there.
    """
    why = " ".join(str(error).split())[:200]
    before, after = _schema(node, old), _schema(node, new)
    if before is not None and after is not None and _only_added(node, before, after):
        return Skipped(node.name, f"{node.op} is written alike in opset {new}, though the converter says: {why}")
    raise ModelError(
        f"node '{node.name}' ({node.op}) cannot be taken from opset {old} to {new}, which the target needs: {why}. "
        f"Export the model again with opset {new}, or with one between."
    )


def _only_added(node: gs.Node, before: Any, after: Any) -> bool:
    """Whether all attributes and inputs of the node are still there, and defaults are the same where it has none."""
    if after.deprecated or len(node.inputs) > after.max_input:
        return False
    for name in node.attrs:
        if name not in after.attributes:
            return False
    for name, attribute in before.attributes.items():
        later = after.attributes.get(name)
        default = attribute.default_value.SerializeToString()
        if name not in node.attrs and (later is None or later.default_value.SerializeToString() != default):
            return False
    same = [one.name for one in before.inputs] == [one.name for one in after.inputs][: len(before.inputs)]
    return same and not any(one.required for name, one in after.attributes.items() if name not in node.attrs)


def _spelled(proto: onnx.NodeProto) -> tuple[object, ...]:
    attributes = {one.name: one.SerializeToString(deterministic=True) for one in proto.attribute}
    return proto.op_type, list(proto.input), list(proto.output), attributes


def _graft(proto: onnx.ModelProto, node: gs.Node, names: Names) -> list[gs.Node]:
    """Wires the converted nodes in the place of `node`; their Constant nodes become initializers."""
    made = graph_from_proto(proto, Weights(Path(node.name), np.empty(0, np.uint8)))
    known: dict[int, gs.Tensor] = {}
    ours = {t.name: t for t in (*node.inputs, *node.outputs) if t.name}
    for tensor in (*made.inputs, *made.outputs):
        known[id(tensor)] = ours[tensor.name]
    placed: list[tuple[gs.Node, list[gs.Tensor], list[gs.Tensor]]] = []
    for one in made.nodes:
        value = attribute_value(one) if is_op(one, "Constant") else None
        if value is not None:
            known[id(one.outputs[0])] = add_constant(names.fresh(f"{node.name}.constant"), value)
            continue
        placed.append(
            (
                one,
                [_ours(t, known, ours, node, names) for t in one.inputs],
                [_ours(t, known, ours, node, names) for t in one.outputs],
            )
        )
    detach(node)
    nodes: list[gs.Node] = []
    for one, reads, writes in placed:
        name = node.name if one is placed[-1][0] else names.fresh(f"{node.name}.{one.op}")
        nodes.append(gs.Node(one.op, name, dict(one.attrs), reads, writes, node.domain))
    return nodes


def _ours(
    tensor: gs.Tensor, known: dict[int, gs.Tensor], ours: dict[str, gs.Tensor], node: gs.Node, names: Names
) -> gs.Tensor:
    """The tensor of our graph that stands for one of the converted node's; a new one where there is none."""
    if not tensor.name:
        return gs.Variable.empty()
    if id(tensor) not in known:
        if tensor.name in ours:
            known[id(tensor)] = ours[tensor.name]
        elif is_constant(tensor):
            known[id(tensor)] = add_constant(names.fresh(f"{node.name}.constant"), np.asarray(tensor.values))
        else:
            known[id(tensor)] = gs.Variable(names.fresh(f"{node.name}.value"), tensor.dtype, tensor.shape)
    return known[id(tensor)]
