"""Operators that draw random numbers, and stand-ins that draw the same numbers in every run.

Two runs of a model that draws differ by themselves, and every comparison would read that as an error. So whatever runs
a model runs it with stand-ins: RandomNormal, RandomUniform (and Like), Bernoulli, Multinomial, and Dropout in training
mode are replaced, in nested graphs too, by standard operators of opset 9 that compute numbers of the same
distribution, type and shape out of the index of each element and the name of the node:

    x = (a·i + b)^5 mod p, twice or more      p = 2^31 - 1; x^5 permutes the numbers below p
    u = (x + 1/2) / p                         uniform
    n = sqrt(-2 log u) cos(2 π v)             normal (Box and Muller 1958)

`a` and `b` come of the name of the node, so nodes differ from each other, a node is the same in the float model and in
all that is made of it, and iterations of a Loop differ too. What is written to a file keeps the operators of the user.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, inliner, numpy_helper

from qcompiler.ir.from_proto import name_nodes
from qcompiler.ir.graph import constant_value, is_standard, walk
from qcompiler.runtime import switches

if TYPE_CHECKING:
    from numpy.typing import NDArray


RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
OLDEST = 9  # ConstantOfShape and NonZero
_CAST_LIKE, _ALLOW_ZERO = 15, 14  # the opsets that brought them
_PRIME = 2**31 - 1
_NUMPY: Mapping[int, type[np.floating[Any]]] = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
_BELOW_ONE = 1 - 2.0**-23  # the largest number is less than 1 in FP32, too


def draws(node: gs.Node) -> bool:
    """Whether two runs of a node may differ: a random operator, or Dropout that is in training mode or may be."""
    if not is_standard(node):
        return False
    if node.op != "Dropout":
        return node.op in RANDOM
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    training = constant_value(node.inputs[2])
    return training is None or bool(training.any())


def random_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of a graph, nested graphs included, that draw random numbers, and calls of functions that do."""
    functions = {
        (one.domain or "", one.name)
        for one in graph.functions
        if getattr(one, "carried", None) is not None and _in_nodes(one.carried.node)
    }
    return [node for node in walk(graph) if draws(node) or (node.domain or "", node.op) in functions]


def in_proto(proto: ModelProto) -> bool:
    """Whether a model may draw random numbers, nested graphs and functions included."""
    return _in_nodes(proto.graph.node) or any(_in_nodes(one.node) for one in proto.functions)


def _in_nodes(nodes: Iterable[NodeProto]) -> bool:
    return any(_may_draw(node) or any(_in_nodes(inner.node) for inner in _nested(node)) for node in nodes)


def _may_draw(node: NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2]))


def _nested(node: NodeProto) -> Iterator[GraphProto]:
    return (attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH)


def held(proto: ModelProto, draw: int = 0) -> ModelProto:
    """The model with stand-ins for all that draws; itself where nothing does.

    Tensors keep their names. Below opset 9 the stand-ins cannot be written and the model stays as it is.

    Args:
        proto: the model; weights may lie outside of it. It stays as it is.
        draw: which numbers are drawn; another one gives others of the same distribution.
    """
    if not in_proto(proto):
        return proto
    if any(_in_nodes(one.node) for one in proto.functions):
        proto = inliner.inline_local_functions(proto)
        name_nodes(proto)  # as whoever reads the inlined model will call them
    copy = ModelProto()
    copy.CopyFrom(proto)
    opset = max((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), default=1)
    if opset >= OLDEST:
        _Holder(copy, opset, draw).hold(copy.graph, ())
    return copy


class _Holder:
    """Replaces the nodes of a model."""

    def __init__(self, proto: ModelProto, opset: int, draw: int) -> None:
        self._proto, self._opset, self._draw = proto, opset, draw
        self._inferred: dict[str, int] | None = None

    def hold(self, graph: GraphProto, counters: Sequence[str]) -> None:
        """Replaces the nodes of a graph and of those that it nests; `counters` number the iterations around it."""
        nodes: list[NodeProto] = []
        for node in graph.node:
            for inner in _nested(node):
                loop = node.op_type == "Loop" and bool(inner.input)
                self.hold(inner, [*counters, inner.input[0].name] if loop else counters)
            if not _may_draw(node):
                nodes.append(node)
                continue
            made = _StandIn(node, self._opset, self._draw, counters, self._type_of)
            nodes += made.nodes
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)

    def _type_of(self, name: str) -> int | None:
        """Element type of a tensor; None where it cannot be told."""
        if self._inferred is None:
            try:
                told = onnx.shape_inference.infer_shapes(self._proto)
            except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
                told = self._proto
            self._inferred = dict(_types(told.graph))
        return self._inferred.get(name)


