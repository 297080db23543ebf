"""Feeds joined to batches, and taken apart into samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcompiler.ir.signature import Feeds, Inputs


def batched(feeds: Iterator[Feeds], size: int, inputs: Inputs) -> Iterator[Feeds]:
    """Consecutive feeds joined along axis 0, `size` at a time; what does not join stays as it is."""
    group: list[Feeds] = []
    for one in feeds:
        if group and not _joins(group[0], one, inputs):
            yield _join(group, inputs)
            group = []
        group.append(one)
        if len(group) == size:
            yield _join(group, inputs)
            group = []
    if group:
        yield _join(group, inputs)


def _is_free(name: str, inputs: Inputs) -> bool:
    shape = inputs[name][1]
    return inputs[name][0] is not None and shape is not None and len(shape) > 0 and not isinstance(shape[0], int)


def _joins(first: Feeds, other: Feeds, inputs: Inputs) -> bool:
    for feeds in (first, other):
        rows = {feeds[name].shape[0] for name in feeds if _is_free(name, inputs)}
        if len(rows) != 1:
            return False
    for name in inputs:
        one, two = first[name], other[name]
        if inputs[name][0] is None:
            return False
        if _is_free(name, inputs):
            if one.shape[1:] != two.shape[1:]:
                return False
        elif one.size != 1 or not np.array_equal(one, two):
            return False
    return True


def _join(group: list[Feeds], inputs: Inputs) -> Feeds:
    if len(group) == 1:
        return group[0]
    return {
        name: np.concatenate([feeds[name] for feeds in group]) if _is_free(name, inputs) else group[0][name]
        for name in inputs
    }


def samples_of(feed: Feeds, inputs: Inputs) -> Iterator[Feeds]:
    """A batched feed sample by sample; the feed itself where its inputs have no common batch axis."""
    arrays = {name: array for name, array in feed.items() if isinstance(array, np.ndarray) and array.ndim}
    sizes = {len(array) for array in arrays.values()}
    free = len(arrays) == len(feed) and all(_has_batch_axis(inputs[name][1]) for name in arrays)
    if len(sizes) != 1 or not free or max(sizes) <= 1:
        yield feed
        return
    for i in range(max(sizes)):
        yield {name: array[i : i + 1] for name, array in feed.items()}


def _has_batch_axis(shape: tuple[int | str | None, ...] | None) -> bool:
    return shape is None or (len(shape) > 0 and not isinstance(shape[0], int))
