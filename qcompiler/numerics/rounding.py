"""Quantized number formats as ONNX defines them, weight quantization, and the errors that they make.

Everything is symmetric, zero point 0: value = scale · integer. INT8 uses [-128, 127] with scale = amax / 127, FP8 is
E4M3FN (largest value 448) with scale = amax / 448.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError
from qcompiler.numerics.sqnr import BLOCK
from qcompiler.target import DType

Format = Literal["int8", "fp8"]

INT8_MAX = 127.0
E4M3_MAX = 448.0
LARGEST: dict[Format, float] = {"int8": INT8_MAX, "fp8": E4M3_MAX}
STORED: dict[Format, np.dtype[Any]] = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}
_SCALE_FLOOR = 2.0**-24  # of the largest scale of the tensor
_SMALLEST_NORMAL = 2.0**-126  # of float32; also the smallest scale


def format_of(dtype: DType) -> Format:
    """The grid on which a plan's INT8 or FP8 rounds."""
    return "fp8" if dtype is DType.FP8 else "int8"


def quantize_int8(x: NDArray[Any], scale: NDArray[Any] | float, axis: int | None = None) -> NDArray[np.int8]:
    """QuantizeLinear to INT8: saturate(round_half_even(x / scale)), computed in float32 as ONNX Runtime does.

    Args:
        x: floating point values.
        scale: positive; a scalar, or [x.shape[axis]].
        axis: where `scale` runs along; None for one scale.
    """
    scaled = np.asarray(x, np.float32) / _along(scale, x.ndim, axis)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -128, 127, out=scaled).astype(np.int8)


def quantize_fp8_e4m3(x: NDArray[Any], scale: NDArray[Any] | float, axis: int | None = None) -> NDArray[Any]:
    """QuantizeLinear to FLOAT8E4M3FN with saturation: the nearest of the representable values, ties to even.

    Args:
        x: floating point values.
        scale: positive; a scalar, or [x.shape[axis]].
        axis: where `scale` runs along; None for one scale.

    Returns:
        ml_dtypes.float8_e4m3fn, same shape.
    """
    scaled = np.asarray(x, np.float32) / _along(scale, x.ndim, axis)
    return np.clip(scaled, -E4M3_MAX, E4M3_MAX, out=scaled).astype(ml_dtypes.float8_e4m3fn)


def dequantize(q: NDArray[Any], scale: NDArray[Any] | float, axis: int | None = None) -> NDArray[np.float32]:
    """DequantizeLinear with zero point 0: q · scale as float32."""
    values: NDArray[np.float32] = q.astype(np.float32) * _along(scale, q.ndim, axis)
    return values


def quantize(
    x: NDArray[Any], scale: NDArray[Any] | float, axis: int | None = None, format: Format = "int8"
) -> NDArray[Any]:
    """`quantize_int8` or `quantize_fp8_e4m3`."""
    return (quantize_int8 if format == "int8" else quantize_fp8_e4m3)(x, scale, axis)


