"""The tail of a model: what stands between its last layers and an output, read backwards.

    boxes = Gather(all_boxes, NonMaxSuppression(all_boxes, scores))     sources: all_boxes, scores
    classes = ArgMax(logits)                                            sources: logits
    y = Where(Greater(x, 0), x, 0.1 · x)                                no selection: y stands where it stood

A step that makes numbers discrete (which one is largest, what lies above a threshold) turns a small error into none or
into a large one. Where its result picks or orders rows, two results cannot be compared element by element at all. What
such steps read can: these tensors are the sources of an output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import CARRIES, COMPARES, MOVES, POINTWISE

# Whose results are rows in a number or an order that numbers decide
SELECTS = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"})
ROUNDS = frozenset(
    {"ArgMax", "ArgMin", "Multinomial", "Round", "Floor", "Ceil", "Sign", "QuantizeLinear", "DynamicQuantizeLinear",
     "Hardmax"}
)  # fmt: skip
COMPARING = frozenset({*COMPARES, "And", "Or", "Not", "Xor"}) - SELECTS
# What an output may pass behind the last layer and still be made of the same numbers
PASSED = frozenset({*MOVES, *CARRIES, *POINTWISE, "Cast", "OneHot", "Dropout", "CastLike", "EyeLike", "Shape", "Size"})
SOFT = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"})
_SIZES = ("Shape", "Size", "ConstantOfShape", "Range")
_SELECTING = ("nms", "nonmax", "topk")  # in the names of plugins


@dataclass(frozen=True, eq=False)
class Tail:
    """What an output is made of, back to the last layers.

    Attributes:
        steps: operators that make numbers discrete, the last one first, each once.
        sources: float tensors that these steps read, and those that what they give is joined with.
        selected: rows are picked or ordered by numbers: element by element nothing can be compared.
    """

    steps: tuple[str, ...] = ()
    sources: tuple[gs.Tensor, ...] = ()
    selected: bool = False


class Tails:
    """Answers for one graph.

    Args:
        graph: its main graph is looked at; nested ones count as layers.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._types = element_types.infer_all(graph)
        self._inputs = {id(tensor) for tensor in graph.inputs}
        self._fixed: dict[int, bool] = {}

    def is_float(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor holds floats; one of unknown type does unless what writes it compares or selects."""
        dtype = self._types.get(id(tensor)) or graphs.dtype_of(tensor)
        if dtype is not None:
            return np.dtype(dtype).kind == "f" or "float" in np.dtype(dtype).name
        node = graphs.producer(tensor)
        whole = (*SELECTS, *COMPARING, "ArgMax", "ArgMin", "Multinomial", "QuantizeLinear", "Shape", "Size")
        return node is not None and not graphs.is_op(node, *whole)

    def computed(self, tensor: gs.Tensor) -> bool:
        """Whether floats that the data brings have a part in a tensor: it is no constant, no size, no token id."""
        waiting, seen = [(tensor, False)], set[int]()
        while waiting:
            one, ready = waiting.pop()
            if ready:
                self._fixed[id(one)] = not self._moves(one)
            elif id(one) not in seen and id(one) not in self._fixed:
                seen.add(id(one))
                waiting.append((one, True))
                waiting += [(value, False) for value in _behind(one)]
        return not self._fixed[id(tensor)]

    def _moves(self, tensor: gs.Tensor) -> bool:
        """One step of `computed`, behind those that it needs."""
        if graphs.is_constant(tensor):
            return False
        node = graphs.producer(tensor)
        if node is None:
            return self.is_float(tensor)
        if graphs.is_op(node, *_SIZES):
            return False
        if graphs.is_op(node, "Gather", "Embedding") and graphs.is_constant(node.inputs[0]):
            return self.is_float(tensor)  # a table of embeddings: from here on numbers move
        behind = list(_behind(tensor))
        if behind and not self._passes(node) and self.is_float(tensor):
            return True  # a layer: of a picture in bytes, too
        return any(not self._fixed.get(id(value), True) for value in behind)

    def of(self, output: gs.Tensor) -> Tail:
        """The tail of a tensor of the main graph."""
        region = self._region(output)
        discrete: dict[int, bool] = {}  # by tensor: whether numbers were made discrete on the way to it
        selected: dict[int, bool] = {}  # and rows were picked by them
        deep: dict[int, bool] = {}  # whether a layer stands behind it
        steps, sources = list[str](), dict[int, gs.Tensor]()
        for node in region:  # readers behind writers
            here = self._is_discrete(node)
            mixes = here or any(discrete.get(id(value), False) for value in node.inputs)
            picks = _selects(node) or any(selected.get(id(value), False) for value in node.inputs)
            if mixes:
                if here:
                    steps.insert(0, node.op)
                for value in node.inputs:
                    if not discrete.get(id(value), False) and self.is_float(value) and self.computed(value):
                        sources[id(value)] = value
            layered = [value for value in node.inputs if deep.setdefault(id(value), self._is_layer(value))]
            # weighed by what was picked, as experts are: rows stand where they stood
            weighs = graphs.is_op(node, *POINTWISE) and any(not discrete.get(id(value), False) for value in layered)
            for value in node.outputs:
                discrete[id(value)], selected[id(value)] = mixes, mixes and picks and not weighs
                deep[id(value)] = bool(layered)
        if not discrete.get(id(output), False):
            return Tail()
        return Tail(tuple(dict.fromkeys(steps)), tuple(sources.values()), selected[id(output)])

    def _is_layer(self, tensor: gs.Tensor) -> bool:
        node = graphs.producer(tensor)
        return node is not None and not self._passes(node) and self.is_float(tensor) and self.computed(tensor)

    def _is_discrete(self, node: gs.Node) -> bool:
        """Whether a node makes numbers that move discrete."""
        to_whole = graphs.is_op(node, "Cast") and not self.is_float(node.outputs[0]) and self.is_float(node.inputs[0])
        named = _selects(node) or graphs.is_op(node, *ROUNDS, *COMPARING) or to_whole
        return named and any(self.is_float(value) and self.computed(value) for value in node.inputs)

    def _region(self, output: gs.Tensor) -> list[gs.Node]:
        """Nodes that an output passes behind the last layers, in graph order."""
        order, done = list[gs.Node](), set[int]()
        waiting: list[tuple[gs.Tensor, bool]] = [(output, False)]
        while waiting:
            tensor, ready = waiting.pop()
            node = graphs.producer(tensor)
            if node is None:
                continue
            if ready:
                if id(node) not in done:
                    done.add(id(node))
                    order.append(node)
                continue
            if id(node) in done or not self._passes(node) or _is_scale(node, tensor):
                continue
            waiting.append((tensor, True))
            waiting += [(value, False) for value in node.inputs if not graphs.is_constant(value)]
        return order

    def _passes(self, node: gs.Node) -> bool:
        if _selects(node) or graphs.is_op(node, *ROUNDS, *COMPARING):
            return True
        return graphs.is_standard(node) and node.op in PASSED


def _is_scale(node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether a tensor says how numbers were stored for the layer behind: it is measured, and no whole number."""
    return graphs.is_op(node, "DynamicQuantizeLinear") and tensor is not node.outputs[0]


def _selects(node: gs.Node) -> bool:
    plugin = not graphs.is_standard(node) or node.op.endswith("_TRT")
    return graphs.is_op(node, *SELECTS) or (plugin and any(word in node.op.lower() for word in _SELECTING))


def _behind(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """What a tensor is computed from, constants and mere sizes left out."""
    node = graphs.producer(tensor)
    if node is not None and not graphs.is_op(node, *_SIZES):
        yield from (value for value in _reads(node) if value.name and not graphs.is_constant(value))


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    yield from node.inputs
    for inner in graphs.subgraphs(node):
        for one in graphs.walk(inner):
            yield from one.inputs
