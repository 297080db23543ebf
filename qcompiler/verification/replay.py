"""Running parts of one graph on what another graph computes, and a graph with some of its tensors replaced.

`Replay` answers what a layer adds itself. Its float twin is fed with what the quantized graph has in front of it:

    own error = layer(x of the quantized graph) - y of the quantized graph

which holds everything that the layer and what stands between do wrong, and nothing of what was wrong before. All
tensors of `cuts` are such borders, so that one run of the float graph serves all layers.

`Repair` answers what that is worth at the end: the quantized graph, where chosen tensors can be given instead of
computed. Both edit the protos that ONNX Runtime reads; the graphs stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, ValueInfoProto

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.segments import read_by
from qcompiler.runtime.stream import OpenModel

Array = np.ndarray[Any, Any]

_MADE: Final = "/qcompiler/made"  # what a node computes where its tensor may be given
_GIVEN: Final = "/qcompiler/given"
_CHOSEN: Final = "/qcompiler/chosen"


class Replay:
    """The parts of a graph that compute some tensors out of others.

    Args:
        graph: stays as it is.
        cuts: tensors that are fed wherever they are read; nodes that only serve what computes them are left out.
        wanted: tensors that are computed, each out of the cuts before it. They may be cuts.

    Attributes:
        reads: the cuts that must be fed.

    Raises:
        ModelError: ONNX Runtime refuses the parts.
    """

    def __init__(self, graph: gs.Graph, cuts: Collection[str], wanted: Sequence[str]) -> None:
        proto, weights = models.to_proto(graph)
        types = _types(graph)
        _rename(proto, cuts)
        needed = _needed(proto, [name + _MADE if name in cuts else name for name in wanted])
        inputs = {one.name: one for one in proto.graph.input}
        used = {name for node in needed for name in read_by(node)}
        self.reads = [name for name in dict.fromkeys(cuts) if name in used]
        self._wanted = {name + _MADE if name in cuts else name: name for name in wanted}
        alone = onnx.GraphProto(name=proto.graph.name, node=needed)
        alone.input.extend(one for name, one in inputs.items() if name in used)
        alone.input.extend(_value(name, types.get(name)) for name in self.reads if name not in inputs)
        alone.initializer.extend(one for one in proto.graph.initializer if one.name in used)
        alone.sparse_initializer.extend(proto.graph.sparse_initializer)
        alone.output.extend(ValueInfoProto(name=name) for name in self._wanted)
        model = onnx.ModelProto(
            ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions, graph=alone
        )
        self._session = OpenModel((model, {name: weights[name] for name in used if name in weights}), quick=True)

    def run(self, feed: Mapping[str, Array], values: Mapping[str, Array]) -> Feeds:
        """What the parts make of a feed and of the cuts in `values`, by name of the tensor.

        Raises:
            DataError: the values do not fit.
            ModelError: a node fails.
        """
        given = {name: values[name] for name in self.reads}
        found = self._session.run(fitting({**feed, **given}, self._session))
        return {name: found[made] for made, name in self._wanted.items()}


class Repair:
    """A graph in which chosen tensors are given instead of computed, each when it is asked for.

    Args:
        graph: stays as it is.
        places: tensors that nodes of the graph write and that may be given.
        outputs: tensors that a run returns.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """

    def __init__(self, graph: gs.Graph, places: Sequence[str], outputs: Sequence[str]) -> None:
        proto, weights = models.to_proto(graph)
        types = _types(graph)
        self._places = tuple(places)
        self._kinds = {name: types.get(name) or np.dtype(np.float32) for name in places}
        _rename(proto, self._places)
        nodes: list[onnx.NodeProto] = []
        for node in proto.graph.node:
            nodes.append(node)
            nodes += (_switch(name.removesuffix(_MADE)) for name in node.output if name.removesuffix(_MADE) != name)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.graph.node[:], proto.graph.output[:]
        proto.graph.node.extend(kept)
        for name in self._places:
            proto.graph.input.append(_value(name + _CHOSEN, np.dtype(bool), ()))
            proto.graph.input.append(_value(name + _GIVEN, types.get(name)))
        proto.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        self._session = OpenModel((proto, weights), quick=True)

    def run(self, feed: Mapping[str, Array], given: Mapping[str, Array] | None = None) -> Feeds:
        """The outputs where the places in `given` have these values; the others are computed.

        Raises:
            DataError: a value has another shape than what is computed.
            ModelError: a node fails.
        """
        values = dict(given or {})
        extra: dict[str, Array] = {}
        for name in self._places:
            extra[name + _CHOSEN] = np.array(name in values)
            extra[name + _GIVEN] = np.asarray(values.get(name, np.zeros((), self._kinds[name])))
        return self._session.run(fitting({**feed, **extra}, self._session))


def fitting(feed: Mapping[str, Array], session: OpenModel) -> Feeds:
    """The feed as a graph takes it that may have lost inputs or have float inputs of another width."""
    return fitting_inputs(feed, session.inputs)


def fitting_inputs(feed: Mapping[str, Array], wanted: Inputs) -> Feeds:
    """The same for a graph that is not opened yet."""
    result = {}
    for name, array in feed.items():
        if name not in wanted:
            continue
        dtype = wanted[name][0]
        both_float = _is_float(dtype) and _is_float(array.dtype)
        result[name] = array.astype(dtype, copy=False) if both_float else array
    return result


def _is_float(dtype: np.dtype[Any] | None) -> bool:
    """Whether feeds of a type may be fed as another float type; numpy knows no kind of bfloat16."""
    return dtype is not None and (dtype.kind == "f" or dtype.name == "bfloat16")


def _switch(name: str) -> onnx.NodeProto:
    """The tensor as it is given where it is chosen, else as it is made."""
    return onnx.NodeProto(
        op_type="Where", name=name + _CHOSEN, input=[name + _CHOSEN, name + _GIVEN, name + _MADE], output=[name]
    )


def _rename(proto: onnx.ModelProto, tensors: Iterable[str]) -> None:
    """Gives what nodes of the main graph write there another name, so that the old one can come from elsewhere."""
    named = frozenset(tensors)
    for node in proto.graph.node:
        for i, name in enumerate(node.output):
            if name in named:
                node.output[i] = name + _MADE
    del proto.graph.value_info[:]  # ONNX Runtime infers them; those of what was renamed would be of nothing


def _needed(proto: onnx.ModelProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes behind some tensors, in their order."""
    nodes = list(proto.graph.node)
    writers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    waiting, found = list(outputs), set[int]()
    while waiting:
        at = writers.get(waiting.pop())
        if at is None or at in found:
            continue
        found.add(at)
        waiting += read_by(nodes[at])
    return [node for at, node in enumerate(nodes) if at in found]


def _types(graph: gs.Graph) -> dict[str, np.dtype[Any]]:
    known = element_types.infer_all(graph)
    written = (tensor for node in graph.nodes for tensor in node.outputs)
    return {tensor.name: known[id(tensor)] for tensor in written if id(tensor) in known}


def _value(name: str, dtype: np.dtype[Any] | None, shape: Sequence[int] | None = None) -> ValueInfoProto:
    value = ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = TensorProto.FLOAT if dtype is None else graphs.onnx_type(dtype)
    if shape is not None:
        value.type.tensor_type.shape.SetInParent()
    return value
