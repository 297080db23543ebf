"""Which channel scales which element of a tensor: index arrays, and how they move backwards through views.

An index array has the rank of its tensor. Along an axis it has length 1 (nothing depends on that axis) or the length
of the axis; its entries are channels of the tensor where the walk began, or `NONE` for elements that stay as they are.
Attention is why one axis does not do: the channels of [B, S, H·D] live on two axes of [B, H, S, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler.ir.graph import axes_of, is_op, permutation

Index = NDArray[np.int64]
Dims = Sequence[int | str | None]
NONE = -1


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
    """Row-major order: from either end, runs of axes with equal products hold the same elements in the same order."""
    index = compact(index)
    dims = [length if length > 1 else dim for length, dim in zip(index.shape, after, strict=True)]
    varies = [length > 1 for length in index.shape]
    alike = _known(before) == _known(dims) and len(before) - _count(before) == len(dims) - _count(dims)
    tail = _runs(before[::-1], dims[::-1], varies[::-1], alike)
    done_before, done_after = sum(len(run.before) for run in tail), sum(len(run.after) for run in tail)
    rest_before, rest_after = len(before) - done_before, len(dims) - done_after
    head = _runs(before[:rest_before], dims[:rest_after], varies[:rest_after], alike)
    head_before, head_after = sum(len(run.before) for run in head), sum(len(run.after) for run in head)
    left, right = before[head_before:rest_before], dims[head_after:rest_after]
    fixed = _count(left) == len(left) and _count(right) == len(right)
    if any(varies[head_after:rest_after]) or (fixed and _known(left) != _known(right)):
        return None
    middle = _Run((1,) * len(left), (1,) * len(right))
    runs = [*head, middle, *(_Run(run.before[::-1], run.after[::-1]) for run in reversed(tail))]
    start = 0
    full: list[int] = []  # the index at its full length along the runs where something depends on it
    shape: list[int] = []
    for run in runs:
        stop = start + len(run.after)
        moves = any(varies[start:stop])
        full += run.after if moves else (1,) * len(run.after)
        shape += run.before if moves else (1,) * len(run.before)
        start = stop
    return compact(np.broadcast_to(index, full).reshape(shape))


class _Run(NamedTuple):
    before: tuple[int, ...]
    after: tuple[int, ...]


def _known(dims: Dims) -> int:
    return math.prod(dim for dim in dims if isinstance(dim, int))


def _count(dims: Dims) -> int:
    return sum(isinstance(dim, int) for dim in dims)


def _runs(before: Dims, after: Dims, varies: Sequence[bool], alike: bool) -> list[_Run]:
    """Runs of axes that hold the same elements, from the first axis on, as far as lengths are known.

    One open length in a run is taken for what the others leave of the product. Where the known lengths of both shapes
    agree (`alike`), open axes follow each other in the same order; inference forgets their names.
    """
    runs: list[_Run] = []
    i = j = 0
    while i < len(before) and j < len(after):
        opens = not isinstance(before[i], int) and not isinstance(after[j], int)
        if opens and (alike or (before[i] == after[j] and before[i] is not None)):
            runs.append(_Run((1,), (1,)))
            i, j = i + 1, j + 1
            continue
        run = _run(before[i:], after[j:], varies[j:])
        if run is None:
            break
        runs.append(run)
        i, j = i + len(run.before), j + len(run.after)
    return runs


def _run(before: Dims, after: Dims, varies: Sequence[bool]) -> _Run | None:
    if not isinstance(before[0], int):
        # An open axis of the input takes all the axes next to each other that the channels live on.
        end = next((k for k, one in enumerate(varies) if not one), len(varies))
        lengths = tuple(dim for dim in after[:end] if isinstance(dim, int))
        return _Run((math.prod(lengths),), lengths) if lengths else None
    left, right = [before[0]], [after[0]] if isinstance(after[0], int) else []
    if not right:
        return None
    while math.prod(left) != math.prod(right):
        short, long, dims = (left, right, before) if math.prod(left) < math.prod(right) else (right, left, after)
        if len(short) == len(dims) or not math.prod(short) > 0:
            return None
        following = dims[len(short)]
        if isinstance(following, int):
            short.append(following)
            continue
        if math.prod(long) % math.prod(short):
            return None
        short.append(math.prod(long) // math.prod(short))
    return _Run(tuple(left), tuple(right))


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
