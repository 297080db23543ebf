"""Graph, node and variable as subclasses of onnx-graphsurgeon's, which carry what it has no place for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, ValueInfoProto
from onnx_graphsurgeon.ir.tensor import SparseValues

from qcompiler.ir.made import Made
from qcompiler.ir.weights import Array
from qcompiler.support.memory import looked_at

Scope = Mapping[str, gs.Tensor]


class Graph(gs.Graph):  # type: ignore[misc]
    """A gs.Graph whose `copy` keeps everything that ONNX can say.

    `fixed` are the values of what was an input and is a constant now, which data may go on giving.
    """

    carried: GraphProto | None = None
    carried_model: ModelProto | None = None
    fixed: Mapping[str, Array] = MappingProxyType({})

    def copy(self, tensor_map: Scope | None = None) -> Graph:
        """An independent graph; arrays are shared, `tensor_map` gives the copies of tensors from outside."""
        return _copy_graph(self, {}, dict(tensor_map or {}))


class Node(gs.Node):  # type: ignore[misc]
    """A gs.Node that carries the fields of its NodeProto which gs does not have."""

    carried: NodeProto | None = None


class Variable(gs.Variable):  # type: ignore[misc]
    """A gs.Variable that carries its ValueInfoProto."""

    carried: ValueInfoProto | None = None

    def copy(self) -> Variable:
        """A tensor of the same name and type without producer and consumers."""
        twin = Variable(self.name, self.dtype, None if self.shape is None else list(self.shape), self.type)
        twin.carried = self.carried
        return twin


class Constant(gs.Constant):  # type: ignore[misc]
    """A gs.Constant that makes its values anew each time where they are made of stored ones."""

    @property
    def values(self) -> Array:
        """All of them, read-only."""
        held = self._values
        looked_at(held.nbytes if isinstance(held, np.ndarray) else 0)
        return held.load() if isinstance(held, Made) else super().values

    @values.setter
    def values(self, values: Array) -> None:
        self._values = values


class EmptyList(list[Any]):
    """An attribute without elements; `kind` is its AttributeProto.AttributeType."""

    def __init__(self, kind: AttributeProto.AttributeType) -> None:
        super().__init__()
        self.kind = kind


class SparseInitializer(SparseValues):  # type: ignore[misc]
    """A sparse initializer; it is written back as it is unless somebody asks for its (dense) values."""

    def load(self) -> Array:
        """The dense values in the type of the sparse ones (gs would return float64)."""
        return dense(self.tensor)


def dense(sparse: SparseTensorProto) -> Array:
    """All values of a sparse tensor, whose indices are positions in the flat array or one per axis."""
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    found = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        found.reshape(-1)[indices] = values
    else:
        found[tuple(indices.T)] = values
    return found


def _copy_graph(graph: gs.Graph, twins: dict[int, gs.Tensor], given: Scope) -> Graph:
    """Copies nodes and tensors; a tensor object has one twin wherever it is used, in subgraphs as well."""

    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if tensor.is_empty():
            return gs.Variable.empty()
        if id(tensor) not in twins:
            twins[id(tensor)] = given.get(tensor.name) or _copy_tensor(tensor)
        return twins[id(tensor)]

    inputs = [twin(tensor) for tensor in graph.inputs]
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        wired_in, wired_out = [twin(t) for t in node.inputs], [twin(t) for t in node.outputs]
        attributes = {name: _copy_attribute(value, twins, given) for name, value in node.attrs.items()}
        copied = Node(node.op, node.name, attributes, wired_in, wired_out, domain=node.domain)
        copied.carried = vars(node).get("carried")
        nodes.append(copied)
    outputs = [twin(tensor) for tensor in graph.outputs]
    result = Graph(
        nodes,
        inputs,
        outputs,
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=None if graph.import_domains is None else list(graph.import_domains),
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )
    result.carried = vars(graph).get("carried")
    result.carried_model = vars(graph).get("carried_model")
    result.fixed = vars(graph).get("fixed", MappingProxyType({}))
    return result


def _copy_tensor(tensor: gs.Tensor) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        return Constant(tensor.name, tensor._values)
    twin = tensor.copy()
    twin.shape = None if tensor.shape is None else list(tensor.shape)
    twin.type = tensor.type
    return twin


def _copy_attribute(value: Any, twins: dict[int, gs.Tensor], given: Scope) -> Any:
    if isinstance(value, gs.Graph):
        return _copy_graph(value, twins, given)
    if isinstance(value, gs.Constant):
        return _copy_tensor(value)
    return list(value) if type(value) is list else value
