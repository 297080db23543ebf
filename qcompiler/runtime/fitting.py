"""Whether shapes of the inputs fit together: what a graph adds, joins or compares says so, without any real values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Array, Feeds
from qcompiler.runtime import chain
from qcompiler.runtime.session import Session

_ERRORS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)


class Fitting:
    """Tries shapes on a graph: by ONNX's inference where that knows all of them, else by a run on made-up values.

    Args:
        graph: whose inputs the shapes are of.
        like: a feed that the graph takes. Its values are repeated or cut to other shapes.
    """

    def __init__(self, graph: gs.Graph, like: Feeds) -> None:
        self._graph, self._like = graph, dict(like)
        self._proto: onnx.ModelProto | None = None
        self._session: Session | chain.Chain | None = None
        self._inference: bool | None = None  # whether it tells all shapes of the feed that fits

    def misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Why inputs of these shapes do not fit together, in one sentence; empty where they do.

        Inputs that are not named are as in the feed.
        """
        known = {name: value.shape for name, value in self._like.items() if isinstance(value, np.ndarray)}
        wanted = {**known, **shapes}
        if self._inference is None:
            self._inference = self._inferred(known) == ""
        if self._inference:
            why = self._inferred(wanted)
            if why is not None:
                return why
        return self._run(wanted)

    def _inferred(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What inference says; None where it does not know the shape of every tensor, or makes nothing of something."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._skeleton())
        for value in proto.graph.input:
            if value.name not in shapes or not value.type.HasField("tensor_type"):
                continue
            dims = value.type.tensor_type.shape
            del dims.dim[:]
            for size in shapes[value.name]:
                dims.dim.add(dim_value=size)
        try:
            found = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        except _ERRORS as error:
            return " ".join(str(error).split())[:300]
        tensors = {one.name: one.type.tensor_type for one in (*found.graph.value_info, *found.graph.output)}
        made = [name for node in found.graph.node for name in node.output if name]
        if not all(name in tensors and _fixed(tensors[name]) for name in made):
            return None
        empty = any(dim.dim_value <= 0 for name in made for dim in tensors[name].shape.dim)
        # A window that is larger than what it slides over gives a size of 0 here, and an error in a run
        return None if empty and all(0 not in shape for shape in shapes.values()) else ""

    def _skeleton(self) -> onnx.ModelProto:
        """The graph without what it says of shapes: that may speak of one size only."""
        if self._proto is None:
            self._proto = models.to_proto(self._graph)[0]
            del self._proto.graph.value_info[:]
            for value in self._proto.graph.output:
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
        return self._proto

    def _run(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """What ONNX Runtime says: first to resized values, then with zeros for whole numbers, which may be indices."""
        try:
            self._session = self._session or chain.opened(*models.to_proto(self._graph))
        except ModelError as error:
            return str(error)
        why = ""
        for indices in (True, False):
            feed = {name: _resized(value, shapes.get(name), indices) for name, value in self._like.items()}
            try:
                self._session.run(feed)
            except (DataError, ModelError) as error:
                why = why or str(error)
            else:
                return ""
        return why


def _fixed(tensor: onnx.TypeProto.Tensor) -> bool:
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _resized(value: Array, shape: tuple[int, ...] | None, indices: bool) -> Array:
    if shape is None or not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind in "iu" and not indices:
        return np.zeros(shape, value.dtype)
    return np.resize(value, shape) if value.size else np.zeros(shape, value.dtype)
