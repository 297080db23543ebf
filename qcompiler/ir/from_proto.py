"""ModelProto to graph: unique names, nodes in order, weights mapped, and what gs has no place for carried along.

graphsurgeon's own importer drops attributes that are types or sparse tensors, loses the element of optional and
sequence types, forgets overloads and metadata, and its `copy` forgets types. The three subclasses here carry the
original proto through reading, `copy` and writing:

    Graph     `carried`: metadata, quantization annotations; `carried_model`: the model's domain, version, doc string,
              training info and device configurations. Local functions are opaque: `graph.functions` has one empty
              `gs.Function` for each, with the FunctionProto in its `carried`, which is written back as it is.
    Node      `carried`: overload, doc string, metadata, device configurations.
    Variable  `carried`: the ValueInfoProto of a sequence, optional, map, sparse or opaque value, written back as it is,
              or the doc string and metadata of a tensor.

Attributes of kinds that gs has no Python form for (types, sparse tensors, lists of tensors or graphs, references to
function attributes) stay AttributeProto; an empty list is an `EmptyList`, which remembers what it is empty of.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from qcompiler.errors import ModelError
from qcompiler.ir.gs_classes import Constant, EmptyList, Graph, Node, Scope, SparseInitializer, Variable
from qcompiler.ir.weights import Weights, element_type
from qcompiler.support.scopes import within


def graph_from_proto(proto: ModelProto, weights: Weights) -> Graph:
    """Builds the graph of `proto`, whose large weights `weights` can read.

    Every node of the model, subgraphs included, gets a unique, non-empty name: the first of several equal names stays,
    the others and the nameless get `NAME_k` or `Op_k`. Nodes that are not in order are sorted, otherwise they stay.

    Raises:
        ModelError: a tensor that nothing or two nodes produce, a cycle, an element type or weight that cannot be read.
    """
    domains = (one.domain for one in proto.opset_import)
    about = (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string, *domains)
    _check_text(about, weights.model)
    names = _NodeNames(proto.graph)
    graph = _Reader(weights, names, _opset(proto)).graph(proto.graph, {}, main=True)
    graph.producer_name = proto.producer_name
    graph.producer_version = proto.producer_version
    graph.ir_version = proto.ir_version
    graph.import_domains = [_domain(one.domain, one.version) for one in proto.opset_import]
    graph.functions = [_function(one) for one in proto.functions]
    rest = ModelProto()
    rest.CopyFrom(_without_graph(proto))
    graph.carried_model = rest if rest.ByteSize() else None
    return graph


def _opset(proto: ModelProto) -> int:
    return max((int(one.version) for one in proto.opset_import if one.domain in ("", "ai.onnx")), default=1)


def _domain(domain: str, version: int) -> onnx.OperatorSetIdProto:
    return onnx.OperatorSetIdProto(domain="" if domain == "ai.onnx" else domain, version=version)


def _without_graph(proto: ModelProto) -> ModelProto:
    rest = ModelProto(domain=proto.domain, model_version=proto.model_version, doc_string=proto.doc_string)
    for name in ("domain", "model_version", "doc_string"):
        if not proto.HasField(name):
            rest.ClearField(name)
    rest.training_info.extend(proto.training_info)
    rest.configuration.extend(proto.configuration)
    return rest


def _function(proto: onnx.FunctionProto) -> gs.Function:
    function = gs.Function(proto.name, proto.domain, doc_string=proto.doc_string)
    function.carried = proto
    return function


def name_nodes(proto: ModelProto) -> None:
    """Gives every node the name that `graph_from_proto` would, in place."""
    _name(proto.graph, _NodeNames(proto.graph))


def _name(graph: GraphProto, names: _NodeNames) -> None:
    for node in graph.node:
        node.name = names.unique(node)
    for node in graph.node:
        for inner in _subgraphs(node):
            _name(inner, names)


class _NodeNames:
    """Hands out unique node names for the whole model, subgraphs included."""

    def __init__(self, graph: GraphProto) -> None:
        self._taken = Counter(node.name for node in _walk(graph))
        self._given: set[str] = set()
        self._next: Counter[str] = Counter()

    def unique(self, node: NodeProto) -> str:
        if node.name and node.name not in self._given:
            self._given.add(node.name)
            return node.name
        base = node.name or node.op_type
        name = base
        while not name or name in self._given or name in self._taken:
            name = f"{base}_{self._next[base]}"
            self._next[base] += 1
        self._given.add(name)
        return name


def _walk(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _walk(inner)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    return (attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH)


class _Reader:
    def __init__(self, weights: Weights, names: _NodeNames, opset: int) -> None:
        self.weights = weights
        self.names = names
        self.opset = opset

    def graph(self, proto: GraphProto, outer: Scope, *, main: bool = False) -> Graph:
        own: dict[str, gs.Tensor] = {}
        _check_text(_texts(proto), self.weights.model)
        self._initializers(proto, own)
        names = [self.names.unique(node) for node in proto.node]
        self._produced(proto, names, own)
        types = self._declared(proto)
        inputs = self._inputs(proto, own, types, main)
        for name, tensor in own.items():
            if name in types and isinstance(tensor, gs.Variable):
                _give_type(tensor, types[name])
        scope = within(outer, own)
        outputs = self._outputs(proto, scope, types, main)
        order = _order(proto, names, self.weights.model)
        nodes = [self._node(proto.node[i], names[i], scope) for i in order]
        graph = Graph(nodes, inputs, outputs, name=proto.name, doc_string=proto.doc_string, opset=self.opset)
        graph.carried = _leftover(proto, GraphProto(), ("quantization_annotation", "metadata_props"))
        return graph

    def _initializers(self, proto: GraphProto, own: dict[str, gs.Tensor]) -> None:
        for tensor in proto.initializer:
            where = f"initializer '{tensor.name}' of '{self.weights.model}'"
            if tensor.name in own:
                raise ModelError(f"{where} is there twice; export the model again.")
            own[tensor.name] = Constant(tensor.name, self.weights.read(tensor, where))
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            where = f"sparse initializer '{name}' of '{self.weights.model}'"
            if name in own:
                raise ModelError(f"{where} is there twice; export the model again.")
            element_type(sparse.values.data_type, where)
            own[name] = Constant(name, SparseInitializer(sparse))

    def _produced(self, proto: GraphProto, names: list[str], own: dict[str, gs.Tensor]) -> None:
        producer: dict[str, str] = {}
        for node, node_name in zip(proto.node, names, strict=True):
            for output in filter(None, node.output):
                if output in own:
                    first = f"node '{producer[output]}'" if output in producer else "an initializer"
                    raise ModelError(
                        f"tensor '{output}' of '{self.weights.model}' is written by node '{node_name}' and also by "
                        f"{first}: a tensor can be written once. Export the model again."
                    )
                producer[output] = node_name
                own[output] = Variable(output)

    def _declared(self, proto: GraphProto) -> dict[str, ValueInfoProto]:
        types: dict[str, ValueInfoProto] = {}
        for info in (*proto.input, *proto.output, *proto.value_info):
            if info.name not in types or not types[info.name].HasField("type"):
                types[info.name] = info
            self._check_type(info)
        return types

    def _check_type(self, info: ValueInfoProto) -> None:
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type:
            element_type(info.type.tensor_type.elem_type, f"tensor '{info.name}' of '{self.weights.model}'")

    def _inputs(
        self, proto: GraphProto, own: dict[str, gs.Tensor], types: Mapping[str, ValueInfoProto], main: bool
    ) -> list[gs.Variable]:
        inputs: list[gs.Variable] = []
        for info in proto.input:
            if isinstance(own.get(info.name), gs.Constant):
                continue  # a weight that older IR versions list among the inputs as well
            if info.name in own:
                raise ModelError(
                    f"graph input '{info.name}' of '{self.weights.model}' is declared twice or also written by a "
                    "node; export the model again."
                )
            kind = info.type.WhichOneof("value")
            if main and (kind is None or (kind == "tensor_type" and not info.type.tensor_type.elem_type)):
                raise ModelError(
                    f"graph input '{info.name}' of '{self.weights.model}' has no element type; export the model again."
                )
            own[info.name] = Variable(info.name)
            inputs.append(own[info.name])
        return inputs

    def _outputs(
        self, proto: GraphProto, scope: Scope, types: Mapping[str, ValueInfoProto], main: bool
    ) -> list[gs.Tensor]:
        outputs: list[gs.Tensor] = []
        seen: set[str] = set()
        for info in proto.output:
            if main and info.name in seen:
                raise ModelError(
                    f"graph output '{info.name}' of '{self.weights.model}' is declared twice; export the model again."
                )
            seen.add(info.name)
            if info.name not in scope:
                raise ModelError(
                    f"graph output '{info.name}' of '{self.weights.model}' is written by no node; "
                    "export the model again."
                )
            outputs.append(scope[info.name])
        return outputs

    def _node(self, proto: NodeProto, name: str, scope: Scope) -> gs.Node:
        missing = next((tensor for tensor in filter(None, proto.input) if tensor not in scope), None)
        if missing is not None:
            raise ModelError(
                f"node '{name}' ({proto.op_type}) of '{self.weights.model}' reads tensor '{missing}', which no node, "
                "initializer or graph input provides; export the model again."
            )
        node = Node(
            proto.op_type,
            name,
            {one.name: self._attribute(one, name, scope) for one in proto.attribute},
            [scope[tensor] if tensor else gs.Variable.empty() for tensor in proto.input],
            [scope[tensor] if tensor else gs.Variable.empty() for tensor in proto.output],
            domain=proto.domain if proto.domain not in ("", "ai.onnx") else None,
        )
        node.carried = _leftover(
            proto, NodeProto(), ("overload", "doc_string", "metadata_props", "device_configurations")
        )
        return node

    def _attribute(self, proto: AttributeProto, node: str, scope: Scope) -> Any:
        kind = _kind(proto)
        if proto.ref_attr_name:
            return proto
        if kind == AttributeProto.GRAPH:
            return self.graph(proto.g, scope)
        if kind == AttributeProto.TENSOR:
            where = f"attribute '{proto.name}' of node '{node}' in '{self.weights.model}'"
            return Constant(proto.t.name, self.weights.read(proto.t, where))
        if kind == AttributeProto.STRING:
            return _text(proto.s)
        if kind == AttributeProto.FLOAT:
            return proto.f
        if kind == AttributeProto.INT:
            return proto.i
        if kind in _LISTS:
            values = list(getattr(proto, _LISTS[kind]))
            return [_text(one) if isinstance(one, bytes) else one for one in values] or EmptyList(kind)
        return proto


def _check_text(texts: Iterable[str | bytes], path: Path) -> None:
    bad = next((text for text in texts if isinstance(text, bytes)), None)
    if bad is not None:
        raise ModelError(f"a name in '{path}', {bad!r}, is not UTF-8 text; the file is damaged: fetch it again.")


def _texts(graph: GraphProto) -> Iterator[str | bytes]:
    """All names of a graph without its subgraphs; protobuf gives bytes for what is not UTF-8."""
    yield from (graph.name, graph.doc_string)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)


_LISTS: dict[int, str] = {
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}


def _kind(proto: AttributeProto) -> AttributeProto.AttributeType:
    """The type of an attribute; files of the first IR versions leave it to be guessed from what is set."""
    if proto.type != AttributeProto.UNDEFINED:
        return proto.type
    set_fields = {field.name for field, _ in proto.ListFields()}
    guesses = (
        ("g", AttributeProto.GRAPH),
        ("t", AttributeProto.TENSOR),
        ("s", AttributeProto.STRING),
        ("f", AttributeProto.FLOAT),
        ("i", AttributeProto.INT),
        ("floats", AttributeProto.FLOATS),
        ("ints", AttributeProto.INTS),
        ("strings", AttributeProto.STRINGS),
    )
    return next((kind for name, kind in guesses if name in set_fields), AttributeProto.UNDEFINED)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _give_type(tensor: gs.Variable, info: ValueInfoProto) -> None:
    kind = info.type.WhichOneof("value")
    if kind is None:
        return
    tensor.type = kind
    if kind == "tensor_type":
        declared = info.type.tensor_type
        if declared.elem_type:
            tensor.dtype = element_type(declared.elem_type, f"tensor '{info.name}'")
        if declared.HasField("shape"):
            tensor.shape = [_dim(dim) for dim in declared.shape.dim]
        tensor.carried = _leftover(info, ValueInfoProto(), ("doc_string", "metadata_props"))
        return
    tensor.carried = info


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _leftover(source: Any, rest: Any, names: Iterable[str]) -> Any:
    """Copies the named fields of `source` that are set into `rest`; None where there are none."""
    wanted = set(names)
    found = False
    for field, value in source.ListFields():
        if field.name not in wanted:
            continue
        found = True
        if isinstance(value, str):
            setattr(rest, field.name, value)
        elif not isinstance(value, bytes):  # a text that is none
            getattr(rest, field.name).extend(value)
    return rest if found else None


def _order(proto: GraphProto, names: list[str], path: Path) -> list[int]:
    """Indices of the nodes with each one behind what it reads; the given order wherever that is possible.

    Raises:
        ModelError: some nodes wait for each other; one of them is named.
    """
    producer = {name: i for i, node in enumerate(proto.node) for name in node.output if name}
    before = [sorted({producer[name] for name in _reads(node) if name in producer}) for node in proto.node]
    after: list[list[int]] = [[] for _ in before]
    waiting = [len(ahead) for ahead in before]
    for index, ahead in enumerate(before):
        for earlier in ahead:
            after[earlier].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for later in after[index]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, later)
    if len(order) < len(before):
        cycle = _cycle(before, set(range(len(before))) - set(order))
        raise ModelError(
            f"the graph of '{path}' is cyclic: nodes {' -> '.join(repr(names[i]) for i in cycle)} wait for each "
            "other's outputs. Such a graph cannot be computed; export the model again."
        )
    return order


def _reads(node: NodeProto) -> set[str]:
    """Tensors that the node or its subgraphs take from the graph that the node stands in."""
    names = set(filter(None, node.input))
    for inner in _subgraphs(node):
        own = {one.name for one in (*inner.initializer, *inner.input)}
        own |= {one.values.name for one in inner.sparse_initializer}
        own |= {name for one in inner.node for name in one.output}
        wanted = {name for one in inner.node for name in _reads(one)} | {one.name for one in inner.output}
        names |= wanted - own
    return names


def _cycle(before: list[list[int]], stuck: set[int]) -> list[int]:
    """Follows any unfinished predecessor until a node comes again; at most five nodes of the cycle, in data order."""
    path: list[int] = []
    index = min(stuck)
    while index not in path:
        path.append(index)
        index = next(earlier for earlier in before[index] if earlier in stuck)
    cycle = path[path.index(index) :][::-1]
    return [*cycle[:4], cycle[0]]
