"""Weights as small integers with a scale per block of input channels and output, or per output alone.

    w[k, n]  ≈  scales[k // size, n] · values[k, n]

As ONNX defines it for a blocked DequantizeLinear without a zero point: INT4 holds [-8, 7], INT8 [-128, 127]. The grid
reaches one step further below zero than above it, so the scale of a block depends on the signs of its largest weights.
Scales are positive, as TensorRT wants them, and, if not told otherwise, numbers that FP16 holds exactly, so that
whatever a graph stores them in, the weights are the very ones whose error was judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.support.compiled import Loop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


Format = Literal["int4", "int8"]

LOWEST: dict[Format, float] = {"int4": -8.0, "int8": -128.0}
LARGEST: dict[Format, float] = {"int4": 7.0, "int8": 127.0}
FACTORS = (0.98, 0.95, 0.92, 0.89, 0.86, 0.83, 0.8, 0.77, 0.74, 0.71, 0.68, 0.65, 0.62, 0.59, 0.56, 0.53, 0.5)
SIZES = (128, 64, 32)  # that TensorRT-RTX fuses
REFINEMENTS = 2  # times that a scale is fitted to the integers that it gave
_SMALLEST = {True: 2.0**-24, False: 2.0**-126}  # positive number of FP16, normal number of FP32
_FP16_MAX = 65504.0


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantized weight of K input channels and N outputs.

    Attributes:
        values: int8 [K, N]; for `int4` of the range [-8, 7].
        scales: float32, positive: [ceil(K / size), N], or [N] where each output has one scale.
        size: input channels that share a scale, the last block has what is left; None for all of them.
        format: `int4` or `int8`.
    """

    values: NDArray[np.int8]
    scales: Floats
    size: int | None
    format: Format


def round_to_nearest(w: NDArray[Any], size: int | None, format: Format, *, half: bool = True) -> Blocks:
    """The nearest integers, with the whole range of each block.

    Three scales cover the range with an error of at most half a step: amax / 7, the smallest one that clips nothing,
    max(largest / 7, -lowest / 8), and the smallest of all, max(largest / 7.5, -lowest / 8.5). The one with the least
    squared error is taken.

    Args:
        w: floating point weight [K, N].
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        half: scales are numbers that FP16 holds exactly.

    Raises:
        ModelError: the weight is no matrix, holds NaN or infinity, or needs a scale beyond FP16.
    """
    weight = matrix(w)
    return quantize(weight, whole_scales(weight, size, format, _importance(None, len(weight)), half=half), size, format)


def clip_by_error(
    w: NDArray[Any], size: int | None, format: Format, importance: NDArray[Any] | None = None, *, half: bool = True
) -> Blocks:
    """The nearest integers, with the range of each block that errs least: Σ_k importance_k · (w_k - ŵ_k)².

    With E[x_k²] as the importance, that is the error of the layer's output as far as its inputs are uncorrelated (MSE
    clipping as in Banner et al. 2019, "Post training 4-bit quantization", §3). From the best of a grid, the scale is
    then improved by least squares for the integers that it gave. Never worse than `round_to_nearest` in this error.

    Args:
        w: floating point weight [K, N].
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        importance: not negative, [K]; None for equal ones.
        half: scales are numbers that FP16 holds exactly.

    Raises:
        ModelError: the weight is no matrix, holds NaN or infinity, or needs a scale beyond FP16.
    """
    weight = matrix(w)
    return quantize(weight, clipped_scales(weight, size, format, importance, half=half), size, format)


def quantize(w: Floats, scales: Floats, size: int | None, format: Format) -> Blocks:
    """The nearest integers under given scales [blocks, N]; halves go to the even one."""
    values = np.empty(w.shape, np.int8)
    steps = np.atleast_2d(scales)
    for block, rows in enumerate(spans(len(w), size)):
        scaled = w[rows] * (np.float32(1) / steps[block])
        np.rint(scaled, out=scaled)
        values[rows] = np.clip(scaled, LOWEST[format], LARGEST[format], out=scaled)
    return Blocks(values, steps.reshape(-1) if size is None else steps, size, format)


def dequantize(blocks: Blocks) -> Floats:
    """What a blocked DequantizeLinear gives, float32 [K, N]."""
    result = blocks.values.astype(np.float32)
    steps = np.atleast_2d(blocks.scales)
    for block, rows in enumerate(spans(len(result), blocks.size)):
        result[rows] *= steps[block]
    return result


