"""Weights that are made of stored ones whenever somebody looks, and that nobody keeps.

    FP16 in the file  →  WidenedWeights  →  ScaledWeights (SmoothQuant)  →  an array, for the layers that are run now

Where a model is larger than the memory it may take, its derived weights would take the room of all of them at once, in
memory or on disk. What they are derived of lies in the model's file, so they are written down as that: a value of one
of these classes stands in the place of an array, with its shape and type, and `solid` computes it, for the caller
alone. The numbers are those that are computed where there is room for all.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.support.memory import PIECE, SMALLEST, release, room

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


class Made(LazyValues):  # type: ignore[misc]
    """Weights that are computed when somebody asks.

    Attributes:
        shape: of the array.
        dtype: of its elements.
        size: how many elements.
        nbytes: of all elements.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.size = math.prod(shape)
        self.nbytes = self.size * dtype.itemsize

    @abstractmethod
    def load(self) -> Array:
        """The array, of the caller's own."""

    @abstractmethod
    def parts(self) -> tuple[object, ...]:
        """What it is made of: arrays, others of its kind, plain values."""

    def content(self) -> object:
        """How it is made, and what of."""
        return type(self).__name__, self.parts()

    def let_go(self) -> None:
        """Gives back the memory that mapped arrays take which it was made of."""
        for one in self.parts():
            let_go(one)


Held: TypeAlias = "Array | Made"


class WidenedWeights(Made):
    """16-bit floats as float32.

    Args:
        stored: float16 or bfloat16, read-only.
    """

    def __init__(self, stored: Array) -> None:
        super().__init__(stored.shape, np.dtype(np.float32))
        self.stored = stored

    def load(self) -> Array:
        """See `Made`."""
        return widened(self.stored)

    def parts(self) -> tuple[object, ...]:
        """See `Made`."""
        return (self.stored,)


class ScaledWeights(Made):
    """Weights times or divided by factors, one after the other, in their own type.

    Args:
        held: the weights, float32 or float64.
        factors: arrays that broadcast to them, each with whether it multiplies.
    """

    def __init__(self, held: Held, factors: tuple[tuple[Array, bool], ...]) -> None:
        super().__init__(held.shape, np.dtype(held.dtype))
        self.held, self.factors = held, factors

    def load(self) -> Array:
        """See `Made`."""
        return scaled(solid(self.held), self.factors)

    def parts(self) -> tuple[object, ...]:
        """See `Made`."""
        return self.held, self.factors


class RoundedWeights(Made):
    """Float32 weights as another float type holds them, in float32 again.

    Args:
        held: the weights.
        dtype: what they are rounded to; beyond its range they are infinite.
        bounds: between which they are held before; None for no bounds.
    """

    def __init__(self, held: Held, dtype: np.dtype[Any], bounds: tuple[float, float] | None) -> None:
        super().__init__(held.shape, np.dtype(np.float32))
        self.held, self.to, self.bounds = held, dtype, bounds

    def load(self) -> Array:
        """See `Made`."""
        exact = solid(self.held).reshape(-1)
        found = np.empty(exact.size, np.float32)
        for at in range(0, exact.size, PIECE):
            found[at : at + PIECE] = rounded(exact[at : at + PIECE], self.to, self.bounds)
        return found.reshape(self.shape)

    def parts(self) -> tuple[object, ...]:
        """See `Made`."""
        return self.held, self.to, self.bounds