def _types(graph: GraphProto) -> Iterator[tuple[str, int]]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type:
            yield value.name, value.type.tensor_type.elem_type
    yield from ((one.name, one.data_type) for one in graph.initializer)
    for node in graph.node:
        for inner in _nested(node):
            yield from _types(inner)


class _StandIn:
    """The nodes that stand for one.

    Args:
        node: draws.
        opset: of the model.
        draw: as of `held`.
        counters: numbers of iterations, outer before inner.
        type_of: element type of a tensor by name.
    """

    def __init__(
        self,
        node: NodeProto,
        opset: int,
        draw: int,
        counters: Sequence[str],
        type_of: Callable[[str], int | None],
    ) -> None:
        self.nodes: list[NodeProto] = []
        self._opset, self._draw, self._counters, self._type_of = opset, draw, counters, type_of
        self._name = node.name or next(name for name in node.output if name)
        self._attrs = {one.name: _read(one) for one in node.attribute}
        self._made = 0
        writer = {
            "RandomNormal": self._normal,
            "RandomNormalLike": self._normal,
            "RandomUniform": self._uniform,
            "RandomUniformLike": self._uniform,
            "Bernoulli": self._bernoulli,
            "Multinomial": self._multinomial,
            "Dropout": self._dropout,
        }
        writer[node.op_type](node)

    # What is drawn

    def _normal(self, node: NodeProto) -> None:
        shape, count = self._extent(node)
        first, second = self._draws(count, 2)
        radius = self._add("Sqrt", [self._add("Mul", [self._add("Log", [first]), self._float(-2.0)])])
        angle = self._add("Cos", [self._add("Mul", [second, self._float(2 * math.pi)])])
        values = self._affine(
            self._add("Mul", [radius, angle]), self._attrs.get("scale", 1.0), self._attrs.get("mean", 0.0)
        )
        self._typed(self._shaped(values, shape), node)

    def _uniform(self, node: NodeProto) -> None:
        shape, count = self._extent(node)
        low, high = self._attrs.get("low", 0.0), self._attrs.get("high", 1.0)
        values = self._affine(self._draws(count, 1)[0], high - low, low)
        self._typed(self._shaped(values, shape), node)

    def _bernoulli(self, node: NodeProto) -> None:
        shape, count = self._extent(node)
        values = self._shaped(self._draws(count, 1)[0], shape)
        self._typed(self._add("Less", [values, self._cast(node.input[0], TensorProto.FLOAT)]), node)

    def _multinomial(self, node: NodeProto) -> None:
        """The largest of log-probability plus a Gumbel number, for each of the samples."""
        sizes = self._add("Shape", [node.input[0]])
        rows, classes = (self._add("Gather", [sizes, self._ints([at])], axis=0) for at in (0, 1))
        samples = self._ints([self._attrs.get("sample_size", 1)])
        count = self._add("Mul", [self._count(node.input[0]), samples])
        drawn = self._add("Log", [self._draws(count, 1)[0]])
        gumbel = self._add("Neg", [self._add("Log", [self._add("Neg", [drawn])])])
        spread = self._shaped(gumbel, self._add("Concat", [rows, samples, classes], axis=0))
        single = self._add("Concat", [rows, self._ints([1]), classes], axis=0)
        scores = self._shaped(self._cast(node.input[0], TensorProto.FLOAT), single)
        chosen = self._add("ArgMax", [self._add("Add", [scores, spread])], axis=2, keepdims=0)
        self._write("Cast", [chosen], node.output[0], to=self._attrs.get("dtype", TensorProto.INT32))

    def _dropout(self, node: NodeProto) -> None:
        """Elements stay with 1 - ratio and are then divided by that, in training mode; else all stay as they are."""
        data, training = node.input[0], node.input[2]
        wide = TensorProto.DOUBLE if self._type_of(data) == TensorProto.DOUBLE else TensorProto.FLOAT
        ratio = self._cast(node.input[1], wide) if node.input[1] else self._constant(np.array(0.5, _NUMPY[wide]))
        drawn = self._shaped(self._draws(self._count(data), 1)[0], self._add("Shape", [data]))
        dropped = self._add("Less", [self._cast(drawn, wide), ratio])
        dropped = self._add("And", [dropped, training])
        values = self._cast(data, wide)
        share = self._add("Sub", [self._constant(np.array(1, _NUMPY[wide])), ratio])
        divided = self._add("Where", [training, self._add("Div", [values, share]), values])
        left = self._add("Where", [dropped, self._constant(np.array(0, _NUMPY[wide])), divided])
        self._typed(left, node)
        if len(node.output) > 1 and node.output[1]:
            self._write("Not", [dropped], node.output[1])

    # What it is made of

    def _draws(self, count: str, numbers: int) -> list[str]:
        """Uniform numbers above 0 and below 1, FP32 [count]: so many tensors that know nothing of each other."""
        ones = self._add("ConstantOfShape", [count], value=numpy_helper.from_array(np.ones(1, np.int64)))
        index = self._add("Gather", [self._add("NonZero", [ones]), self._constant(np.array(0, np.int64))], axis=0)
        for counter in self._counters:
            stride = self._salt("iteration", counter)
            offset = self._add("Mul", [self._add("Reshape", [counter, self._ints([1])]), self._ints([stride])])
            index = self._add("Add", [index, self._modulo(offset)])
        state, found = self._scrambled(index, 0), []
        for number in range(numbers):
            state = self._scrambled(state, number + 1)
            real = self._add("Add", [self._cast(state, TensorProto.FLOAT), self._float(0.5)])
            found.append(self._add("Mul", [real, self._float(_BELOW_ONE / _PRIME)]))
        return found

    def _scrambled(self, state: str, turn: int) -> str:
        factor, offset = self._salt(turn, "a"), self._salt(turn, "b")
        moved = self._add("Add", [self._add("Mul", [state, self._ints([factor])]), self._ints([offset])])
        first = self._modulo(moved)
        fourth = first
        for _ in range(2):
            fourth = self._modulo(self._add("Mul", [fourth, fourth]))
        return self._modulo(self._add("Mul", [fourth, first]))

    def _modulo(self, value: str) -> str:
        whole = self._add("Mul", [self._add("Div", [value, self._ints([_PRIME])]), self._ints([_PRIME])])
        return self._add("Sub", [value, whole])

    def _salt(self, *about: object) -> int:
        """A number from 1 to p - 1 that the name of the node decides."""
        text = repr((self._name, self._draw, *about)).encode("utf8", "surrogatepass")
        return 1 + int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % (_PRIME - 1)

    def _affine(self, value: str, scale: float, offset: float) -> str:
        return self._add("Add", [self._add("Mul", [value, self._float(scale)]), self._float(offset)])

    def _extent(self, node: NodeProto) -> tuple[str, str]:
        """Names of the shape of what is drawn and of the number of its elements."""
        if not node.input:
            shape = list(self._attrs.get("shape", []))
            return self._ints(shape), self._ints([math.prod(shape)])
        return self._add("Shape", [node.input[0]]), self._count(node.input[0])

    def _count(self, tensor: str) -> str:
        return self._add("Reshape", [self._add("Size", [tensor]), self._ints([1])])

    def _shaped(self, values: str, shape: str) -> str:
        options = {"allowzero": 1} if self._opset >= _ALLOW_ZERO else {}
        return self._add("Reshape", [values, shape], **options)

    def _typed(self, values: str, node: NodeProto) -> None:
        """Writes the first output of the node: in the type that it says, else in that of what it reads."""
        stated = self._attrs.get("dtype") or (self._type_of(node.input[0]) if node.input else None)
        if stated is None and node.input and self._opset >= _CAST_LIKE:
            self._write("CastLike", [values, node.input[0]], node.output[0])
            return
        self._write("Cast", [values], node.output[0], to=stated or TensorProto.FLOAT)

    def _cast(self, tensor: str, to: int) -> str:
        return self._add("Cast", [tensor], to=to)

    def _float(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _ints(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: NDArray[Any]) -> str:
        return self._add("Constant", [], value=numpy_helper.from_array(value))

    def _add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self._write(op, inputs, f"{self._name}/held/{self._made}", **attributes)

    def _write(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = f"{self._name}/held/{self._made}/{op}"
        self._made += 1
        made = switches.node(op, inputs, [output], name)
        made.attribute.extend(_written(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return output


def _read(attribute: AttributeProto) -> Any:
    """The value of an attribute of an operator that draws: a number or a list of integers."""
    if attribute.type == AttributeProto.INTS:
        return list(attribute.ints)
    return attribute.f if attribute.type == AttributeProto.FLOAT else attribute.i


def _written(name: str, value: int | TensorProto) -> AttributeProto:
    if isinstance(value, TensorProto):
        return AttributeProto(name=name, t=value, type=AttributeProto.TENSOR)
    return AttributeProto(name=name, i=value, type=AttributeProto.INT)