def weight_scales(w: NDArray[Any], axis: int | None, format: Format = "int8") -> NDArray[np.float32]:
    """Scales of a weight, amax / 127 for INT8 or amax / 448 for FP8, per index of `axis` or one for all.

    Zeros need no scale, nor does what is below the normal numbers, which every target flushes to zero. Yet TensorRT
    refuses a scale of 0, and a scale near it makes ONNX Runtime's int32 bias (bias / (input scale · weight scale))
    overflow. So a channel of nothing else takes the largest scale of the tensor, which keeps its bias as exact as that
    of the largest channel (a tensor of nothing else takes 1/127 or 1/448), and no scale is below 2**-24 of the largest
    one: that rounds a vanishing channel by less than what float32 resolves beside the largest. Scales are stored as
    FP32; where the weights themselves are ordinary they are normal numbers in FP16 too.

    Args:
        w: floating point weight of any size, also a read-only memory map; it is read a block at a time.
        axis: output channel; None for one scale.
        format: what the weight will be stored as.

    Returns:
        float32 [w.shape[axis]], or a scalar array [] for None.

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    largest = _largest(w, axis)
    if not np.isfinite(largest).all():
        where = "" if axis is None else f", first in channel {int(np.flatnonzero(~np.isfinite(largest))[0])}"
        raise ModelError(
            f"a weight of shape {list(w.shape)} holds NaN or infinity{where}: it cannot be quantized; repair the model"
        )
    largest = np.where(largest < _SMALLEST_NORMAL, np.float32(0), largest)
    scales = largest / np.float32(LARGEST[format])
    top = float(scales.max(initial=0.0)) or 1 / LARGEST[format]
    floor = np.float32(max(top * _SCALE_FLOOR, _SMALLEST_NORMAL))
    return np.where(largest > 0, np.maximum(scales, floor), np.float32(top)).astype(np.float32)


def quantize_weight(
    w: NDArray[Any], axis: int | None, format: Format = "int8", scales: NDArray[np.float32] | None = None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A weight as INT8 or FP8; beside the result it needs some megabytes, however large the weight.

    Args:
        w: floating point weight; it is read a block at a time.
        axis: output channel; None for one scale.
        format: what the weight is stored as.
        scales: positive, [w.shape[axis]] or [] (a narrower range clips); None for `weight_scales`.

    Returns:
        int8 or ml_dtypes.float8_e4m3fn values of the shape of `w`, and float32 scales [w.shape[axis]] or [].

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    own = weight_scales(w, axis, format)  # also where scales are given: it finds NaN
    if scales is not None:
        own = np.asarray(scales, np.float32).reshape(own.shape)
    values = np.empty(w.shape, STORED[format])
    for block in _blocks(w.shape):
        values[block] = quantize(w[block], own if axis is None else own[block[axis]], axis, format)
    return values, own


def _along(scale: NDArray[Any] | float, rank: int, axis: int | None) -> NDArray[np.float32]:
    """The scale shaped so that it broadcasts along `axis` of a tensor of `rank` dimensions."""
    found = np.asarray(scale, np.float32)
    if axis is None:
        return found
    shape = [1] * rank
    shape[axis] = -1
    return found.reshape(shape)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cuts a tensor along its longest dimension into blocks of about a million elements."""
    whole = [slice(0, size) for size in shape]
    if not shape:
        yield ()
        return
    along = int(np.argmax(shape))
    rest = max(1, int(np.prod(shape, dtype=np.int64)) // max(1, shape[along]))
    step = max(1, BLOCK // rest)
    for start in range(0, shape[along], step):
        whole[along] = slice(start, min(start + step, shape[along]))
        yield tuple(whole)


def _largest(w: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
    """Largest |w| per index of `axis` (or overall), NaN where there is one."""
    found = np.zeros((() if axis is None else (w.shape[axis],)), np.float32)
    over = tuple(d for d in range(w.ndim) if axis is None or d != axis % w.ndim)
    for block in _blocks(w.shape):
        part = np.asarray(w[block], np.float32)
        high = np.maximum(part.max(axis=over, initial=0.0), -part.min(axis=over, initial=0.0))
        own = ... if axis is None else block[axis]
        found[own] = np.maximum(found[own], high)
    return found


LEVELS = 255.0

Span = tuple[float, float]


def span(amax: float, observed: Span) -> Span:
    """The part of [-amax, amax] that was observed, widened to contain 0; where amax is larger, in proportion to it."""
    low, high = observed
    largest = max(-low, high, 0.0)
    if 0 < largest < amax:  # headroom
        low, high = low * amax / largest, high * amax / largest
    return max(min(low, 0.0), -amax), min(max(high, 0.0), amax)


def grid(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point (0..255) of uint8 over [low, high], which contains 0.

    255 steps never reach beyond `high` where `low` is 0: ONNX Runtime drops a Relu or Clip in front of
    QuantizeLinear only if the grid lies within its bounds. Only where the scale would then be no normal number, which
    no engine takes, they do: what is so small may have any scale.
    """
    scale = np.float32((high - low) / LEVELS)
    if float(scale) * LEVELS > high - low:
        scale = np.nextafter(scale, np.float32(0))
    scale = np.maximum(scale, np.float32(_SMALLEST_NORMAL))
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