class DequantizedWeights(Made):
    """What a DequantizeLinear gives, rounded to the type of its output, as float32.

    Args:
        stored: integers or FP8.
        scale: as of `dequantized`.
        zero: likewise; None for none.
        axis: likewise.
        block: likewise.
        dtype: of the output.
    """

    def __init__(
        self, stored: Array, scale: Array, zero: Array | None, axis: int, block: int, dtype: np.dtype[Any]
    ) -> None:
        super().__init__(stored.shape, np.dtype(np.float32))
        self.stored, self.scale, self.zero, self.block, self.to = stored, scale, zero, block, dtype
        self.axis = axis % max(len(stored.shape), 1)

    def load(self) -> Array:
        """See `Made`."""
        found = np.empty(self.shape, np.float32)
        rows = max(PIECE // max(found[:1].nbytes, 1), 1)
        if self.axis == 0 and self.block:
            rows = -(-rows // self.block) * self.block  # a piece has whole blocks
        for at in range(0, len(found), rows):
            scale, zero = (self._of_rows(one, at, rows) for one in (self.scale, self.zero))
            assert scale is not None
            exact = dequantized(self.stored[at : at + rows], scale, zero, self.axis, self.block)
            found[at : at + rows] = exact.astype(self.to)
        return found

    def _of_rows(self, parameter: Array | None, at: int, rows: int) -> Array | None:
        """Scales or zero points of some rows."""
        if parameter is None or parameter.size == 1:
            return parameter
        if not self.block:
            return parameter.reshape(-1)[at : at + rows] if self.axis == 0 else parameter
        return parameter[at // self.block : (at + rows) // self.block] if self.axis == 0 else parameter[at : at + rows]

    def parts(self) -> tuple[object, ...]:
        """See `Made`."""
        return self.stored, self.scale, self.zero, self.axis, self.block, self.to


def solid(held: Held) -> Array:
    """Weights as an array: what is made of stored ones is made now, for the caller alone."""
    return held.load() if isinstance(held, Made) else held


def later(held: Held) -> bool:
    """Whether something of the size of these weights is made whenever somebody looks."""
    return room().tight and held.nbytes >= SMALLEST


def let_go(held: object) -> None:
    """Gives back the memory that weights take which are mapped from a file."""
    if isinstance(held, Made):
        held.let_go()
    elif isinstance(held, np.ndarray):
        release(held)


def widened(stored: Array) -> Array:
    """A read-only float32 array of the same values, made 4 MiB at a time; a mapped file does not stay in memory."""
    flat = np.ascontiguousarray(stored).reshape(-1)
    found = np.empty(flat.size, np.float32)
    step = PIECE // stored.dtype.itemsize
    for at in range(0, flat.size, step):
        piece = flat[at : at + step]
        found[at : at + step] = piece
        release(piece)
    found.flags.writeable = False
    return found.reshape(stored.shape)


def scaled(weights: Array, factors: tuple[tuple[Array, bool], ...]) -> Array:
    """Weights times or divided by factors, one after the other; what leaves the range of their type is infinite."""
    # One rounding: float32 times float32 is exact in float64, and so is float32 arithmetic up to its last bit.
    found = weights.astype(np.float32 if weights.dtype.itemsize < 4 else weights.dtype, copy=False)
    with np.errstate(over="ignore"):
        for factor, multiply in factors:
            found = found * factor if multiply else found / factor
        return np.asarray(found.astype(weights.dtype, copy=False))


def rounded(weights: Array, dtype: np.dtype[Any], bounds: tuple[float, float] | None) -> Array:
    """Weights as another float type holds them, in float32."""
    held = weights if bounds is None else np.asarray(np.clip(weights, *bounds))
    with np.errstate(over="ignore", under="ignore"):
        return held.astype(dtype).astype(np.float32)


def dequantized(stored: Array, scale: Array, zero: Array | None, axis: int, block: int) -> Array:
    """(q - zero point) · scale in float32; exact in front of the product for every integer type up to 32 bits.

    Args:
        stored: integers or FP8.
        scale: one, or as many as there are elements along `axis`, or one for each block of these.
        zero: likewise; None for none.
        axis: where they lie.
        block: elements that share a scale; 0 without blocks.
    """
    wide = stored.astype(np.float64)
    if zero is not None:
        wide = wide - _spread(zero.astype(np.float64), stored.shape, axis, block)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite: so are the values then, or NaN
        product = wide.astype(np.float32) * _spread(scale.astype(np.float32), stored.shape, axis, block)
    return np.asarray(product).reshape(stored.shape)


def _spread(parameter: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales or zero points so that they broadcast onto the data: blocks are repeated, lists laid along their axis."""
    if not block:
        along = [1] * len(shape)
        if parameter.size > 1:
            along[axis] = parameter.size
        return parameter.reshape(along)
    repeated = np.repeat(parameter, block, axis)
    return repeated[tuple(slice(length) for length in shape)]
