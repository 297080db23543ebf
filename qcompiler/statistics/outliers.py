"""What makes an activation hard to quantize: channels, and single tokens, that are far larger than the rest.

Two statistics that call for two remedies. The largest |x| of every channel is what SmoothQuant moves into the weights
(Xiao et al. 2023). With a_t = max_c |x_tc| for every token t, the mean over samples of max_t a_t / median_t a_t finds
the activations in which single tokens spike, which no scale of channels can mend (QFeM; Yang et al. 2024,
arXiv 2405.14428, section 4). Both are gathered in the one run over the data that also fills the histograms.

The state is maxima, one number per sample, and a few largest tokens whose ties are broken by their content: order,
batching and the number of workers change nothing, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.samples import fingerprint
from qcompiler.ir.signature import Feeds
from qcompiler.statistics import on_device
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.maxima import maxima

if TYPE_CHECKING:
    from qcompiler.runtime.stream import Part


TOP = 8  # largest tokens that are remembered
FOLDS = 4  # parts of the samples whose channels are kept apart: choices are judged on samples they have not seen
_TINY = 1e-45  # the smallest float32 above zero

_Bits = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Token:
    """One position of one sample, by its largest element.

    Attributes:
        value: largest |x| over its channels.
        sample: the first 12 hex digits of the fingerprint of the feed it is from (`data.samples.fingerprint`).
        position: where in the sample: the index in the sequence, or row · width + column of a map.
        channel: where among the channels; the first one, if several are equal.
        id: the input id at this position, where the feed has ids for the same grid of positions.
    """

    value: float
    sample: str
    position: int
    channel: int
    id: int | None


class Tokens:
    """What a feed tells of the positions of its activations: their input ids, and which are padding."""

    def __init__(self, feed: Mapping[str, Any], samples: Sequence[Feeds] = ()) -> None:
        """`feed` is a feed, `samples` the same one sample by sample; without them it counts as one sample."""
        self._samples: Sequence[Mapping[str, Any]] = samples or [feed]
        self._prints: dict[int, bytes] = {}
        grids = {name: array for name, array in feed.items() if isinstance(array, np.ndarray) and array.ndim == 2}
        self._masks = [array != 0 for name, array in grids.items() if "attention_mask" in name and _whole(array)]
        ids = {name: array for name, array in grids.items() if array.dtype.kind in "iu" and not _no_ids(name)}
        self._ids = [ids[name] for name in sorted(ids, key=lambda name: "ids" not in name)]

    def split(self, rows: int) -> int:
        """Among how many samples that many rows are shared out evenly; 1 where they cannot be."""
        known = next((grid for grid in (*self._masks, *self._ids) if grid.size == rows), None)
        count = len(self._samples) if known is None else len(known)
        return count if rows % count == 0 else 1

    def among(self, shape: Sequence[int]) -> int:
        """Among how many samples axis 0 of a tensor of three or more axes is shared out evenly.

        Frames, rays and time in front are positions like the others where the feed is one sample. What has a row for
        each row of a grid of ids or of a mask has a sample for each.
        """
        if any(grid.shape == tuple(shape[:2]) for grid in (*self._masks, *self._ids)):
            return shape[0]
        return self.split(shape[0])

    def ids(self, shape: tuple[int, int]) -> NDArray[Any] | None:
        """The input id of each position of a grid [samples, positions]; None where no input has this shape."""
        return next((grid for grid in self._ids if grid.shape == shape), None)

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Which positions of a grid [samples, positions] are no padding; None where no mask has this shape."""
        return next((grid for grid in self._masks if grid.shape == shape), None)

    def name(self, index: int, count: int) -> str:
        """The name of sample `index` of `count`: what its part of the feed hashes to."""
        return self._print(index, count).hex()[:12]

    def fold(self, index: int, count: int) -> int:
        """The part of the data that sample `index` of `count` belongs to, 0 to `FOLDS` - 1."""
        return _fold(self._print(index, count))

    def _print(self, index: int, count: int) -> bytes:
        held = len(self._samples)
        at = index * held // count if count % held == 0 else 0
        if at not in self._prints:
            self._prints[at] = fingerprint(self._samples[at])
        return self._prints[at]


def fold_of(sample: Feeds) -> int:
    """The part of the data that a sample belongs to, 0 to `FOLDS` - 1: neither order nor batching can change it."""
    return _fold(fingerprint(sample))


