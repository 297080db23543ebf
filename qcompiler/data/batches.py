"""Which axis of the inputs counts samples; feeds joined to batches along it, and taken apart into samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qcompiler.ir.signature import Feeds


@dataclass(frozen=True)
class BatchAxes:
    """The axis of each input along which a model treats everything by itself.

    Attributes:
        axes: by input name. Inputs that are not in it are shared by all samples of a feed. Empty: no axis is known to
            be a batch, and a feed is one sample, as it was given.
        how: how this is known: `told`, `run` (samples joined gave what they give apart), or empty where it is not.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    how: str = ""

    def count(self, feed: Mapping[str, Any]) -> int:
        """How many samples a feed has; 1 where no batch is known, or its inputs do not agree on the number."""
        sizes = {self._size(feed.get(name), axis) for name, axis in self.axes.items()}
        return max(sizes.pop() or 1, 1) if len(sizes) == 1 else 1

    def take(self, feed: Feeds, indices: Sequence[int]) -> Feeds:
        """A feed of some of its samples, as copies. Only samples that `count` knows of can be asked for."""
        chosen = list(indices)
        return {
            name: np.take(value, chosen, self.axes[name]) if name in self.axes else value
            for name, value in feed.items()
        }

    def joins(self, first: Feeds, other: Feeds) -> bool:
        """Whether two feeds can be one: equal but for the number of samples, and in all that samples share."""
        if not self.axes or first.keys() != other.keys():
            return False
        if not (self._agrees(first) and self._agrees(other)):
            return False
        return all(self._fits(name, first[name], other[name]) for name in first)

    def joined(self, feeds: Sequence[Feeds]) -> Feeds:
        """Feeds that join as one; a feed alone is returned as it is."""
        if len(feeds) == 1:
            return feeds[0]
        return {
            name: np.concatenate([one[name] for one in feeds], self.axes[name]) if name in self.axes else value
            for name, value in feeds[0].items()
        }

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"axes": dict(self.axes), "how": self.how or "not known"}

    def _agrees(self, feed: Feeds) -> bool:
        sizes = {self._size(feed.get(name), axis) for name, axis in self.axes.items()}
        return len(sizes) == 1 and None not in sizes

    def _fits(self, name: str, one: Any, two: Any) -> bool:
        if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray) or one.ndim != two.ndim:
            return False
        axis = self.axes.get(name)
        if axis is None:
            return bool(np.array_equal(one, two))
        return bool(one.shape[:axis] == two.shape[:axis] and one.shape[axis + 1 :] == two.shape[axis + 1 :])

    @staticmethod
    def _size(value: Any, axis: int) -> int | None:
        return value.shape[axis] if isinstance(value, np.ndarray) and axis < value.ndim else None


NO_BATCH = BatchAxes()


def samples_of(feed: Feeds, axes: BatchAxes) -> Iterator[Feeds]:
    """A feed sample by sample, as views of it; the feed itself where no batch is known or there is one sample."""
    count = axes.count(feed)
    if count == 1:
        yield feed
        return
    for index in range(count):
        yield {name: _slice(value, axes.axes.get(name), index) for name, value in feed.items()}


def _slice(value: Any, axis: int | None, index: int) -> Any:
    return value if axis is None else value[(slice(None),) * axis + (slice(index, index + 1),)]


def batched(feeds: Iterator[Feeds], size: int, axes: BatchAxes) -> Iterator[Feeds]:
    """Consecutive feeds joined along the batch axes, `size` at a time; what does not join stays as it is."""
    return (axes.joined(group) for group in groups(feeds, size, axes))


def groups(feeds: Iterator[Feeds], size: int, axes: BatchAxes) -> Iterator[list[Feeds]]:
    """Consecutive feeds that join along the batch axes, up to `size` together; what does not join stands alone."""
    group: list[Feeds] = []
    for one in feeds:
        if group and not axes.joins(group[0], one):
            yield group
            group = []
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