def spans(rows: int, size: int | None) -> Iterator[slice]:
    """The input channels of each block."""
    step = size or max(rows, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def fitting(depth: int, most: int) -> int | None:
    """The largest size up to `most` of which two or more blocks make up a depth; None where there is none."""
    return next((size for size in SIZES if size <= most and depth % size == 0 and depth > size), None)


def matrix(w: NDArray[Any]) -> Floats:
    """The weight as contiguous float32.

    Raises:
        ModelError: it is no matrix or holds NaN or infinity.
    """
    if w.ndim != 2 or not w.size:
        raise ModelError(f"a weight of shape {list(w.shape)} cannot be quantized in blocks: it must be a matrix [K, N]")
    weight = np.ascontiguousarray(w, np.float32)
    if not np.isfinite(weight).all():
        raise ModelError(
            f"a weight of shape {list(w.shape)} holds NaN or infinity: it cannot be quantized; repair the model"
        )
    return weight


def whole_scales(w: Floats, size: int | None, format: Format, importance: Floats, *, half: bool) -> Floats:
    """The scale of each block that covers its range with the least error, [blocks, N]; see `round_to_nearest`."""
    high, low = LARGEST[format], -LOWEST[format]
    above, below = _extents(w, size)
    search = _Search(w, size, format, importance, half)
    search.offer(np.maximum(above, below) / np.float32(high))
    for beyond in (0.0, 0.5):
        search.offer(np.maximum(above / np.float32(high + beyond), below / np.float32(low + beyond)))
    return search.best


def clipped_scales(
    w: Floats,
    size: int | None,
    format: Format,
    importance: NDArray[Any] | None,
    *,
    half: bool,
    factors: Sequence[float] = FACTORS,
) -> Floats:
    """The scale of each block that errs least, [blocks, N], `factors` of the whole range tried; see `clip_by_error`."""
    weights = _importance(importance, len(w))
    search = _Search(w, size, format, weights, half)
    whole = whole_scales(w, size, format, weights, half=half)
    search.offer(whole)
    for factor in factors:
        search.offer(whole * np.float32(factor))
    for _ in range(REFINEMENTS):
        search.offer(search.fitted())
    return search.best


def storable(scales: NDArray[Any], format: Format, *, half: bool) -> Floats:
    """Scales as a graph can hold them: positive, and numbers of FP16 if that is asked for.

    A block of nothing but zeros takes the largest scale of the weight.

    Raises:
        ModelError: a scale is beyond FP16.
    """
    top = float(scales.max(initial=0.0)) or 1 / LARGEST[format]
    if half and top > _FP16_MAX:
        raise ModelError(
            f"a weight needs a scale of {top:.6g}, and FP16 ends at {_FP16_MAX:g}: a model with such weights cannot be "
            "stored in FP16; scale the weight down, or leave this layer out"
        )
    found = np.where(scales > 0, np.maximum(scales, np.float32(_SMALLEST[half])), np.float32(top))
    return found.astype(np.float16).astype(np.float32) if half else found.astype(np.float32)


def _extents(w: Floats, size: int | None) -> tuple[Floats, Floats]:
    """The largest weight of each block and the negative of its smallest, none below 0: two times [blocks, N]."""
    blocks = list(spans(len(w), size))
    above = np.stack([w[rows].max(axis=0) for rows in blocks])
    below = np.stack([-w[rows].min(axis=0) for rows in blocks])
    return np.maximum(above, 0), np.maximum(below, 0)


def _importance(importance: NDArray[Any] | None, rows: int) -> Floats:
    if importance is None:
        return np.ones(rows, np.float32)
    top = float(np.max(importance, initial=0.0)) or 1.0
    return np.ascontiguousarray(importance / top, np.float32)


class _Search:
    """The best of the scales that are offered, block by block."""

    def __init__(self, w: Floats, size: int | None, format: Format, importance: Floats, half: bool) -> None:
        self._w, self._size, self._format, self._importance, self._half = w, size or len(w), format, importance, half
        shape = (-(-len(w) // self._size), w.shape[1])
        self.best = np.ones(shape, np.float32)
        self._sums = np.full((3, *shape), np.inf, np.float32)  # of the best: squared error, Σ h·w·q, Σ h·q²

    def offer(self, scales: NDArray[Any]) -> None:
        """Takes over the scales of those blocks that gain by them."""
        taken = storable(scales, self._format, half=self._half)
        sums = np.zeros_like(self._sums)
        kernel = _SUMS.of(self._w.size)
        kernel(self._w, self._importance, taken, self._size, LOWEST[self._format], LARGEST[self._format], sums)
        better = sums[0] < self._sums[0]
        np.copyto(self.best, taken, where=better)
        np.copyto(self._sums, sums, where=better)

    def fitted(self) -> Floats:
        """The scales of least squares for the integers that the best ones give."""
        _, product, square = self._sums
        usable = (product > 0) & (square > 0)
        return np.where(usable, product / np.where(usable, square, 1), self.best)


def _sums_numpy(w: Floats, h: Floats, scales: Floats, size: int, low: float, high: float, sums: Floats) -> None:
    for block, rows in enumerate(spans(len(w), size)):
        q = np.clip(np.rint(w[rows] * (np.float32(1) / scales[block])), np.float32(low), np.float32(high))
        weighted = h[rows, None] * q
        sums[0, block] = (h[rows, None] * (q * scales[block] - w[rows]) ** 2).sum(axis=0)
        sums[1, block] = (weighted * w[rows]).sum(axis=0)
        sums[2, block] = (weighted * q).sum(axis=0)


def _sums_loop(
    w: Any, h: Any, scales: Any, size: Any, low: Any, high: Any, sums: Any
) -> None:  # pragma: no cover - compiled by numba
    """All sums in one go over the weight, about 0.2 ns an element."""
    low, high = np.float32(low), np.float32(high)
    inverse = np.empty(w.shape[1], np.float32)
    for block in range(scales.shape[0]):
        for n in range(w.shape[1]):
            inverse[n] = np.float32(1) / scales[block, n]
        for k in range(block * size, min(block * size + size, w.shape[0])):
            for n in range(w.shape[1]):
                q = np.rint(w[k, n] * inverse[n])
                q = min(max(q, low), high)
                gap = q * scales[block, n] - w[k, n]
                weighted = h[k] * q
                sums[0, block, n] += h[k] * gap * gap
                sums[1, block, n] += weighted * w[k, n]
                sums[2, block, n] += weighted * q


def _signature(types: Any) -> Any:
    one, two = (types.Array(types.float32, n, "C", readonly=True) for n in (1, 2))
    return types.void(two, one, two, types.intp, types.float64, types.float64, types.float32[:, :, ::1])


_SUMS = Loop(_sums_numpy, _sums_loop, _signature)
