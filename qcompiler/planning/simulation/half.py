"""The float graph with a switch in front of every node that may compute in half, so that one session can try any set.

A node becomes `If(switch, round(op(round(x), W₁₆)), op(x, W))`: inside, all is computed in FP32 and rounded, which is
what a GPU gives, whose products are summed in FP32. Nodes that only move values have no switch of their own: what they
move is rounded by whoever computes with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.element_types import Slots
from qcompiler.ir.made import Held, RoundedWeights, later, rounded, solid
from qcompiler.ir.operators import MOVES
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import judged
from qcompiler.judge.views import Views, tensors_of, views_of
from qcompiler.passes.high_precision.high_precision import HighPrecision, Judged
from qcompiler.runtime import switches
from qcompiler.runtime.stream import OpenModel
from qcompiler.target import DType

if TYPE_CHECKING:
    pass


SWITCH = "qcompiler/half/"
CONSTANT = "qcompiler/half-constant/"  # apart from switches, which have the names of the user's nodes
_FLOAT = onnx.TensorProto.FLOAT
_ELEMENT = {DType.FP16: onnx.TensorProto.FLOAT16, DType.BF16: onnx.TensorProto.BFLOAT16}
_INTERPOLATES = ("Resize", "Upsample")


class HalfSimulator:
    """Runs a float model with any of its nodes computing in half.

    Args:
        model: the float model, normalised.
        typing: says which nodes may compute in half, and how what they read is clamped.
        views: what is compared; None for what the graph alone says.

    Attributes:
        units: names of the nodes that have a switch, in graph order.
        views: those that are judged.
    """

    def __init__(self, model: models.Model, typing: HighPrecision, views: Views | None = None) -> None:
        self.views = judged(views_of(model.graph) if views is None else views)
        proto, arrays = models.to_proto(model.graph)
        builder = _Builder(typing.judged(model.graph), typing.dtype, proto, arrays)
        builder.rewrite(proto.graph)
        self.units = tuple(builder.units)
        for name in self.units:
            proto.graph.input.append(switches.value_info(SWITCH + name, onnx.TensorProto.BOOL, scalar=True))
        self._off = {SWITCH + name: np.array(False) for name in self.units}
        self._session = OpenModel((proto, arrays), outputs=tensors_of(self.views), quick=True)

    def run(self, feeds: Feeds, low: Collection[str]) -> Feeds:
        """What the views compare, with these units in half and all others in float."""
        on = {SWITCH + name: np.array(True) for name in low}
        return self._session.run({**feeds, **self._off, **on})


class _Builder:
    """Puts the switches into a proto and its nested graphs."""

    def __init__(self, typed: Judged, dtype: DType, proto: onnx.ModelProto, arrays: dict[str, Held]) -> None:
        self.units: list[str] = []
        self._view, self._dtype, self._proto, self._arrays = typed.view, dtype, proto, arrays
        self._nodes: dict[str, tuple[gs.Node, Slots]] = {
            node.name: (node, typed.slots[id(node)])
            for node in typed.nodes
            if id(node) in typed.slots and not graphs.subgraphs(node) and _rounds(node, typed.slots[id(node)])
        }
        self._stored: dict[tuple[int, tuple[float, float] | None], str] = {}

    def rewrite(self, graph: onnx.GraphProto) -> None:
        """Changes the graph and what it nests."""
        nodes = []
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self.rewrite(attribute.g)
            if node.name in self._nodes:
                self.units.append(node.name)
                node = self._switched(node, *self._nodes[node.name])
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)

    def _switched(self, node: onnx.NodeProto, original: gs.Node, slots: Slots) -> onnx.NodeProto:
        own = f"{SWITCH}{node.name}/"
        written = {i: tensor for i, tensor in enumerate(original.outputs) if tensor.name}
        outputs = {tensor.name: self._element(tensor) for tensor in written.values()}
        plain, low = onnx.NodeProto(), onnx.NodeProto()
        plain.CopyFrom(node)
        low.CopyFrom(node)
        before: list[onnx.NodeProto] = []
        if original.op not in MOVES or original.op in _INTERPOLATES:
            for i in slots.inputs:
                given = original.inputs[i]
                if isinstance(given, gs.Constant):
                    low.input[i] = self._constant(given, self._view.clamps.get((id(original), i)))
                    continue
                low.input[i] = f"{own}x{i}"
                before += self._read(original, i, low.input[i])
        behind: list[onnx.NodeProto] = []
        ends: list[str] = []
        for i in written:
            plain.output[i], low.output[i] = f"{own}f{i}", f"{own}h{i}"
            ends.append(low.output[i])
            if i in slots.outputs:
                ends[-1] = f"{own}r{i}"
                behind += self._rounded(low.output[i], ends[-1])
        return switches.alternatives(
            SWITCH + node.name,
            own,
            outputs,
            ([*before, low, *behind], ends),
            ([plain], [plain.output[i] for i in written]),
        )

    def _element(self, tensor: gs.Tensor) -> int:
        return graphs.onnx_type(self._view.types[id(tensor)])

    def _read(self, node: gs.Node, index: int, into: str) -> Iterator[onnx.NodeProto]:
        tensor, bounds = node.inputs[index], self._view.clamps.get((id(node), index))
        source = tensor.name
        if bounds is not None and math.isfinite(bounds[0]):
            yield switches.node("Max", [source, self._bound(bounds[0])], [into + "/clamped"])
            source = into + "/clamped"
        yield from self._rounded(source, into)

    def _rounded(self, source: str, into: str) -> Iterator[onnx.NodeProto]:
        yield _cast(source, into + "/low", _ELEMENT[self._dtype])
        yield _cast(into + "/low", into, _FLOAT)

    def _constant(self, tensor: gs.Constant, bounds: tuple[float, float] | None) -> str:
        """Name of an initializer of the main graph with the rounded values, in FP32: a Cast would run in every run."""
        key = (id(tensor), bounds)
        if key not in self._stored:
            held, to = tensor._values, np.dtype(self._view.numpy)
            if later(held):
                self._stored[key] = self._initializer(RoundedWeights(held, to, bounds))
            else:
                self._stored[key] = self._initializer(rounded(graphs.values_of(tensor), to, bounds))
        return self._stored[key]

    def _bound(self, value: float) -> str:
        key = (0, (value, value))
        if key not in self._stored:
            self._stored[key] = self._initializer(np.array(value, np.float32))
        return self._stored[key]

    def _initializer(self, array: Held) -> str:
        name = f"{CONSTANT}{len(self._stored)}"
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=graphs.onnx_type(array.dtype))
        if array.nbytes < _SMALL:
            tensor.raw_data = solid(array).tobytes()
        else:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="lent")
            self._arrays[name] = array
        self._proto.graph.initializer.append(tensor)
        return name


_SMALL = 1024  # bytes; what ONNX Runtime needs to know while it infers shapes must be inside the proto


def _rounds(node: gs.Node, slots: Slots) -> bool:
    """Whether a node in half changes a value that its readers would not change anyway."""
    if not slots.inputs and not slots.outputs:
        return False
    if node.op not in MOVES or node.op in _INTERPOLATES:
        return True
    return bool(slots.outputs) and any(isinstance(node.inputs[i], gs.Constant) for i in slots.inputs)


def _cast(source: str, into: str, element: int) -> onnx.NodeProto:
    node = switches.node("Cast", [source], [into])
    node.attribute.append(onnx.AttributeProto(name="to", i=element, type=onnx.AttributeProto.INT))
    return node
