"""x(fp32) → Node ⇒ x → Cast → Node(fp16): makes the chosen nodes compute in half and puts Casts at the borders.

One Cast per tensor and type, shared by all that need it, and never two in a row: what already comes out of a Cast is
cast from its source instead, and DequantizeLinear and ConstantOfShape write the type that is asked of them. Constants
are converted once and have no Cast. A Cast stands in the graph that the tensor belongs to, for nested graphs as well.
What enters and leaves a graph keeps type and name, but for what `view.borders` lists, which keeps its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import InternalError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import FP32, Slots
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Note
from qcompiler.passes.high_precision import _borders as borders
from qcompiler.passes.high_precision._view import NUMPY, TypingView
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


Use = tuple[gs.Node, int]
Bounds = tuple[float, float]
_ANY = ("Cast", "Shape", "Size")  # read whatever type there is


@dataclass
class Casting:
    """What to insert where, over the graph and all nested ones.

    Attributes:
        view: the graph, edited in place, with the types as it was, bounds of constants, and the inputs and outputs that
            have the lower type.
        slots: what moves, of every node that computes in the lower type (or hands it through nested graphs), by
            id(node).
        typed_dequantize: DequantizeLinear may have `output_dtype`.
    """

    view: TypingView
    slots: Mapping[int, Slots]
    typed_dequantize: bool
    dtype: DType = field(init=False)
    graph: gs.Graph = field(init=False)
    _names: Names = field(init=False)
    _copies: dict[tuple[int, Bounds | None], gs.Constant] = field(init=False, default_factory=dict)
    _homes: dict[int, gs.Graph] = field(init=False)
    _outputs: set[int] = field(init=False)

    def __post_init__(self) -> None:
        """Names and places are collected once."""
        self.dtype, self.graph = self.view.dtype, self.view.graph
        self._names = Names(self.graph)
        self._homes = {id(tensor): home for home, tensor in borders.owners(self.graph)}
        self._outputs = {id(tensor) for one in graphs.graphs(self.graph) for tensor in one.outputs}

    def apply(self) -> Iterator[Note]:
        """Converts constants and tensors; yields a note per edit."""
        tensors = {id(t): t for inner in graphs.graphs(self.graph) for t in graphs.tensors(inner)}
        for tensor in list(tensors.values()):
            if self.view.types.get(id(tensor)) != FP32:
                continue
            low, high = self._uses(tensor)
            if isinstance(tensor, gs.Constant):
                yield from self._constant(tensor, low, bool(high))
            elif id(tensor) in self._homes:
                yield from self._variable(tensor, low, high)
        for inner in list(graphs.graphs(self.graph)):
            yield from self._drop_idle(inner)
        edit.sort(self.graph)

    def _drop_idle(self, graph: gs.Graph) -> Iterator[Note]:
        """Casts to the type that their input has by now, such as an exporter's own Cast back to half."""
        low = NUMPY[self.dtype]
        for node in list(graph.nodes):
            if not graphs.is_op(node, "Cast") or graphs.np_dtype(node.attrs["to"]) != low:
                continue
            source, out = node.inputs[0], node.outputs[0]
            if graphs.dtype_of(source) == low and not edit.why_not_replace(graph, out, source):
                edit.replace_uses(graph, out, source)
                edit.remove_node(graph, node)
                yield Changed(node.name, f"removed: its input is {self.dtype} already")

    def _uses(self, tensor: gs.Tensor) -> tuple[list[Use], list[Use]]:
        """Uses that want the lower type and uses that want FP32; those that read anything are in neither."""
        low: list[Use] = []
        high: list[Use] = []
        for node, index in graphs.consumers(tensor):
            if id(node) in self.slots and index in self.slots[id(node)].inputs:
                low.append((node, index))
            elif not graphs.is_op(node, *_ANY):
                high.append((node, index))
        return low, high

    def _constant(self, tensor: gs.Constant, low: list[Use], shared: bool) -> Iterator[Note]:
        shared = shared or id(tensor) in self._outputs
        bounds = {self.view.clamps.get((id(node), index)) for node, index in low}
        for node, index in low:
            clamp = self.view.clamps.get((id(node), index))
            key = (id(tensor), clamp)
            if key not in self._copies:
                lone = len(bounds) == 1 and not shared
                name = tensor.name if lone else self._names.fresh(f"{tensor.name}/{self.dtype}")
                self._copies[key] = gs.Constant(name, _convert(graphs.values_of(tensor), self.dtype, clamp))
            edit.set_input(node, index, self._copies[key])
        if low:
            yield Changed(tensor.name, f"constant converted to {self.dtype}" + (", fp32 copy kept" if shared else ""))

    def _variable(self, tensor: gs.Variable, low: list[Use], high: list[Use]) -> Iterator[Note]:
        node = graphs.producer(tensor)
        fixed = id(tensor) in self._outputs
        if id(tensor) in self.view.borders:
            yield from self._border(node, tensor, low, high, fixed)
        elif node is not None and id(node) in self.slots and self._writes_low(node, tensor):
            yield from self._produced_low(node, tensor, high, fixed)
        elif low and graphs.is_op(node, "Cast") and node is not None:
            yield from self._recast(node, tensor, low, keep=bool(high) or fixed)
        elif low and node is not None and not high and not fixed and self._retype(node, tensor):
            yield Changed(node.name, f"writes {self.dtype}")
        elif low and node is not None and not fixed and self._retype(node, tensor):
            yield Changed(node.name, f"writes {self.dtype}")
            yield self._cast_for(high, tensor, DType.FP32)
        elif low:
            yield self._cast_for(low, tensor, self.dtype)

    def _border(
        self, node: gs.Node | None, tensor: gs.Variable, low: list[Use], high: list[Use], output: bool
    ) -> Iterator[Note]:
        """An input or output of a graph that has the lower type itself, under its name."""
        if output and (node is None or not (id(node) in self.slots and self._writes_low(node, tensor))):
            yield from self._output_from_high(node, tensor, low, high)
            return
        tensor.dtype = NUMPY[self.dtype]
        yield Changed(tensor.name, f"is {self.dtype} where it enters or leaves the graph")
        if high:
            yield self._cast_for(high, tensor, DType.FP32)

    def _output_from_high(
        self, node: gs.Node | None, tensor: gs.Variable, low: list[Use], high: list[Use]
    ) -> Iterator[Note]:
        """An FP32 node writes what leaves the graph in the lower type: a Cast between them, FP32 readers before it."""
        if node is None:
            raise InternalError(f"'{tensor.name}' leaves a graph that does not compute it and cannot change its type")
        if not high and graphs.is_op(node, "Cast"):
            node.attrs["to"] = graphs.onnx_type(NUMPY[self.dtype])
            tensor.dtype = NUMPY[self.dtype]
            yield Changed(node.name, f"casts to {self.dtype}")
            return
        wide = gs.Variable(self._names.fresh(f"{tensor.name}/fp32"), FP32, tensor.shape)
        edit.set_output(node, next(i for i, output in enumerate(node.outputs) if output is tensor), wide)
        self._homes[id(wide)] = self._homes[id(tensor)]
        for reader, index in high:
            edit.set_input(reader, index, wide)
        tensor.dtype = NUMPY[self.dtype]
        yield self._cast(wide, tensor, self.dtype)

    def _writes_low(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        return any(node.outputs[i] is tensor for i in self.slots[id(node)].outputs)

    def _produced_low(self, node: gs.Node, tensor: gs.Variable, high: list[Use], fixed: bool) -> Iterator[Note]:
        """A node that computes in the lower type: FP32 readers get a Cast; an output keeps its name and type."""
        yield Changed(node.name, f"{node.op} computes in {self.dtype}")
        if not fixed:
            tensor.dtype = NUMPY[self.dtype]
            if high:
                yield self._cast_for(high, tensor, DType.FP32)
            return
        native = gs.Variable(self._names.fresh(f"{tensor.name}/{self.dtype}"), NUMPY[self.dtype], tensor.shape)
        self._homes[id(native)] = self._homes[id(tensor)]
        wanting = [use for use in graphs.consumers(tensor) if not any(use[0] is n and use[1] == i for n, i in high)]
        edit.set_output(node, next(i for i, output in enumerate(node.outputs) if output is tensor), native)
        for reader, index in wanting:
            edit.set_input(reader, index, native)
        yield self._cast(native, tensor, DType.FP32)

    def _recast(self, node: gs.Node, tensor: gs.Variable, low: list[Use], *, keep: bool) -> Iterator[Note]:
        """The tensor comes out of a Cast to FP32: cast its source straight to the lower type."""
        source = node.inputs[0]
        if self.view.types.get(id(source)) == NUMPY[self.dtype]:
            for reader, index in low:
                edit.set_input(reader, index, source)
            if not keep:
                edit.remove_node(self._homes[id(tensor)], node)
            yield Changed(node.name, f"bypassed: its input is {self.dtype} already")
            return
        if not keep:
            node.attrs["to"] = graphs.onnx_type(NUMPY[self.dtype])
            tensor.dtype = NUMPY[self.dtype]
            yield Changed(node.name, f"casts to {self.dtype}")
            return
        yield self._cast_for(low, tensor, self.dtype, source)

    def _retype(self, node: gs.Node, tensor: gs.Variable) -> bool:
        """Makes a node write the lower type that takes it as an attribute; False where it does not."""
        element = graphs.onnx_type(NUMPY[self.dtype])
        if graphs.is_op(node, "DequantizeLinear") and self.typed_dequantize:
            node.attrs["output_dtype"] = element
        elif graphs.is_op(node, "ConstantOfShape") and isinstance(node.attrs.get("value"), gs.Constant):
            values = _convert(graphs.values_of(node.attrs["value"]), self.dtype, None)
            if not np.all(np.isfinite(values.astype(np.float32))):
                return False
            node.attrs["value"] = gs.Constant(node.attrs["value"].name, values)
        else:
            return False
        tensor.dtype = NUMPY[self.dtype]
        return True

    def _cast_for(self, uses: list[Use], tensor: gs.Tensor, to: DType, source: gs.Tensor | None = None) -> Note:
        """One Cast behind `tensor` (or from `source`) that all of `uses` read."""
        out = gs.Variable(self._names.fresh(f"{tensor.name}/{to}"), _numpy(to), tensor.shape)
        note = self._cast(tensor if source is None else source, out, to)
        for node, index in uses:
            edit.set_input(node, index, out)
        return note

    def _cast(self, source: gs.Tensor, out: gs.Variable, to: DType) -> Note:
        attrs = {"to": graphs.onnx_type(_numpy(to))}
        node = gs.Node("Cast", self._names.fresh(f"{source.name}/Cast_{to}"), attrs, [source], [out])
        before, home = graphs.producer(source), self._homes.get(id(source), self.graph)
        at = 0 if before is None else edit.index_of(home, before) + 1
        edit.insert_at(home, at, [node])
        self._homes[id(out)] = home
        return Changed(node.name, f"Cast of '{source.name}' to {to}")


def _numpy(dtype: DType) -> np.dtype[Any]:
    return FP32 if dtype is DType.FP32 else NUMPY[dtype]


def _convert(values: NDArray[Any], dtype: DType, clamp: Bounds | None) -> NDArray[Any]:
    if clamp is not None:
        values = np.asarray(np.clip(values, *clamp))  # of a scalar, clip makes no array
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(NUMPY[dtype])
