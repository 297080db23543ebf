"""Number formats for the layer study: how each rounds weights and activations, and which engine could run it.

INT8 and E4M3 are those of `qcompiler.numerics`. The others are for comparison only; nothing else in the package uses
them. Everything is symmetric.

    e5m2   FP8 with 5 bits of exponent and 2 of mantissa, largest value 57344; scale = amax / 57344
    int4   -8..7, in the blocks along the depth that precision int4-weight stores (`qcompiler.numerics.blocks`)
    nf4    the 16 quantiles of a normal distribution, a scale per 64 weights, amax
           (Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, appendix E)
    fp4    E2M1, a scale per 16 weights, itself rounded to E4M3 under one FP32 scale (NVFP4)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from qcompiler.calibrators.minmax import MinMax
from qcompiler.calibrators.mse import MSE
from qcompiler.errors import UsageError
from qcompiler.numerics import blocks
from qcompiler.numerics.rounding import dequantize, quantize_fp8_e4m3, quantize_int8, quantize_weight
from qcompiler.support.suggest import did_you_mean
from qcompiler.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.statistics.histogram import Histogram


E5M2_MAX: Final = 57344.0
FIRST_FP8_SM: Final = 89
_NF4: Final = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_E2M1: Final = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """One format.

    Attributes:
        name: what `--formats` takes.
        bits: of a stored value, scales not counted.
        activations: whether activations take it too; else weights only.
        block: how many weights along the depth share a scale; 0 for a scale per output channel. For INT4 the most: a
            size of which two or more blocks make up the depth is taken, else the smallest, with a short last block.
        never: why no engine of this compiler runs it; empty where one can.
        half: scales in blocks of INT4 are numbers of FP16.
    """

    name: str
    bits: int
    activations: bool = True
    block: int = 0
    never: str = ""
    half: bool = True

    def weights(self, w: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
        """A weight after the round trip through the format.

        Args:
            w: floating point.
            axis: of the output channels; None for one scale, or for blocks over the weight as it lies.

        Raises:
            ModelError: the weight holds NaN or infinity.
        """
        if self.name in ("int8", "fp8"):
            values, scales = quantize_weight(w, axis, "fp8" if self.name == "fp8" else "int8")
            return dequantize(values, scales, axis)
        flat = _by_channel(w, axis)
        if self.name == "e5m2":
            amax = np.abs(flat).max(axis=1, keepdims=True, initial=0.0)
            rounded = _e5m2(flat, np.where(amax > 0, amax / np.float32(E5M2_MAX), np.float32(1)))
        elif self.name == "int4":
            size = blocks.fitting(flat.shape[1], self.block) or min(blocks.SIZES)
            rounded = blocks.dequantize(blocks.round_to_nearest(flat.T, size, "int4", half=self.half)).T
        else:
            rounded = _blocks(flat, self)
        return _as_it_was(rounded, w.shape, axis)

    def range(self, h: Histogram) -> float:
        """The range of an activation: least mean squared error for INT8 and E4M3, the largest |x| for E5M2.

        E5M2 has 31 octaves: where its range ends hardly matters to what lies far below.
        """
        if self.name == "e5m2":
            return MinMax().range(h)
        return MSE("fp8" if self.name == "fp8" else "int8").range(h)

    def values(self, x: NDArray[Any], amax: float) -> NDArray[np.float32]:
        """An activation after the round trip with one scale for the whole tensor."""
        if self.name == "e5m2":
            return _e5m2(np.asarray(x, np.float32), np.float32(amax / E5M2_MAX))
        if self.name == "fp8":
            scale = amax / 448
            return dequantize(quantize_fp8_e4m3(x, scale), scale)
        scale = amax / 127
        return dequantize(quantize_int8(x, scale), scale)

    def why_not(self, target: Target) -> str:
        """Why no engine for this target can be built with it, as a clause; empty where one can."""
        if self.never or self.name != "fp8":
            return self.never
        if target.engine == "onnxruntime":
            return "ONNX Runtime's CPU has no FP8 kernels"
        old = [sm for sm in target.sms if int(sm[2:]) < FIRST_FP8_SM]
        return f"{', '.join(old)} has no FP8: that begins with sm{FIRST_FP8_SM}" if old else ""


FORMATS: Final = {
    one.name: one
    for one in (
        NumberFormat("int8", 8),
        NumberFormat("fp8", 8),
        NumberFormat("e5m2", 8, never="TensorRT has no E5M2 type"),
        NumberFormat("int4", 4, False, 128, "weights only, beside float activations: precision int4-weight"),
        NumberFormat("nf4", 4, False, 64, "weights only, and TensorRT has no NF4 type"),
        NumberFormat("fp4", 4, False, 16, "weights only, and TensorRT fuses FP4 with FP4 activations alone"),
    )
}
DEFAULT: Final = ("int8", "fp8")


def parse(names: str | Iterable[str], block: int = 128, *, half: bool = True) -> tuple[NumberFormat, ...]:
    """Reads `int8,fp8,e5m2`; each once, in that order.

    Args:
        names: a list, or separated by commas.
        block: most weights that share a scale in INT4.
        half: scales of INT4 are numbers of FP16.

    Raises:
        UsageError: an unknown format, or none.
    """
    listed = [one.strip() for one in (names.split(",") if isinstance(names, str) else names)]
    for name in listed:
        if name not in FORMATS:
            raise UsageError(f"there is no format '{name}': {did_you_mean(name, FORMATS)}")
    if not listed:
        raise UsageError(f"no format to study: name some of {', '.join(FORMATS)}")
    found = {**FORMATS, "int4": replace(FORMATS["int4"], block=block, half=half)}
    return tuple(found[name] for name in dict.fromkeys(listed))


def _e5m2(x: NDArray[np.float32], scale: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    scaled = np.clip(x / scale, -E5M2_MAX, E5M2_MAX).astype(ml_dtypes.float8_e5m2)
    rounded: NDArray[np.float32] = scaled.astype(np.float32) * scale
    return rounded


def _by_channel(w: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
    """[channels, depth]; without an axis one row."""
    if axis is None:
        return np.asarray(w, np.float32).reshape(1, -1)
    return np.moveaxis(np.asarray(w, np.float32), axis, 0).reshape(w.shape[axis], -1)


def _as_it_was(flat: NDArray[np.float32], shape: tuple[int, ...], axis: int | None) -> NDArray[np.float32]:
    if axis is None:
        return flat.reshape(shape)
    rest = [size for d, size in enumerate(shape) if d != axis % len(shape)]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(shape[axis], *rest), 0, axis))


def _blocks(flat: NDArray[np.float32], format: NumberFormat) -> NDArray[np.float32]:
    """Rows in blocks with a scale each; the last block of a row is filled with zeros."""
    rows, depth = flat.shape
    size = format.block
    padded = np.zeros((rows, -(-depth // size) * size), np.float32)
    padded[:, :depth] = flat
    parts = padded.reshape(rows, -1, size)
    amax = np.abs(parts).max(axis=2, keepdims=True)
    grid = {"nf4": _NF4, "fp4": _E2M1}[format.name]
    scales = amax / grid[-1]
    if format.name == "fp4":
        whole = np.float32(scales.max(initial=0.0) / 448) or np.float32(1)
        scales = (scales / whole).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    scales = np.where(scales > 0, scales, np.float32(1))
    middles = (grid[1:] + grid[:-1]) / 2
    nearest = grid[np.searchsorted(middles, parts / scales)]
    return (nearest * scales).reshape(rows, -1)[:, :depth]