def _fold(print: bytes) -> int:
    return print[-1] % FOLDS  # the first bytes are what samples are kept by


def _whole(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iub"  # a mask of floats is one that is added, where 0 stands for "allowed"


def _no_ids(name: str) -> bool:
    return any(word in name for word in ("mask", "type", "position"))


class Outliers:
    """Channels and tokens of one activation that stand out.

    A sample is the part of axis 0 that belongs to a sample of the feed: of a batch an index of it, of a feed that is
    one sample all of it. Its tokens are all other positions. Padding (an `attention_mask` of the same grid says so) is
    left out of everything. Positions that are zero in all channels count in no median: any scale holds them.

    Attributes:
        axis: which axis the channels are.
        top: the `TOP` largest tokens, the largest first; one of each position, its largest.
    """

    __slots__ = ("_channels", "_ratios", "_varies", "axis", "top")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, axis: int = -1) -> None:
        """`axis` is the axis along which the readers multiply: 1 for convolutions, -1 for matrices."""
        self.axis = axis
        self.top: tuple[Token, ...] = ()
        self._channels: _Bits | None = None
        self._varies = False
        self._ratios: list[float] = []

    @property
    def channels(self) -> NDArray[np.float32]:
        """Largest |x| of each channel, float32 [C]; empty before the first, and where C is not always the same."""
        return self._largest(range(FOLDS))

    def without(self, fold: int) -> NDArray[np.float32]:
        """The same of all samples but those of one fold; of all where there are no others."""
        others = self._largest([one for one in range(FOLDS) if one != fold])
        return others if others.any() else self.channels

    def _largest(self, folds: Iterable[int]) -> NDArray[np.float32]:
        if self._channels is None or self._varies:
            return np.zeros(0, np.float32)
        return np.asarray(self._channels[list(folds)].max(axis=0).view(np.float32))

    @property
    def samples(self) -> int:
        """How many samples were seen, those that are nothing but padding not counted."""
        return len(self._ratios)

    @property
    def ratio(self) -> float:
        """QFeM's figure: mean over samples of max_t a_t / median_t a_t, at least 1; 1.0 before the first."""
        return math.fsum(sorted(self._ratios)) / len(self._ratios) if self._ratios else 1.0

    @property
    def worst_ratio(self) -> float:
        """The same of the one sample where it is largest."""
        return max(self._ratios, default=1.0)

    def update(self, value: NDArray[Any], tokens: Tokens | None = None, *, compiled: bool | None = None) -> None:
        """Adds all samples of an array.

        Args:
            value: finite floats of any shape that has the axis, also as a tensor of torch.
            tokens: what the feed tells of the positions; None for an array in which axis 0 counts samples.
            compiled: True or False forces the numba or the numpy way, which are equal to the bit; None takes numba for
                large arrays where it is installed.
        """
        if not math.prod(value.shape):
            return
        value, first = _arranged(value, self.axis, tokens)
        tokens = tokens or Tokens({})
        samples, positions = len(value), value.shape[2 if first else 1]
        mask = tokens.mask((samples, positions))
        if first and mask is not None:
            value, first = on_device.moved(value, 1, -1), False
        folds = [tokens.fold(index, samples) for index in range(samples)]
        peaks, channels = _peaks(value, first, mask, folds, compiled)
        self._widen(channels)
        ids = tokens.ids((samples, positions))
        for index, row in enumerate(peaks):
            if mask is None or mask[index].any():
                self._ratios.append(_ratio(row))
                one = value[index].T if first else value[index]
                self._offer(one, row, None if ids is None else ids[index], partial(tokens.name, index, samples))

    def divided(self, scales: NDArray[np.float32], again: Outliers) -> Outliers:
        """What is known of the activation once its channels are divided.

        Args:
            scales: positive, float32 [C].
            again: what was seen of it then, on some of the samples: tokens and ratios are those.

        Returns:
            With the largest |x| of each channel over all samples: dividing maxima is exact.
        """
        after = Outliers(self.axis)
        after.merge(again)
        if self._channels is not None and not self._varies and self._channels.shape[1] == len(scales):
            after._widen((self._channels.view(np.float32) / scales).view(np.uint32))
        return after

    def merge(self, other: Outliers) -> None:
        """Adds what another one has seen; merging parts in any order equals seeing the whole."""
        self._varies = self._varies or other._varies
        if other._channels is not None:
            self._widen(other._channels)
        self._ratios += other._ratios
        self._keep(other.top)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outliers):
            return NotImplemented
        mine, theirs = ((sorted(one._ratios), one.top, one.channels.tolist()) for one in (self, other))
        return mine == theirs

    def __repr__(self) -> str:
        return f"Outliers(samples={self.samples}, ratio={self.ratio:g}, channels={self.channels.size})"

    def _widen(self, channels: _Bits) -> None:
        """Takes in the largest magnitudes of the channels."""
        if self._channels is None:
            self._channels = channels
        elif self._channels.shape != channels.shape:
            self._varies = True
        else:
            self._channels = np.maximum(self._channels, channels)

    def _offer(
        self,
        sample: NDArray[Any],
        peaks: NDArray[np.float32],
        ids: NDArray[Any] | None,
        name: Callable[[], str],
    ) -> None:
        """Takes the largest tokens of a sample [positions, channels] among the largest of all."""
        least = self.top[-1].value if len(self.top) == TOP else 0.0
        if not float(peaks.max()) >= max(least, _TINY):
            return
        self._keep(
            Token(
                float(peaks[position]),
                name(),
                position,
                int(np.abs(on_device.on_host(sample[position])).astype(np.float32).argmax()),
                None if ids is None else int(ids[position]),
            )
            for position in _largest(peaks)
            if peaks[position] >= max(least, _TINY)
        )

    def _keep(self, more: Iterable[Token]) -> None:
        # One of a position: where every sample begins with a spike, the other places that spike are worth more
        best: dict[int, Token] = {}
        for token in sorted((*self.top, *more), key=_rank):
            best.setdefault(token.position, token)
        self.top = tuple(best.values())[:TOP]


