"""x → Conv → y, with FP16 in the file that this came from  ⇒  x(fp16) → Cast fp32 → Conv → Cast fp16 → y(fp16).

Names stay. Where what reads an input wants its type anyway, or an output comes in its type, there is no Cast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Note, Pass, Widened
from qcompiler.passes.recurrent import recurrent_reader
from qcompiler.passes.types._values import FP32, FP64, as_type

_BF16 = np.dtype(ml_dtypes.bfloat16)
_ANY = ("Shape", "Size")  # read whatever type there is


@dataclass(frozen=True)
class RestoreEnds(Pass):
    """Give inputs and outputs the float types again that they have in the source.

    Attributes:
        ends: these types by the name of input or output; those that are FP32 no more are left alone.
        engine: of the target; what it cannot have stays FP32, with a note that has the reason.
    """

    ends: Mapping[str, np.dtype[np.generic]] = field(default_factory=dict, repr=False)
    engine: str = "tensorrt-rtx"

    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per input and output."""
        names = Names(graph)
        entering = {id(tensor) for tensor in graph.inputs}
        for tensor in {id(one): one for one in (*graph.inputs, *graph.outputs)}.values():
            dtype = self.ends.get(tensor.name)
            if dtype is None or graphs.dtype_of(tensor) != FP32:
                continue
            why = self._refused(tensor, dtype, id(tensor) in entering)
            if why:
                yield Widened(tensor.name, f"{dtype} in the source, float32 in what is written: {why}")
                continue
            give = _entering if id(tensor) in entering else _leaving
            give(graph, tensor, dtype, names)
            yield Changed(tensor.name, f"{dtype}, as in the source")

    def _refused(self, tensor: gs.Tensor, dtype: np.dtype[np.generic], entering: bool) -> str:
        """Why an end cannot have its type; empty where it can."""
        if self.engine != "onnxruntime" and dtype == FP64:
            return "TensorRT has no inputs and outputs in double"
        if self.engine == "onnxruntime" and dtype == _BF16:
            return "ONNX Runtime's run() takes and gives numpy arrays, which have no bfloat16"
        layer = recurrent_reader(tensor) if entering and self.engine == "tensorrt-rtx" else ""
        return f"'{layer}' reads it, a recurrent layer, which cannot be built behind a Cast" if layer else ""


def _entering(graph: gs.Graph, tensor: gs.Variable, dtype: np.dtype[np.generic], names: Names) -> None:
    """An input: what reads FP32 reads a Cast of it."""
    tensor.dtype = dtype
    own = {id(node) for node in graph.nodes}
    wanting = []
    for node, index in graphs.consumers(tensor):
        if graphs.is_op(node, "Cast") and dtype != FP64:
            if id(node) in own and graphs.np_dtype(node.attrs["to"]) == dtype:
                _bypass(graph, node)
        elif not graphs.is_op(node, *_ANY):
            wanting.append((node, index))
    inner = [one for one in graphs.graphs(graph) if one is not graph and graphs.is_output(one, tensor)]
    if not wanting and not inner:
        return
    wide = gs.Variable(names.fresh(f"{tensor.name}/fp32"), FP32, tensor.shape)
    edit.insert_at(graph, 0, [_cast(tensor, wide, names)])
    for node, index in wanting:
        edit.set_input(node, index, wide)
    _hand_on(inner, tensor, wide)


def _bypass(graph: gs.Graph, node: gs.Node) -> None:
    """Takes a Cast away whose input has the type already."""
    source, out = node.inputs[0], node.outputs[0]
    if not edit.why_not_replace(graph, out, source):
        edit.replace_uses(graph, out, source)
        edit.remove_node(graph, node)


def _leaving(graph: gs.Graph, tensor: gs.Tensor, dtype: np.dtype[np.generic], names: Names) -> None:
    """An output: a Cast makes it of what is FP32, which all others read."""
    if isinstance(tensor, gs.Constant):
        stored = gs.Constant(tensor.name, as_type(graphs.values_of(tensor), dtype))
        tensor.name = names.fresh(f"{tensor.name}/fp32")
        graph.outputs[:] = [stored if one is tensor else one for one in graph.outputs]
        return
    node, uses = graphs.producer(tensor), graphs.consumers(tensor)
    inner = [one for one in graphs.graphs(graph) if one is not graph and graphs.is_output(one, tensor)]
    if node is None:
        return
    source = node.inputs[0] if graphs.is_op(node, "Cast") and not uses and not inner else None
    if source is not None and graphs.dtype_of(source) == dtype and not edit.why_not_replace(graph, tensor, source):
        edit.replace_uses(graph, tensor, source)
        edit.remove_node(graph, node)
        return
    wide = gs.Variable(names.fresh(f"{tensor.name}/fp32"), FP32, tensor.shape)
    edit.set_output(node, next(i for i, one in enumerate(node.outputs) if one is tensor), wide)
    for reader, index in uses:
        edit.set_input(reader, index, wide)
    _hand_on(inner, tensor, wide)
    tensor.dtype = dtype
    edit.insert_after(graph, node, _cast(wide, tensor, names))


def _hand_on(inner: list[gs.Graph], old: gs.Tensor, new: gs.Tensor) -> None:
    """Nested graphs that give a tensor of the graph around them as their own result."""
    for one in inner:
        one.outputs[:] = [new if output is old else output for output in one.outputs]


def _cast(source: gs.Tensor, out: gs.Tensor, names: Names) -> gs.Node:
    attrs = {"to": graphs.onnx_type(graphs.dtype_of(out))}
    return gs.Node("Cast", names.fresh(f"{source.name}/Cast"), attrs, [source], [out])
