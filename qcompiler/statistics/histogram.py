"""What calibration remembers of a tensor: a mergeable histogram of |x| whose buckets need no range beforehand.

The bucket of a value is the top 16 bits below the sign of its own float32 bit pattern: 8 bits of exponent and 8 of
mantissa, so every octave has 256 buckets and a bucket is at most 1/256 of its value wide. Nothing has to be known of
the data before the first batch. The whole state is integers and extremes, hence any order, any chunking and any split
over workers gives the same state to the last bit.
"""

from __future__ import annotations

import base64
import hashlib
import math
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.padding import Padding
from qcompiler.statistics import on_device
from qcompiler.support.compiled import Loop

if TYPE_CHECKING:
    from qcompiler.runtime.stream import Part


_SHIFT = 15
_PER_OCTAVE = 256
_OCTAVES = 256
_BUCKETS = _PER_OCTAVE * _OCTAVES
_NONFINITE_OCTAVE = _OCTAVES - 1
_BIAS = 127  # of the exponent of a float32: the octave of 1.0
_BUCKET_MASK = np.uint32(_BUCKETS - 1)

_CHUNK = 1 << 17  # float32 elements that stay in a level 2 cache between the counting and the min/max
_LANES = 4
_LANE_STRIDE = _BUCKETS + 272  # not a multiple of a page: lanes of one bucket must not collide in the cache


