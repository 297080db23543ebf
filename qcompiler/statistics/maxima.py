"""Largest magnitudes of the rows and of the columns of a matrix, both in one go over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.support.compiled import Loop

_CHUNK = 1 << 18  # elements looked at in one go, which bounds the memory of a conversion to float32
_MAGNITUDE = np.uint32(0x7FFFFFFF)  # as integers, the magnitudes of finite floats have the order of the floats

_Bits = NDArray[np.uint32]


def maxima(value: NDArray[Any], keep: NDArray[np.bool_] | None, columns: _Bits, compiled: bool | None = None) -> _Bits:
    """Finds the largest |x| of each row, and raises `columns` to the largest of each column.

    Rows are looked at in groups, so that a conversion to float32 takes little memory. The interpreter lock is not held
    in compiled code.

    Args:
        value: finite floats [R, C].
        keep: bool [R], the rows that count; None for all of them.
        columns: uint32 [C], the bits of float32 magnitudes, which have the order of the floats; written to.
        compiled: True or False forces the numba or the numpy way, which are equal to the bit; None takes numba for
            large arrays where it is installed.

    Returns:
        uint32 [R], bits of float32 magnitudes; zero for rows that do not count.
    """
    kernel = _MAXIMA.of(value.size, compiled)
    largest = np.zeros(len(value), np.uint32)
    keep = np.ones(len(value), np.bool_) if keep is None else np.ascontiguousarray(keep)
    step = max(1, _CHUNK // value.shape[1])
    for start in range(0, len(value), step):
        part = slice(start, start + step)
        with np.errstate(over="ignore"):
            chunk = np.require(value[part], np.float32, ("C", "A"))
        kernel(chunk.view(np.uint32), keep[part], largest[part], columns)
    return largest


def _maxima_numpy(bits: _Bits, keep: NDArray[np.bool_], rows: _Bits, columns: _Bits) -> None:
    magnitudes = (bits if keep.all() else bits[keep]) & _MAGNITUDE
    if magnitudes.size:
        rows[keep] = magnitudes.max(axis=1)
        np.maximum(columns, magnitudes.max(axis=0), out=columns)


def _maxima_loop(bits: Any, keep: Any, rows: Any, columns: Any) -> None:  # pragma: no cover - compiled by numba
    """Both maxima in one go over memory; of integers, because a maximum that minds NaN is no vector operation."""
    for i in range(bits.shape[0]):
        if not keep[i]:
            continue
        largest = np.uint32(0)
        for k in range(bits.shape[1]):
            magnitude = bits[i, k] & np.uint32(0x7FFFFFFF)
            largest = max(largest, magnitude)
            columns[k] = max(columns[k], magnitude)
        rows[i] = largest


def _signature(types: Any) -> Any:
    bits, keep = (types.Array(kind, n, "C", readonly=True) for kind, n in ((types.uint32, 2), (types.boolean, 1)))
    return types.void(bits, keep, types.uint32[::1], types.uint32[::1])


_MAXIMA = Loop(_maxima_numpy, _maxima_loop, _signature)
