"""What products are written with: axes moved, joined and summed over, of constants at once, and the product itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import InternalError
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.node_writer import NodeWriter

AXES_ARE_INPUTS = 13  # the opset from which Squeeze, Unsqueeze, Split and ReduceSum read their axes or sizes

SIZES_ARE_READ = 15  # the opset from which Shape reads some axes; Reshape takes a size of 0 from 14 on


class Writer(NodeWriter):
    """Collects nodes that compute in the float type of `node`.

    Raises:
        InternalError: neither the output of the node nor one of its inputs has a type.
    """

    def __init__(self, graph: gs.Graph, node: gs.Node, names: Names) -> None:
        types = map(graphs.dtype_of, (node.outputs[0], *node.inputs))
        dtype = next((one for one in types if one is not None), None)
        if dtype is None:
            raise InternalError(f"node '{node.name}' ({node.op}) is written out, and its type is not known")
        super().__init__(graph, node, names, dtype)

    def add(self, op: str, inputs: Sequence[gs.Tensor], *, name: str = "", **attrs: Any) -> gs.Tensor:
        """One more node with one output, called after its operator, or `name` where that is given."""
        return self.ops(op, f"{op}_out", inputs, 1, name=name or self.fresh(op), **attrs)[0]

    def split(self, tensor: gs.Tensor, axis: int, widths: Sequence[int]) -> list[gs.Tensor]:
        """Parts of these widths along an axis."""
        sizes = self.integers("sizes", widths)
        return self.ops("Split", "part", [tensor, sizes], len(widths), name=self.fresh("Split"), axis=axis)

    def matmul(self, left: gs.Tensor, right: gs.Tensor, *, name: str = "") -> gs.Tensor:
        """Their product; called like the node itself where no name is given, so that it is found again."""
        return self.add("MatMul", [left, right], name=name or self.node.name)

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
        return self.add("Reshape", [tensor, self.integers("shape", shape)])

    def flatten(self, tensor: gs.Tensor, kept: int, rank: int) -> gs.Tensor:
        """The axes behind the first `kept` as one, whatever their sizes are, 0 too: these are read from the tensor."""
        integer = np.dtype(np.int64)
        front = [self.op("Shape", "kept", [tensor], dtype=integer, start=0, end=kept)] if kept else []
        sizes = [
            self.op("Shape", "size", [tensor], dtype=integer, start=axis, end=axis + 1) for axis in range(kept, rank)
        ]
        joined = sizes[0]
        for one in sizes[1:]:
            joined = self.op("Mul", "joined", [joined, one], dtype=integer)
        shape = self.op("Concat", "shape", [*front, joined], dtype=integer, axis=0)
        return self.add("Reshape", [tensor, shape], allowzero=1)

    def unsqueeze(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """New axes of size 1, counted in the result; the tensor itself where there are none."""
        if not axes:
            return tensor
        if graphs.is_constant(tensor):
            return self.constant("unsqueezed", np.expand_dims(graphs.values_of(tensor), tuple(axes)))
        return self.add("Unsqueeze", [tensor, self.integers("axes", axes)])

    def squeeze(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Without these axes of size 1; the tensor itself where none is named."""
        return self.add("Squeeze", [tensor, self.integers("axes", axes)]) if axes else tensor

    def sum(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """The sum over these axes, which go; the tensor itself where none is named."""
        if not axes:
            return tensor
        if graphs.is_constant(tensor):
            return self.constant("summed", np.asarray(graphs.values_of(tensor).sum(tuple(axes))))
        return self.add("ReduceSum", [tensor, self.integers("axes", axes)], keepdims=0)

    def replace(self, result: gs.Tensor) -> None:
        """Puts the nodes in the place of the old one, whose only output is `result` from now on."""
        self.result(0, result)
        self.finish()