class Histogram:
    """Histogram of |x| of one tensor, with its exact extremes.

    Attributes:
        count: elements seen, of any kind.
        zeros: elements with |x| below 2**-134 (4.6e-41), which every target flushes to zero.
        nonfinite: elements that were NaN or infinite; they are in no bucket and no extreme.
    """

    __slots__ = ("_counts", "_first", "_high", "_low", "count", "nonfinite", "zeros")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.count = 0
        self.zeros = 0
        self.nonfinite = 0
        self._low = math.inf
        self._high = -math.inf
        self._first = 0  # octave of the first row of _counts
        self._counts: NDArray[np.uint64] = np.zeros((0, _PER_OCTAVE), np.uint64)

    @classmethod
    def of(cls, array: NDArray[Any]) -> Histogram:
        """The histogram of one array."""
        histogram = cls()
        histogram.update(array)
        return histogram

    @property
    def finite(self) -> int:
        """Elements that were finite."""
        return self.count - self.nonfinite

    @property
    def minimum(self) -> float:
        """Smallest finite value seen, exact and signed; 0.0 before the first."""
        return self._low if self.finite else 0.0

    @property
    def maximum(self) -> float:
        """Largest finite value seen, exact and signed; 0.0 before the first."""
        return self._high if self.finite else 0.0

    @property
    def amax(self) -> float:
        """Largest finite |x| seen, exact; 0.0 before the first."""
        return max(-self.minimum, self.maximum)

    @property
    def amin(self) -> float:
        """Lower edge of the lowest bucket in use: the smallest non-zero |x| seen, to 0.4 %; 0.0 if there is none."""
        if not self._counts.size:
            return 0.0
        return float(_edges(self._first * _PER_OCTAVE + np.flatnonzero(self._counts[0])[:1])[0])

    @property
    def nbytes(self) -> int:
        """Memory of the buckets in bytes: 2 KiB for every octave between the smallest and the largest |x|."""
        return self._counts.nbytes

    def update(self, array: NDArray[Any], *, compiled: bool | None = None) -> None:
        """Adds all elements of an array of any shape.

        float32 is read in place; float16 and bfloat16 are widened exactly, float64 is rounded to float32, a chunk at
        a time. It runs without the interpreter lock, so histograms of different tensors can be updated in threads.

        Args:
            array: floating point values.
            compiled: True or False forces the numba or the numpy way, which are equal to the bit; None takes numba for
                large arrays where it is installed.

        Raises:
            TypeError: the array is not of a floating point type.
        """
        if array.dtype.kind not in "fV" or (array.dtype.kind == "V" and array.dtype.name != "bfloat16"):
            raise TypeError(f"a histogram takes floating point values, not {array.dtype}")
        flat = array.reshape(-1)
        if not flat.size:
            return
        kernel = _COUNT.of(flat.size, compiled)
        scratch = _scratch()
        scratch.clear()
        for start in range(0, flat.size, _CHUNK):
            chunk = _float32(flat[start : start + _CHUNK])
            kernel(chunk.view(np.uint32), scratch.lanes, scratch.touched)
            self._extend(chunk)
        self.count += flat.size
        self._drain(scratch)

    def add(self, counts: NDArray[np.uint64], low: float, high: float, elements: int) -> None:
        """Adds what somebody else has counted.

        Args:
            counts: elements by bucket, uint64 [65536], those that are zero or not finite included.
            low: smallest finite value; infinite without one.
            high: largest; minus infinity without one.
            elements: how many were counted.
        """
        filled = np.flatnonzero(counts.reshape(_OCTAVES, _PER_OCTAVE).any(axis=1))
        if not filled.size:
            return
        first, last = int(filled[0]), int(filled[-1])
        self._take(first, counts.reshape(_OCTAVES, _PER_OCTAVE)[first : last + 1].copy())
        self._low, self._high = min(self._low, low + 0.0), max(self._high, high + 0.0)
        self.count += elements

    def digest(self) -> bytes:
        """A hash of all that was seen: equal for histograms that are equal, 16 bytes."""
        numbers = (self.count, self.zeros, self.nonfinite, self._low, self._high, self._first)
        return hashlib.blake2b(repr(numbers).encode() + self._counts.tobytes(), digest_size=16).digest()

    def merge(self, other: Histogram) -> None:
        """Adds what another histogram has seen; merging parts in any order equals seeing the whole."""
        self._low = min(self._low, other._low)
        self._high = max(self._high, other._high)
        self.count += other.count
        self.zeros += other.zeros
        self.nonfinite += other.nonfinite
        self._add(other._first, other._counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            (self.count, self.zeros, self.nonfinite, self._low, self._high, self._first)
            == (other.count, other.zeros, other.nonfinite, other._low, other._high, other._first)
        ) and np.array_equal(self._counts, other._counts)

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, zeros={self.zeros}, nonfinite={self.nonfinite}, amax={self.amax:g})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, some kilobytes long; `from_dict` reads it back equal."""
        packed = zlib.compress(np.ascontiguousarray(self._counts, "<u8").tobytes(), 6)
        return {
            "count": self.count,
            "zeros": self.zeros,
            "nonfinite": self.nonfinite,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "first": self._first,
            "counts": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """Reads what `to_dict` wrote."""
        histogram = cls()
        histogram.count = int(data["count"])
        histogram.zeros = int(data["zeros"])
        histogram.nonfinite = int(data["nonfinite"])
        if histogram.finite:
            histogram._low, histogram._high = float(data["minimum"]), float(data["maximum"])
        histogram._first = int(data["first"])
        raw = zlib.decompress(base64.b64decode(data["counts"]))
        histogram._counts = np.frombuffer(raw, "<u8").astype(np.uint64).reshape(-1, _PER_OCTAVE)
        return histogram

    # ---- views for calibrators

    def used(self) -> NDArray[np.intp]:
        """Bucket numbers that have elements, ascending (zeros are in none)."""
        return self._first * _PER_OCTAVE + np.flatnonzero(self._counts)

    def counts(self) -> NDArray[np.float64]:
        """Elements in each used bucket."""
        flat = self._counts.reshape(-1)
        return flat[np.flatnonzero(flat)].astype(np.float64)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper edge of each used bucket in the tensor's unit; the last upper edge is `amax` itself."""
        used = self.used()
        lower, upper = _edges(used), _edges(used + 1)
        if used.size:
            upper[-1] = max(self.amax, lower[-1])
        return lower, upper

    def centers(self) -> NDArray[np.float64]:
        """Middle of each used bucket."""
        lower, upper = self.bounds()
        return (lower + upper) / 2

    def widths(self) -> NDArray[np.float64]:
        """Width of each used bucket, at most 1/256 of its lower edge for normal numbers."""
        lower, upper = self.bounds()
        return upper - lower

    def cumulative(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """How many finite elements have |x| <= each of `at`, a bucket's mass being spread evenly over its width."""
        lower, upper = self.bounds()
        if not lower.size:
            return np.full(np.shape(at), float(self.zeros))
        mass = np.cumsum(self.counts()) + self.zeros
        # Gaps between used buckets are flat: both ends of every bucket are knots.
        knots = np.stack([lower, upper], axis=1).reshape(-1)
        values = np.stack([np.concatenate([[self.zeros], mass[:-1]]), mass], axis=1).reshape(-1)
        found: NDArray[np.float64] = np.interp(at, knots, values, left=float(self.zeros))
        return found

    def uniform_bins(self, bins: int, amax: float) -> NDArray[np.float64]:
        """Counts of `bins` equal bins over [0, amax], drawn from the buckets.

        A bucket's mass is spread evenly over its width; zeros go into the first bin and everything above `amax` into
        the last.

        Returns:
            float64 [bins]; the sum is the number of finite elements.
        """
        cumulative = self.cumulative(np.linspace(0.0, amax, bins + 1))
        cumulative[0] = 0.0
        cumulative[-1] = self.finite
        return np.diff(cumulative)

    def quantile(self, p: float) -> float:
        """The |x| that `p` percent of the finite elements do not exceed, interpolated inside its bucket.

        Args:
            p: 0..100; 100 gives the exact `amax`.
        """
        rank = p / 100 * self.finite
        if p >= 100 or not self._counts.size:
            return self.amax
        if self.zeros and rank <= self.zeros:
            return 0.0
        mass = np.cumsum(self.counts()) + self.zeros
        at = min(int(np.searchsorted(mass, rank)), mass.size - 1)
        below = float(mass[at - 1]) if at else float(self.zeros)
        lower, upper = self.bounds()
        return float(lower[at] + (upper[at] - lower[at]) * (rank - below) / (mass[at] - below))

    def octaves(self, most: int = 32) -> dict[str, Any]:
        """A few bars for people: how many elements have |x| in [2**k, 2**(k + 1)), for the largest `most` octaves.

        Returns:
            `first`: k of the first bar; `counts` of the bars; `zeros`, `below` (not zero, and smaller than all bars),
            `minimum` and `maximum` of the values, and how many were seen in all (`elements`).
        """
        rows = [int(count) for count in self._counts.sum(axis=1)]
        cut = max(len(rows) - most, 0)
        return {
            "first": self._first + cut - _BIAS,
            "counts": rows[cut:],
            "zeros": self.zeros,
            "below": sum(rows[:cut]),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "elements": self.count,
        }

    # ---- state

    def _extend(self, chunk: NDArray[np.float32]) -> None:
        """Takes in the extremes of a chunk."""
        low, high = float(chunk.min()), float(chunk.max())
        if not math.isfinite(high - low):  # NaN and infinities propagate into at least one of the two
            finite = chunk[np.isfinite(chunk)]
            if not finite.size:
                return
            low, high = float(finite.min()), float(finite.max())
        # Adding 0.0 turns -0.0 into 0.0: which of the two a reduction returns is not defined.
        self._low = min(self._low, low + 0.0)
        self._high = max(self._high, high + 0.0)

    def _drain(self, scratch: _Scratch) -> None:
        """Moves the counts of this thread's scratch table here and leaves it empty."""
        octaves = np.flatnonzero(scratch.touched)
        first, last = int(octaves[0]), int(octaves[-1])
        span = slice(first * _PER_OCTAVE, (last + 1) * _PER_OCTAVE)
        rows = scratch.planes[:, span].sum(axis=0, dtype=np.uint64).reshape(-1, _PER_OCTAVE)
        scratch.clear()
        self._take(first, rows)

    def _take(self, first: int, rows: NDArray[np.uint64]) -> None:
        """Adds rows of octaves, of which those that are zero or not finite are taken out here."""
        if first == 0:
            self.zeros += int(rows[0, 0])
            rows[0, 0] = 0
        if first + len(rows) - 1 == _NONFINITE_OCTAVE:
            self.nonfinite += int(rows[-1].sum())
            rows[-1] = 0
        self._add(first, rows)

    def _add(self, first: int, rows: NDArray[np.uint64]) -> None:
        """Adds rows of octaves, keeping `_counts` trimmed to the octaves in use, which makes equal states equal."""
        filled = np.flatnonzero(rows.any(axis=1))
        if not filled.size:
            return
        rows = rows[filled[0] : filled[-1] + 1]
        first += int(filled[0])
        if not self._counts.size:
            self._first, self._counts = first, rows.copy()
            return
        low = min(first, self._first)
        high = max(first + len(rows), self._first + len(self._counts))
        if (low, high) != (self._first, self._first + len(self._counts)):
            wider = np.zeros((high - low, _PER_OCTAVE), np.uint64)
            wider[self._first - low : self._first - low + len(self._counts)] = self._counts
            self._first, self._counts = low, wider
        self._counts[first - low : first - low + len(rows)] += rows


class Histograms:
    """The histogram of each of some tensors, filled by `qcompiler.runtime.stream.fill`.

    Attributes:
        found: by tensor name, in the order in which they were asked for.
    """

    def __init__(self, tensors: Iterable[str]) -> None:
        """`tensors` are names."""
        self.found = {name: Histogram() for name in tensors}

    @property
    def tensors(self) -> Sequence[str]:
        """Their names."""
        return list(self.found)

    def update(self, part: Part) -> None:
        """Counts those that are in the part; padding does not count."""
        padding = Padding(part.feed)
        for name, histogram in self.found.items():
            if name not in part.values:
                continue
            value = on_device.held(part.values[name])
            if isinstance(value, np.ndarray):
                histogram.update(padding.keep(value) if padding else value)
            else:
                keep = padding.spread(value.shape) if padding else None
                histogram.add(*on_device.buckets(value, keep, _SHIFT, _BUCKETS))

    def merge(self, other: Histograms) -> None:
        """Adds what another one has counted of the same tensors, in any order."""
        for name, histogram in other.found.items():
            self.found[name].merge(histogram)


def _edges(bucket: NDArray[np.intp]) -> NDArray[np.float64]:
    """Lower edge of each bucket number."""
    return (bucket.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)


def _float32(chunk: NDArray[Any]) -> NDArray[np.float32]:
    """The chunk as aligned, contiguous float32."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, which is counted as one
        return np.require(chunk, np.float32, ("C", "A"))


class _Scratch(threading.local):
    """Tables that a thread counts one array into; empty between two updates.

    Several lanes per bucket break the chain of increments of one address that equal neighbours make (ReLU's zeros).
    """

    def __init__(self) -> None:
        self.lanes: NDArray[np.uint32] = np.zeros(_LANES * _LANE_STRIDE, np.uint32)
        self.planes: NDArray[np.uint32] = self.lanes.reshape(_LANES, _LANE_STRIDE)
        self.touched: NDArray[np.uint8] = np.zeros(_OCTAVES, np.uint8)

    def clear(self) -> None:
        """Empties the octaves in use: normally none, all of them if an update was interrupted."""
        octaves = np.flatnonzero(self.touched)
        if octaves.size:
            self.planes[:, octaves[0] * _PER_OCTAVE : (octaves[-1] + 1) * _PER_OCTAVE] = 0
            self.touched[:] = 0


@lru_cache(maxsize=1)
def _scratch() -> _Scratch:
    return _Scratch()


def _count_numpy(bits: NDArray[np.uint32], lanes: NDArray[np.uint32], touched: NDArray[np.uint8]) -> None:
    """Counts bit patterns into the first lane, about 1.5 ns an element."""
    bucket = ((bits >> _SHIFT) & _BUCKET_MASK).astype(np.intp)
    np.add.at(lanes, bucket, np.uint32(1))
    touched[np.flatnonzero(np.bincount(bucket >> 8, minlength=_OCTAVES))] = 1


def _count_loop(bits: Any, lanes: Any, touched: Any) -> None:  # pragma: no cover - compiled by numba
    """Counts bit patterns, neighbours in different lanes, about 0.3 ns an element once compiled."""
    for i in range(bits.size):
        bucket = (bits[i] >> np.uint32(15)) & np.uint32(0xFFFF)
        lanes[(i & 3) * _LANE_STRIDE + bucket] += np.uint32(1)
        touched[bucket >> np.uint32(8)] = 1


def _signature(types: Any) -> Any:
    readonly = types.Array(types.uint32, 1, "C", readonly=True)
    return types.void(readonly, types.uint32[::1], types.uint8[::1])


_COUNT = Loop(_count_numpy, _count_loop, _signature)


def signal_power(h: Histogram) -> float:
    """Mean x² of the finite elements, mass being spread evenly over each bucket."""
    if not h.finite:
        return 0.0
    lower, upper = h.bounds()
    return float(np.dot(h.counts(), (lower * lower + lower * upper + upper * upper) / 3)) / h.finite
