"""Graph to ModelProto, with the large weights beside it instead of inside.

graphsurgeon's own exporter copies each weight twice, writes INT4 unpacked, cannot write empty lists, and repeats in a
subgraph every outer weight that the subgraph reads. The same graph always gives the same bytes here.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,  # noqa: TID251 - writes protos
)
from onnx_graphsurgeon.ir.tensor import SparseValues

from qcompiler.errors import InternalError
from qcompiler.ir.gs_classes import EmptyList
from qcompiler.ir.made import Held, Made
from qcompiler.ir.weights import is_packed, to_external_tensor, to_tensor
from qcompiler.support.memory import SMALLEST
from qcompiler.support.scopes import within

LOCATION = "weights"  # where the external tensors of `graph_to_proto` say that they are; no such file is ever written
SMALLEST_EXTERNAL = 1024  # bytes
_OLDEST_IR = 4  # from here on initializers need not be listed among the inputs


def graph_to_proto(graph: gs.Graph) -> tuple[ModelProto, dict[str, Held]]:
    """See `qcompiler.ir.model.to_proto`."""
    arrays: dict[str, Held] = {}
    proto = ModelProto()
    carried = vars(graph).get("carried_model")
    if carried is not None:
        proto.CopyFrom(carried)
    if graph.producer_name:
        proto.producer_name = graph.producer_name
    if graph.producer_version:
        proto.producer_version = graph.producer_version
    proto.opset_import.extend(_opsets(graph))
    proto.ir_version = max(_OLDEST_IR, graph.ir_version or 0, _needed_ir(proto.opset_import))
    for function in graph.functions:
        proto.functions.append(_function(function))
    writer = _Writer(graph.opset, arrays)
    proto.graph.CopyFrom(writer.graph(graph, {}, _shared_inside(graph)))
    return proto, arrays


def _needed_ir(opsets: Iterable[onnx.OperatorSetIdProto]) -> int:
    return int(helper.find_min_ir_version_for(list(opsets), ignore_unknown=True))


def _opsets(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """The default domain at the graph's opset, the others as imported, and what nodes use without an import at 1."""
    versions = {"": int(graph.opset)}
    for one in graph.import_domains or []:
        if one.domain not in ("", "ai.onnx"):
            versions[one.domain] = one.version
    used = {node.domain for node in _all_nodes(graph) if node.domain}
    for domain in sorted(used - versions.keys()):
        versions[domain] = 1
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield node
        for inner in node.subgraphs():
            yield from _all_nodes(inner)


def _function(function: gs.Function) -> onnx.FunctionProto:
    carried: onnx.FunctionProto | None = vars(function).get("carried")
    if carried is None:
        raise InternalError(
            f"function '{function.name}' was not read from a file and cannot be written; please report this."
        )
    return carried


def _shared_inside(graph: gs.Graph) -> list[gs.Constant]:
    """Constants that the main graph itself does not use but two or more subgraphs do: they belong to the main graph."""
    homes: dict[int, set[int]] = {}
    constants: dict[int, gs.Constant] = {}
    for node in graph.nodes:
        for inner in node.subgraphs(recursive=True):
            for tensor in _used(inner):
                if isinstance(tensor, gs.Constant):
                    homes.setdefault(id(tensor), set()).add(id(inner))
                    constants[id(tensor)] = tensor
    return [constants[key] for key, graphs in homes.items() if len(graphs) > 1]