class AllOutliers:
    """What stands out in each of some activations, filled by `qcompiler.runtime.stream.fill`.

    Attributes:
        found: by tensor name.
    """

    def __init__(self, axes: Mapping[str, int], split: Callable[[Feeds], Iterable[Feeds]] | None = None) -> None:
        """`axes` are those of the channels by name; `split` takes a feed apart into samples, or it counts as one."""
        self.found = {name: Outliers(axis) for name, axis in axes.items()}
        self._split = split
        self._tokens: tuple[int, Tokens] | None = None  # of the feed at hand

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the activations."""
        return list(self.found)

    def update(self, part: Part) -> None:
        """Looks at those that are in the part."""
        here = [name for name in self.found if name in part.values]
        if not here:
            return
        if self._tokens is None or self._tokens[0] != part.index:
            samples = () if self._split is None else list(self._split(part.feed))
            self._tokens = part.index, Tokens(part.feed, samples)
        for name in here:
            self.found[name].update(on_device.held(part.values[name]), self._tokens[1])

    def __getstate__(self) -> dict[str, object]:
        """What was seen, without how it is looked at."""
        return {"found": self.found, "_split": None, "_tokens": None}

    def merge(self, other: AllOutliers) -> None:
        """Adds what another one has seen of the same activations, in any order."""
        for name, outliers in other.found.items():
            self.found[name].merge(outliers)


def kurtosis(histogram: Histogram) -> float:
    """E[x^4] / E[x^2]^2 of all elements a histogram has seen; 3 for a bell curve, 1.8 for an even spread.

    The moments are taken about zero, as the grids are that have to hold the tensor, and from the middles of the
    histogram's buckets, which is exact to 1 % and does not depend on order. 1.0 for a tensor of zeros.
    """
    centers, counts = histogram.centers(), histogram.counts()
    if not centers.size or not histogram.amax:
        return 1.0
    x = (centers / histogram.amax) ** 2  # no power of it can overflow
    second = float((counts * x).sum())
    return histogram.finite * float((counts * x * x).sum()) / second**2


def records(
    outliers: Mapping[str, Outliers], histograms: Mapping[str, Histogram], readers: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """What manifest and reports say of the activations, in the order of `readers`.

    Args:
        outliers: by tensor name.
        histograms: of the same tensors.
        readers: names of the nodes that read each tensor; tensors that were not observed are left out.

    Returns:
        Per tensor `tensor`, `readers`, `ratio`, `worst_ratio`, `amax`, `kurtosis`, `top_channels` (each `channel`,
        `amax`, and `over_median`, None where the median channel is zero) and `top_tokens` (each `position`, `id` or
        None, `channel`, `value`, `sample`); JSON can hold all of it.
    """
    return [
        {
            "tensor": name,
            "readers": list(nodes),
            "ratio": outliers[name].ratio,
            "worst_ratio": outliers[name].worst_ratio,
            "amax": histograms[name].amax,
            "kurtosis": kurtosis(histograms[name]),
            "top_channels": top_channels(outliers[name].channels),
            "top_tokens": top_tokens(outliers[name].top),
        }
        for name, nodes in readers.items()
        if name in outliers and name in histograms
    ]


def top_channels(channels: NDArray[np.float32], count: int = 4) -> list[dict[str, Any]]:
    """The largest channels as `channel`, `amax`, and `over_median`, how often the median channel goes into it."""
    median = float(np.median(channels.astype(np.float64))) if channels.size else 0.0
    order = np.argsort(-channels, kind="stable")[:count]
    return [
        {
            "channel": int(index),
            "amax": float(channels[index]),
            "over_median": float(channels[index]) / median if median else None,
        }
        for index in order
    ]


def top_tokens(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Tokens as `position`, `id`, `channel`, `value` and `sample`."""
    return [
        {
            "position": one.position,
            "id": one.id,
            "channel": one.channel,
            "value": one.value,
            "sample": one.sample,
        }
        for one in tokens
    ]


