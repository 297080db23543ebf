"""The constant operand of linear nodes, also where Transpose, Reshape, Cast and the like stand before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import (
    axes_of,
    constant_value,
    is_constant,
    is_linear,
    is_op,
    output_axis,
    permutation,
    producer,
)
from qcompiler.ir.operators import VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray


Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Weight:
    """The constant operand of a linear node.

    Attributes:
        node: the linear node.
        index: which of its inputs it is.
        tensor: the initializer at the end of the chain.
        chain: nodes between them, from the initializer to `node` (Transpose, Reshape, Cast, ...); mostly empty.
        axis: axis of the output channels in the tensor that `node` reads.
        stored_axis: the same axis in `tensor`; None where a Reshape mixes it with another.
    """

    node: gs.Node
    index: int
    tensor: gs.Constant
    chain: tuple[gs.Node, ...]
    axis: int
    stored_axis: int | None


def weight_of(node: gs.Node) -> Weight | None:
    """The weight of a Conv, ConvTranspose, Gemm or MatMul; None where it is computed at run time.

    A MatMul whose constant stands on the left (W · x) is found too: its output channels are then the last axis but one.
    """
    if not is_linear(node) or len(node.inputs) < 2:
        return None
    for index in (1, 0) if is_op(node, "MatMul") else (1,):
        found = _constant_behind(node.inputs[index])
        if found is None:
            continue
        tensor, chain = found
        shapes = _shapes_along(tuple(int(dim) for dim in tensor.shape), chain)
        if shapes is None:
            return Weight(node, index, tensor, chain, -1, None)
        axis = output_axis(node, index) if not is_op(node, "MatMul") else max(len(shapes[-1]) - (2 - index), 0)
        return Weight(node, index, tensor, chain, axis, _axis_before(axis, shapes, chain))
    return None


def stored_axis(node: gs.Node, shape: Shape, chain: Sequence[gs.Node]) -> int | None:
    """Axis of the output channels in what stands before `chain`, a tensor of `shape` that arrives as input 1 of `node`.

    None where a node of the chain cannot be followed, or mixes that axis with another.
    """
    shapes = _shapes_along(shape, chain)
    if shapes is None:
        return None
    axis = output_axis(node, 1) if not is_op(node, "MatMul") else max(len(shapes[-1]) - 1, 0)
    return _axis_before(axis, shapes, chain)


def _constant_behind(tensor: gs.Tensor) -> tuple[gs.Constant, tuple[gs.Node, ...]] | None:
    chain: list[gs.Node] = []
    while not is_constant(tensor):
        node = producer(tensor)
        if node is None or not is_op(node, *VIEWS):
            return None
        if any(constant_value(option) is None for option in node.inputs[1:] if option.name):
            return None
        chain.append(node)
        tensor = node.inputs[0]
    return tensor, tuple(reversed(chain))


def _shapes_along(shape: Shape, chain: Sequence[gs.Node]) -> list[Shape] | None:
    """The shape of the constant and behind each node of the chain; None where a node cannot be followed."""
    shapes = [shape]
    for node in chain:
        after = _shape_after(node, shapes[-1])
        if after is None:
            return None
        shapes.append(after)
    return shapes


def _shape_after(node: gs.Node, shape: Shape) -> Shape | None:
    if is_op(node, "Cast", "Identity"):
        return shape
    if is_op(node, "Transpose"):
        return tuple(shape[axis] for axis in permutation(node, len(shape)))
    if is_op(node, "Flatten"):
        axis = int(node.attrs.get("axis", 1)) % (len(shape) + 1)
        return (math.prod(shape[:axis]), math.prod(shape[axis:]))
    if is_op(node, "Reshape"):
        return _reshaped(node, shape)
    axes = axes_of(node)
    if axes is None:
        return tuple(dim for dim in shape if dim != 1) if is_op(node, "Squeeze") else None
    if is_op(node, "Squeeze"):
        gone = {axis % len(shape) for axis in axes}
        return tuple(dim for i, dim in enumerate(shape) if i not in gone)
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def _reshaped(node: gs.Node, shape: Shape) -> Shape | None:
    wanted = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    if wanted is None:
        return None
    keep_zero = bool(node.attrs.get("allowzero", 0))
    dims = [int(d) for d in wanted]
    dims = [shape[i] if d == 0 and not keep_zero and i < len(shape) else d for i, d in enumerate(dims)]
    if -1 in dims:
        known = math.prod(d for d in dims if d != -1)
        dims[dims.index(-1)] = math.prod(shape) // known if known else 0
    return tuple(dims)


def _axis_before(axis: int, shapes: Sequence[Shape], chain: Sequence[gs.Node]) -> int | None:
    """Follows an axis from behind the chain back to the constant."""
    for before, after, node in reversed(list(zip(shapes, shapes[1:], chain, strict=False))):
        if is_op(node, "Transpose"):
            axis = permutation(node, len(before))[axis]
            continue
        if before == after:
            continue
        matches = [
            i
            for i in range(len(before))
            if before[i] == after[axis] and math.prod(before[:i]) == math.prod(after[:axis])
        ]
        if not matches:
            return None
        axis = matches[-1] if after[axis] != 1 else matches[0]
    return axis


def matrix(node: gs.Node) -> NDArray[np.float32] | None:
    """The weight as it multiplies rows from the right, [channels in, channels out].

    Nodes between the initializer and the product are applied. Of a Conv with one group, the outputs of each of its taps
    stand side by side. None where the weight is not a float constant, stands on the left, has another number of
    dimensions, or belongs to several groups. The result may be a view of the (read-only) initializer.
    """
    weight = weight_of(node)
    if weight is None or matrix_shape(node) is None:
        return None
    values = weight.tensor.values
    if is_op(node, "Conv"):
        taps: NDArray[np.float32] = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        return taps
    for link, shape in zip(weight.chain, _chain_shapes(weight)[1:], strict=True):
        values = values.transpose(permutation(link, values.ndim)) if is_op(link, "Transpose") else values.reshape(shape)
    found: NDArray[np.float32] = values.T if is_op(node, "Gemm") and node.attrs.get("transB", 0) else values
    return found


def matrix_shape(node: gs.Node) -> tuple[int, int] | None:
    """The shape of `matrix`, which is not made for it; None where there is none."""
    weight = weight_of(node)
    if weight is None or np.dtype(weight.tensor.dtype) != np.float32:
        return None
    if is_op(node, "Conv"):
        sizes = tuple(map(int, weight.tensor.shape))
        whole = not weight.chain and int(node.attrs.get("group", 1)) == 1
        return (sizes[1], math.prod(sizes) // max(sizes[1], 1)) if whole else None
    if weight.index != 1 or not is_op(node, "MatMul", "Gemm") or any(is_op(link, "Cast") for link in weight.chain):
        return None
    shapes = _chain_shapes(weight)
    if len(shapes) <= len(weight.chain) or len(shapes[-1]) != 2:
        return None
    rows, columns = shapes[-1]
    return (columns, rows) if is_op(node, "Gemm") and node.attrs.get("transB", 0) else (rows, columns)


def _chain_shapes(weight: Weight) -> list[Shape]:
    """The shape of the constant and behind each node of its chain, as far as that can be followed."""
    shapes: list[Shape] = [tuple(map(int, weight.tensor.shape))]
    for link in weight.chain:
        after = _shape_after(link, shapes[-1])
        if after is None:
            break
        shapes.append(after)
    return shapes


class Matrices(Sequence["NDArray[np.float32]"]):
    """The weights of some nodes as of `matrix`, each made when it is looked at where weights are made of stored ones.

    Args:
        nodes: that have a matrix.

    Attributes:
        shapes: [channels in, channels out] of each.
    """

    def __init__(self, nodes: Sequence[gs.Node]) -> None:
        self._nodes = tuple(nodes)
        self.shapes = [shape for node in nodes if (shape := matrix_shape(node)) is not None]

    def __len__(self) -> int:
        return len(self._nodes)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> Matrices: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | Matrices:
        if isinstance(index, slice):
            return Matrices(self._nodes[index])
        found = matrix(self._nodes[index])
        assert found is not None  # whoever made this has looked
        return found
