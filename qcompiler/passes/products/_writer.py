"""Writing nodes in the place of another: each one is named after it, and the last one writes what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

AXES_ARE_INPUTS = 13  # the opset from which Squeeze, Unsqueeze, Split and ReduceSum read their axes or sizes


class Writer:
    """Collects nodes that will stand where `node` stands; nothing is edited before `finish`."""

    def __init__(self, names: Names, node: gs.Node) -> None:
        self._names, self._node = names, node
        self._nodes: list[gs.Node] = []
        self.dtype = graphs.dtype_of(node.outputs[0]) or graphs.dtype_of(node.inputs[0])

    def add(self, op: str, inputs: Sequence[gs.Tensor], *, name: str = "", **attrs: Any) -> gs.Tensor:
        """One more node with one output; it is called `name` where that is given."""
        output = gs.Variable(self._names.fresh(f"{self._node.name}/{op}_out"), self.dtype)
        made = gs.Node(op, name or self._names.fresh(f"{self._node.name}/{op}"), attrs, list(inputs), [output])
        self._nodes.append(made)
        return output

    def split(self, tensor: gs.Tensor, axis: int, widths: Sequence[int]) -> list[gs.Tensor]:
        """Parts of these widths along an axis."""
        parts = [gs.Variable(self._names.fresh(f"{self._node.name}/part"), self.dtype) for _ in widths]
        sizes = self.constant("sizes", np.asarray(widths, np.int64))
        name = self._names.fresh(f"{self._node.name}/Split")
        self._nodes.append(gs.Node("Split", name, {"axis": axis}, [tensor, sizes], list(parts)))
        return list(parts)

    def fresh(self, what: str) -> str:
        """A new name for another node of the same origin."""
        return self._names.fresh(f"{self._node.name}/{what}")

    def constant(self, what: str, values: Array) -> gs.Constant:
        """An initializer called after the node."""
        return edit.add_constant(self._names.fresh(f"{self._node.name}/{what}"), values)

    def matmul(self, left: gs.Tensor, right: gs.Tensor, *, name: str = "") -> gs.Tensor:
        """Their product; called like the node itself where no name is given, so that it is found again."""
        return self.add("MatMul", [left, right], name=name or self._node.name)

    def transpose(self, tensor: gs.Tensor, perm: Sequence[int]) -> gs.Tensor:
        """Axes in another order; the tensor itself where they stand so already. Constants are permuted now."""
        if list(perm) == list(range(len(perm))):
            return tensor
        if graphs.is_constant(tensor):
            return self.constant("transposed", graphs.values_of(tensor).transpose(perm))
        return self.add("Transpose", [tensor], perm=list(perm))

    def reshape(self, tensor: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        """A Reshape, in which 0 keeps a size and -1 takes what is left. Constants are reshaped now."""
        if graphs.is_constant(tensor):
            values = graphs.values_of(tensor)
            kept = [values.shape[i] if size == 0 else size for i, size in enumerate(shape)]
            return self.constant("reshaped", values.reshape(kept))
        return self.add("Reshape", [tensor, self.constant("shape", np.asarray(shape, np.int64))])

    def unsqueeze(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """New axes of size 1, counted in the result; the tensor itself where there are none."""
        if not axes:
            return tensor
        if graphs.is_constant(tensor):
            return self.constant("unsqueezed", np.expand_dims(graphs.values_of(tensor), tuple(axes)))
        return self.add("Unsqueeze", [tensor, self.constant("axes", np.asarray(axes, np.int64))])

    def squeeze(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Without these axes of size 1; the tensor itself where none is named."""
        return self.add("Squeeze", [tensor, self.constant("axes", np.asarray(axes, np.int64))]) if axes else tensor

    def sum(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """The sum over these axes, which go; the tensor itself where none is named."""
        if not axes:
            return tensor
        if graphs.is_constant(tensor):
            return self.constant("summed", np.asarray(graphs.values_of(tensor).sum(tuple(axes))))
        return self.add("ReduceSum", [tensor, self.constant("axes", np.asarray(axes, np.int64))], keepdims=0)

    def finish(self, graph: gs.Graph, result: gs.Tensor) -> None:
        """Puts the nodes in the place of the old one; `result` is one of their outputs, or a tensor handed through."""
        self.finish_all(graph, [result])

    def finish_all(self, graph: gs.Graph, results: Sequence[gs.Tensor | None]) -> None:
        """The same for a node of several outputs; None for those that are left out."""
        at, outputs = edit.index_of(graph, self._node), list(self._node.outputs)
        own = {id(one) for made in self._nodes for one in made.outputs}
        ends = [one if one is None or id(one) in own else self.add("Identity", [one]) for one in results]
        edit.remove_node(graph, self._node)
        for end, output in zip(ends, outputs, strict=True):
            if end is None:
                continue
            last = next(made for made in self._nodes if any(one is end for one in made.outputs))
            for reader, index in graphs.consumers(end):
                edit.set_input(reader, index, output)
            edit.set_output(last, 0, output)
        edit.insert_at(graph, at, self._nodes)