# --- Maxima -----------------------------------------------------------------------------------------------------------


def _arranged(value: NDArray[Any], axis: int, tokens: Tokens | None) -> tuple[NDArray[Any], bool]:
    """The array as [samples, positions, channels]; with True as [samples, channels, positions], read as it lies."""
    if value.ndim <= 2:
        last = on_device.moved(value if value.ndim else value.reshape(1), axis, -1)
        count = math.prod(last.shape[:-1])
        return last.reshape(1 if tokens is None else tokens.split(count), -1, last.shape[-1]), False
    samples = len(value) if tokens is None else tokens.among(_positions(value.shape, axis))
    if samples != len(value):
        last = on_device.moved(value, axis, -1)
        return last.reshape(samples, -1, last.shape[-1]), False
    if axis % value.ndim == 1:
        return value.reshape(len(value), value.shape[1], -1), True
    last = on_device.moved(value, axis, -1)
    return last.reshape(len(last), -1, last.shape[-1]), False


def _positions(shape: Sequence[int], axis: int) -> list[int]:
    """The shape without the axis of the channels."""
    return [size for at, size in enumerate(shape) if at != axis % len(shape)]


def _peaks(
    value: NDArray[Any], first: bool, mask: NDArray[np.bool_] | None, folds: Sequence[int], compiled: bool | None
) -> tuple[NDArray[np.float32], _Bits]:
    """Largest |x| of each position, float32 [samples, positions], zero where masked, and of each fold's channels."""
    if not isinstance(value, np.ndarray):
        return on_device.peaks(value, first, mask, folds, FOLDS)
    samples, positions, width = (len(value), value.shape[2], value.shape[1]) if first else value.shape
    peaks, channels = np.zeros((samples, positions), np.uint32), np.zeros((FOLDS, width), np.uint32)
    for index, fold in enumerate(folds):
        if first:
            np.maximum(channels[fold], maxima(value[index], None, peaks[index], compiled), out=channels[fold])
        else:
            keep = None if mask is None else mask[index]
            peaks[index] = maxima(value[index], keep, channels[fold], compiled)
    return peaks.view(np.float32), channels


def _ratio(peaks: NDArray[np.float32]) -> float:
    used = peaks[peaks > 0].astype(np.float64)
    return float(used.max() / np.median(used)) if used.size else 1.0


def _largest(peaks: NDArray[np.float32]) -> list[int]:
    """Positions of the `TOP` largest, of equal ones the first."""
    if peaks.size <= TOP:
        return list(range(peaks.size))
    least = np.partition(peaks, peaks.size - TOP)[peaks.size - TOP]
    above = np.flatnonzero(peaks > least).tolist()
    return [*above, *np.flatnonzero(peaks == least)[: TOP - len(above)].tolist()]


def _rank(token: Token) -> tuple[float, int, int, int, str]:
    """Sorts the largest first; equal ones by what they are, never by when they were seen."""
    return -token.value, token.position, -1 if token.id is None else token.id, token.channel, token.sample