def _used(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Tensors in the order in which the nodes meet them, repeats included, empty ones left out."""
    yield from graph.inputs
    for node in graph.nodes:
        yield from (tensor for tensor in node.inputs if not tensor.is_empty())
        yield from (tensor for tensor in node.outputs if not tensor.is_empty())
    yield from graph.outputs


def _same(one: gs.Tensor, other: gs.Tensor) -> bool:
    if one is other:
        return True
    return isinstance(one, gs.Constant) and isinstance(other, gs.Constant) and one._values is other._values


class _Writer:
    def __init__(self, opset: int, arrays: dict[str, Held]) -> None:
        self.opset = opset
        self.arrays = arrays

    def graph(
        self, graph: gs.Graph, outer: Mapping[str, gs.Tensor], extra: Iterable[gs.Constant] = (), *, main: bool = True
    ) -> GraphProto:
        own = self._own_tensors(graph, outer, extra)
        scope = within(outer, own)
        proto = GraphProto()
        carried = vars(graph).get("carried")
        if carried is not None:
            proto.CopyFrom(carried)
        proto.name = graph.name or ""
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        proto.input.extend(_value_info(tensor) for tensor in graph.inputs)
        proto.output.extend(_value_info(tensor) for tensor in graph.outputs)
        declared = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        for name, tensor in own.items():
            if isinstance(tensor, gs.Constant):
                self._initializer(proto, tensor, main)
            elif name not in declared and (tensor.dtype is not None or vars(tensor).get("carried") is not None):
                proto.value_info.append(_value_info(tensor))
        proto.node.extend(self._node(node, scope) for node in graph.nodes)
        return proto

    def _own_tensors(
        self, graph: gs.Graph, outer: Mapping[str, gs.Tensor], extra: Iterable[gs.Constant]
    ) -> dict[str, gs.Tensor]:
        """Tensors that this graph defines, by name.

        Raises:
            InternalError: two different tensors of the graph have the same name.
        """
        produced = {id(tensor) for node in graph.nodes for tensor in node.outputs} | {id(t) for t in graph.inputs}
        own: dict[str, gs.Tensor] = {}
        for tensor in (*_used(graph), *extra):
            name = tensor.name
            if name in own and not _same(own[name], tensor):
                raise InternalError(f"two different tensors are named '{name}'; please report this with the model.")
            inherited = name in outer and _same(outer[name], tensor)
            if not inherited and (isinstance(tensor, gs.Constant) or id(tensor) in produced):
                own.setdefault(name, tensor)
        return own

    def _initializer(self, proto: GraphProto, tensor: gs.Constant, main: bool) -> None:
        if isinstance(tensor._values, SparseValues):
            sparse = proto.sparse_initializer.add()
            sparse.CopyFrom(tensor._values.tensor)
            sparse.values.name = tensor.name
            return
        if main and isinstance(tensor._values, Made):
            proto.initializer.append(to_external_tensor(tensor.name, tensor._values, LOCATION))
            self.arrays[tensor.name] = tensor._values
            return
        values = np.asarray(tensor.values)
        least = SMALLEST if is_packed(values.dtype) else SMALLEST_EXTERNAL
        if not main or values.dtype == object or values.nbytes < least:
            proto.initializer.append(to_tensor(tensor.name, values))
            return
        proto.initializer.append(to_external_tensor(tensor.name, values, LOCATION))
        self.arrays[tensor.name] = values if values.flags.c_contiguous else np.ascontiguousarray(values)

    def _node(self, node: gs.Node, scope: Mapping[str, gs.Tensor]) -> NodeProto:
        proto = NodeProto()
        carried = vars(node).get("carried")
        if carried is not None:
            proto.CopyFrom(carried)
        proto.input.extend(tensor.name for tensor in node.inputs)
        proto.output.extend(tensor.name for tensor in node.outputs)
        proto.name = node.name
        proto.op_type = node.op
        if node.domain:
            proto.domain = node.domain
        proto.attribute.extend(self._attribute(node, name, value, scope) for name, value in node.attrs.items())
        return proto

    def _attribute(self, node: gs.Node, name: str, value: Any, scope: Mapping[str, gs.Tensor]) -> AttributeProto:
        if isinstance(value, AttributeProto):
            return value
        if isinstance(value, gs.Graph):
            return helper.make_attribute(name, self.graph(value, scope, main=False))
        if isinstance(value, gs.Tensor):
            return helper.make_attribute(name, to_tensor(value.name, value.values))
        if isinstance(value, (type, np.dtype)):
            return helper.make_attribute(name, int(helper.np_dtype_to_tensor_dtype(np.dtype(value))))
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)) and not value:
            return AttributeProto(name=name, type=_empty_kind(node, name, value, self.opset))
        if isinstance(value, (list, tuple)) and any(isinstance(one, float) for one in value):
            value = [float(one) if isinstance(one, numbers.Real) else one for one in value]
        return helper.make_attribute(name, value)


def _empty_kind(node: gs.Node, name: str, value: Any, opset: int) -> AttributeProto.AttributeType:
    if isinstance(value, EmptyList):
        return value.kind
    if onnx.defs.has(node.op, opset, node.domain or ""):
        schema = onnx.defs.get_schema(node.op, opset, node.domain or "")
        if name in schema.attributes:
            kind: str = schema.attributes[name].type.name  # type: ignore[attr-defined]  # missing in the stubs
            return cast("AttributeProto.AttributeType", AttributeProto.AttributeType.Value(kind))
    return AttributeProto.INTS


def _value_info(tensor: gs.Tensor) -> ValueInfoProto:
    info = ValueInfoProto()
    carried = vars(tensor).get("carried")
    if carried is not None:
        info.CopyFrom(carried)
    info.name = tensor.name
    if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
        return info
    if tensor.dtype is None:
        return info
    declared = info.type.tensor_type
    declared.elem_type = _element(tensor.dtype)
    if tensor.shape is not None:
        declared.shape.SetInParent()
        for size in tensor.shape:
            _set_dim(declared.shape.dim.add(), size)
    return info


def _element(dtype: Any) -> int:
    if isinstance(dtype, int):
        return dtype
    kind = np.dtype(dtype)
    return int(TensorProto.STRING if kind.kind in "OUS" else helper.np_dtype_to_tensor_dtype(kind))


def _set_dim(dim: onnx.TensorShapeProto.Dimension, size: Any) -> None:
    if isinstance(size, str):
        dim.dim_param = size
    elif size is not None and size >= 0:
        dim.dim_value = int(size)
