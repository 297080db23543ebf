"""Which channel scales which element of a tensor: index arrays, and how they move backwards through views.

An index array has the rank of its tensor. Along an axis it has length 1 (nothing depends on that axis) or the length
of the axis; its entries are channels of the tensor where the walk began, or `NONE` for elements that stay as they are.
Attention is why one axis does not do: the channels of [B, S, H·D] live on two axes of [B, H, S, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler.graph import axes_of, is_op, permutation

Index = NDArray[np.int64]
Dims = Sequence[int | str | None]
NONE = -1
VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"})


def along(axis: int, values: Index, rank: int) -> Index:
    """`values` [n] on one axis of an index array of the given rank."""
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def only_axis(index: Index, axis: int) -> Index | None:
    """The entries along one axis [n or 1]; None where they depend on another axis too."""
    axis %= index.ndim
    return index.reshape(-1) if all(n == 1 for i, n in enumerate(index.shape) if i != axis) else None


def compact(index: Index) -> Index:
    """The same with length 1 along every axis on which nothing depends."""
    for axis, length in enumerate(index.shape):
        first = index.take([0], axis)
        if length > 1 and np.array_equal(np.broadcast_to(first, index.shape), index):
            index = first
    return index


def before_view(node: gs.Node, index: Index, before: Dims | None, after: Dims | None) -> Index | None:
    """The index array of the input of a node of `VIEWS`, from that of its output; None where it cannot be told."""
    if is_op(node, "Identity", "Cast"):
        return index
    if is_op(node, "Transpose"):
        return index.transpose(np.argsort(permutation(node, index.ndim)))
    if before is None:
        return None
    if is_op(node, "Reshape", "Flatten"):
        return _before_reshape(index, before, after or [None] * index.ndim)
    axes = axes_of(node)
    if axes is None and is_op(node, "Squeeze"):
        axes = tuple(i for i, dim in enumerate(before) if dim == 1) if None not in before else None
    if axes is None:
        return None
    if is_op(node, "Unsqueeze"):
        return index.squeeze(tuple(axis % index.ndim for axis in axes))
    return np.expand_dims(index, tuple(axis % len(before) for axis in axes))


def _before_reshape(index: Index, before: Dims, after: Dims) -> Index | None:
    index = compact(index)
    varying = [axis for axis, length in enumerate(index.shape) if length > 1]
    if not varying:
        return index.reshape((1,) * len(before))
    first, last = varying[0], varying[-1] + 1
    dims = [length if length > 1 else dim for length, dim in zip(index.shape, after, strict=True)]
    found = _block_behind_equal_axes(before, dims, first, last) or _block_at_the_end(before, dims, first)
    if found is None:
        return None
    start, stop, block, last = found
    entries = index.reshape(index.shape[first:last])
    full = np.broadcast_to(entries, [int(dim) for dim in dims[first:last] if isinstance(dim, int)]).reshape(block)
    return compact(full.reshape((1,) * start + tuple(block) + (1,) * (len(before) - stop)))


Block = tuple[int, int, list[int], int]  # axes of the input from, to; their lengths; end of the axes of the output


def _block_behind_equal_axes(before: Dims, dims: Dims, first: int, last: int) -> Block | None:
    """Row-major order: behind equal leading axes, axes of equal product hold the same elements."""
    wanted = _product(dims[first:last])
    if wanted is None or list(before[:first]) != list(dims[:first]) or None in before[:first]:
        return None
    for stop in range(first + 1, len(before) + 1):
        if _product(before[first:stop]) == wanted:
            return first, stop, [int(dim) for dim in before[first:stop] if isinstance(dim, int)], last
    return None


def _block_at_the_end(before: Dims, dims: Dims, first: int) -> Block | None:
    """The same from the end. The outermost axis of the block may be open: it is what is left to divide."""
    wanted = _product(dims[first:])
    if wanted is None:
        return None
    for start in reversed(range(len(before))):
        rest = _product(before[start + 1 :])
        if rest is None or not 0 < rest <= wanted:
            return None
        outermost = before[start]
        if wanted % rest == 0 and (outermost == wanted // rest or not isinstance(outermost, int)):
            inner = [int(dim) for dim in before[start + 1 :] if isinstance(dim, int)]
            return start, len(before), [wanted // rest, *inner], len(dims)
    return None


def _product(dims: Dims) -> int | None:
    known = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(known) if len(known) == len(dims) else None


def groups(count: int, ties: Sequence[tuple[Index, Index]]) -> Index:
    """Classes of channels [count]: two channels that some pair of `ties` names side by side are in one class."""
    parent = list(range(count))

    def root(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    for left, right in ties:
        pairs = np.unique(np.stack(np.broadcast_arrays(left, right)).reshape(2, -1), axis=1)
        for a, b in pairs.T:
            low, high = sorted((root(int(a)), root(int(b))))
            parent[high] = low
    _, classes = np.unique([root(channel) for channel in range(count)], return_inverse=True)
    return classes.astype(np.int64)
