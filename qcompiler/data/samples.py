"""What is remembered of data that streams by, whatever its order: fingerprints, a fixed sample of it, its shapes."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.ir.signature import Array, Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray


Combination = tuple[tuple[str, tuple[int, ...]], ...]  # the shape of each input of one feed


def fingerprint(feeds: Mapping[str, Array]) -> bytes:
    """16 bytes of BLAKE2b over names, types, shapes and values; names in sorted order."""
    digest = blake2b(digest_size=16)
    for name in sorted(feeds):
        array = feeds[name]
        if not isinstance(array, np.ndarray):  # a sequence or optional
            digest.update(b"".join(fingerprint({name: np.asarray(one)}) for one in array or ()))
            continue
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        if array.dtype.kind in "OU":
            digest.update(repr(array.reshape(-1).tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def elements(feeds: Mapping[str, Array]) -> int:
    """How many elements all inputs of a feed have."""
    return sum(math.prod(np.shape(value)) for value in feeds.values())


def loudness(feeds: Mapping[str, Array]) -> float:
    """How far a sample reaches: the mean over its float inputs of log2 of their largest |x|; 0 where it has none."""
    peaks = [
        float(np.max(np.abs(np.asarray(array, np.float32)), initial=0.0))
        for array in feeds.values()
        if isinstance(array, np.ndarray) and array.dtype.name.startswith(("float", "bfloat"))
    ]
    return sum(math.log2(peak) for peak in peaks if peak > 0) / len(peaks) if peaks else 0.0


def mixed(loud: Sequence[Feeds], quiet: Sequence[Feeds], most: int) -> list[Feeds]:
    """`most` feeds out of two lists, each once: one of `loud`, three of `quiet`, and so on while there are any."""
    turns: list[Feeds] = []
    for at in range(max(len(loud), len(quiet))):
        turns += [*loud[at : at + 1], *quiet[3 * at : 3 * at + 3]]
    return list({fingerprint(feeds): feeds for feeds in turns}.values())[:most]


class Keep:
    """The `k` feeds with the smallest fingerprints: a sample of the data that its order cannot change.

    Equal feeds are kept once. Arrays are copied, so that feeds may be views of a buffer that is used again.

    Attributes:
        feeds: what is kept, ordered by fingerprint.
    """

    def __init__(self, k: int, *, key: Callable[[Mapping[str, Array]], float] | None = None) -> None:
        """`k` is how many to keep, at least 0; with a key, those with the largest are kept, ordered by it."""
        self.k, self._key = k, key
        self.feeds: list[Feeds] = []
        self._prints: list[tuple[float, bytes]] = []

    def offer(self, feeds: Mapping[str, Array]) -> None:
        """Takes `feeds` in if they belong to the sample so far."""
        self._insert((0.0 if self._key is None else -self._key(feeds), fingerprint(feeds)), feeds)

    def merge(self, other: Keep) -> None:
        """Takes in what another worker has kept."""
        for key, feeds in zip(other._prints, other.feeds, strict=True):
            self._insert(key, feeds)

    def _insert(self, key: tuple[float, bytes], feeds: Mapping[str, Array]) -> None:
        at = bisect_left(self._prints, key)
        if at >= self.k or (at < len(self._prints) and self._prints[at] == key):
            return
        self._prints.insert(at, key)
        self.feeds.insert(at, {name: _copy(array) for name, array in feeds.items()})
        del self._prints[self.k :], self.feeds[self.k :]


def _copy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copy(one) for one in value]
    return None if value is None else np.array(value)


class ShapeRange:
    """Watches feeds and knows the shapes of their inputs, together, and how often each came.

    Attributes:
        seen: how many feeds had these shapes; a combination is the shape of each input, in sorted order of the names.
            Sequences and optionals have none and are left out.
    """

    def __init__(self) -> None:
        self.seen: Counter[Combination] = Counter()

    def watch(self, feeds: Mapping[str, Array]) -> None:
        """Counts the shapes of one feed."""
        shapes = ((name, feeds[name].shape) for name in sorted(feeds) if isinstance(feeds[name], np.ndarray))
        self.seen[tuple(shapes)] += 1

    def merge(self, other: ShapeRange) -> None:
        """Adds what another worker has seen."""
        self.seen.update(other.seen)


class Fingerprint:
    """A hash over feeds that does not depend on their order: the sum of the hashes of each, modulo 2^256."""

    def __init__(self) -> None:
        self.feeds = 0
        self._sum = 0

    def add(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Adds one feed: names, dtypes, shapes and bytes of its arrays."""
        digest = hashlib.blake2b(fingerprint(feed), digest_size=32).digest()  # spread over all bits of the sum
        self.feeds += 1
        self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)

    def __str__(self) -> str:
        """64 hex digits."""
        return f"{self._sum:064x}"
