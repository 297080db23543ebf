"""The two inner loops of GPTQ and of what refines it, compiled where numba is installed.

Both go down the input channels of a block for many outputs at once, and what each channel is to become depends on the
errors of those above it: x_i + Σ_{j<i} M_ij · e_j. Outputs are worked on in tiles, whose errors stay in the first level
of cache. Every loop has a twin in numpy that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.support.compiled import Loop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Kernel = Callable[..., None]


TILE = 64  # outputs whose errors are kept in the first level of cache


def loops(size: int, compiled: bool | None = None) -> tuple[Kernel, Kernel]:
    """`round_down` and `descend` for weights of this many elements.

    Args:
        size: number of elements.
        compiled: True or False forces the numba or the numpy way; None takes numba for large weights where it is there.
    """
    return _ROUND.of(size, compiled), _DESCEND.of(size, compiled)


def _round_numpy(
    w: Floats,
    t: Floats,
    m: Floats,
    importance: Floats,
    scales: Floats,
    low: float,
    high: float,
    columns: tuple[int, int],
    q: Floats,
    e: Floats,
    best: Floats,
) -> None:
    """Rounds a block with each of some scales, and keeps for every output what errs least.

    Args:
        w: weights of the block, [rows, N].
        t: what they are to become after the errors of earlier blocks were made up for, [rows, N].
        m: below the diagonal, how the error of a row moves those after it, [rows, rows].
        importance: what the squared error of each row counts, [rows].
        scales: those to try, [tries, N].
        low: smallest integer.
        high: largest integer.
        columns: first output and the one after the last.
        q: integers, [rows, N]; written to.
        e: w - scale · q, [rows, N]; written to.
        best: the scale that was best, [N]; written to.
    """
    part = slice(*columns)
    least = np.full(columns[1] - columns[0], np.inf, np.float32)
    for scale in scales[:, part]:
        values, errors, total = np.zeros_like(w[:, part]), np.zeros_like(w[:, part]), np.zeros_like(least)
        inverse = np.float32(1) / scale
        for i in range(len(w)):
            target = t[i, part] + m[i, :i] @ errors[:i]
            values[i] = np.clip(np.rint(target * inverse), np.float32(low), np.float32(high))
            gap = target - values[i] * scale
            errors[i] = w[i, part] - values[i] * scale
            total += importance[i] * gap * gap
        better = total < least
        least[better] = total[better]
        best[part][better] = scale[better]
        q[:, part][:, better], e[:, part][:, better] = values[:, better], errors[:, better]


def _round_loop(
    w: Any, t: Any, m: Any, importance: Any, scales: Any, low: Any, high: Any, columns: Any, q: Any, e: Any, best: Any
) -> None:  # pragma: no cover - compiled by numba
    rows = w.shape[0]
    low, high = np.float32(low), np.float32(high)
    kept = np.zeros((3, rows, TILE), np.float32)
    weights, targets, errors = kept[0], kept[1], kept[2]
    lanes = np.ones((6, TILE), np.float32)
    sums, scale, inverse, chosen, least, total = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]
    for first in range(columns[0], columns[1], TILE):
        width = min(TILE, columns[1] - first)
        for i in range(rows):
            for n in range(width):
                weights[i, n], targets[i, n] = w[i, first + n], t[i, first + n]
        least[:] = np.inf
        for attempt in range(scales.shape[0] + 1):
            last = attempt == scales.shape[0]
            for n in range(width):
                scale[n] = chosen[n] if last else scales[attempt, first + n]
            for n in range(TILE):
                inverse[n] = np.float32(1) / scale[n]
                total[n] = 0
            for i in range(rows):
                for n in range(TILE):
                    sums[n] = targets[i, n]
                whole = i - i % 4
                for j in range(0, whole, 4):
                    a, b, c, d = m[i, j], m[i, j + 1], m[i, j + 2], m[i, j + 3]
                    for n in range(TILE):
                        sums[n] += (a * errors[j, n] + b * errors[j + 1, n]) + (
                            c * errors[j + 2, n] + d * errors[j + 3, n]
                        )
                for j in range(whole, i):
                    a = m[i, j]
                    for n in range(TILE):
                        sums[n] += a * errors[j, n]
                h = importance[i]
                for n in range(TILE):
                    value = min(max(np.rint(sums[n] * inverse[n]), low), high)
                    gap = sums[n] - value * scale[n]
                    errors[i, n] = weights[i, n] - value * scale[n]
                    total[n] += h * gap * gap
                    sums[n] = value
                if last:
                    for n in range(width):
                        q[i, first + n], e[i, first + n] = sums[n], errors[i, n]
            for n in range(TILE):
                if total[n] < least[n]:
                    least[n], chosen[n] = total[n], scale[n]
        for n in range(width):
            best[first + n] = chosen[n]


def _descend_numpy(
    g: Floats,
    h: Floats,
    scale: Floats,
    low: float,
    high: float,
    columns: tuple[int, int],
    q: Floats,
    moved: Floats,
) -> None:
    """Sets each integer of a block to its best while all others stay, one row after the other.

    Args:
        g: H · e for the rows of the block, [rows, N].
        h: the Hessian among them, [rows, rows].
        scale: of the block, [N].
        low: smallest integer.
        high: largest integer.
        columns: first output and the one after the last.
        q: integers, [rows, N]; changed.
        moved: by how much e has changed, [rows, N]; written to.
    """
    part = slice(*columns)
    moved[:, part] = 0
    for i in range(len(q)):
        gradient = g[i, part] + h[i, :i] @ moved[:i, part]
        value = np.rint(q[i, part] + gradient * (np.float32(1) / (h[i, i] * scale[part])))
        value = np.clip(value, np.float32(low), np.float32(high))
        moved[i, part] = (q[i, part] - value) * scale[part]
        q[i, part] = value


def _descend_loop(
    g: Any, h: Any, scale: Any, low: Any, high: Any, columns: Any, q: Any, moved: Any
) -> None:  # pragma: no cover - compiled by numba
    rows = q.shape[0]
    low, high = np.float32(low), np.float32(high)
    errors = np.zeros((rows, TILE), np.float32)
    sums, inverse = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    for first in range(columns[0], columns[1], TILE):
        width = min(TILE, columns[1] - first)
        for i in range(rows):
            for n in range(width):
                sums[n] = g[i, first + n]
                inverse[n] = np.float32(1) / (h[i, i] * scale[first + n])
            whole = i - i % 4
            for j in range(0, whole, 4):
                a, b, c, d = h[i, j], h[i, j + 1], h[i, j + 2], h[i, j + 3]
                for n in range(TILE):
                    sums[n] += (a * errors[j, n] + b * errors[j + 1, n]) + (c * errors[j + 2, n] + d * errors[j + 3, n])
            for j in range(whole, i):
                a = h[i, j]
                for n in range(TILE):
                    sums[n] += a * errors[j, n]
            for n in range(width):
                value = min(max(np.rint(q[i, first + n] + sums[n] * inverse[n]), low), high)
                errors[i, n] = (q[i, first + n] - value) * scale[first + n]
                q[i, first + n], moved[i, first + n] = value, errors[i, n]


def _signatures(types: Any) -> tuple[Any, Any]:
    """Of `_round_loop` and of `_descend_loop`."""
    one, two = (types.Array(types.float32, n, "C", readonly=True) for n in (1, 2))
    limits, pair, out = (types.float64, types.float64), types.UniTuple(types.intp, 2), types.float32[:, ::1]
    rounding = types.void(two, two, two, one, two, *limits, pair, out, out, types.float32[::1])
    return rounding, types.void(two, two, one, *limits, pair, out, out)


_FASTMATH = {"contract"}  # a·b + c in one go; nothing else is reordered
_ROUND = Loop(_round_numpy, _round_loop, lambda types: _signatures(types)[0], fastmath=_FASTMATH)
_DESCEND = Loop(_descend_numpy, _descend_loop, lambda types: _signatures(types)[1], fastmath=_FASTMATH)
