"""GPTQ: integers chosen one input channel after the other, each making up for the errors of those before it.

    minimise tr(Eᵀ H E),  E = W - Ŵ,  H = (1 - σ) Σ x·xᵀ + σ diag(Σ x²) + λ·1

With a lower triangular R, Rᵀ R = H, that is Σ_i ‖R_ii · (t_i - ŵ_i)‖² with t_i = w_i + Σ_{j<i} R_ij / R_ii · e_j: going
down the rows, each ŵ_i is t_i rounded. This is the algorithm of Frantar et al. 2023, "GPTQ", written with the Cholesky
factor of H itself instead of that of its inverse, so nothing is inverted, and what a group of rows has to make up for
is one matrix product. (That both are one: Chen et al. 2025, "The geometry of LLM quantization: GPTQ as Babai's nearest
plane algorithm".)

Beyond the paper, each of which lowers the error on inputs that were not calibrated with, too:

* Input channels are ordered by power within their block, and blocks among each other, so that a block is quantized in
  one go (as GPTQModel's group-aware order), and its scale can be the one of a few with which the whole loop over the
  block errs least.
* What stands off the diagonal of H is shrunk by the share σ of it that is chance (`hessian.Moments.shrinkage`). Few
  rows can be fitted exactly, and then the weights err more on all others than nearest integers do. With σ = 1 nothing
  is made up for, and each channel counts by its power.
* Then come sweeps of coordinate descent: scales by least squares, every integer to its best under all others (as
  Behdin et al. 2023, "QuantEase").
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.errors import DataError
from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import LARGEST, LOWEST, Blocks, Format
from qcompiler.support.machine import available_processors
from qcompiler.weight_only import gptq_loops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


FACTORS = (1.0, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.3)  # of the scale that errs least channel by channel
_CLIPS = blocks.FACTORS[::2]  # a coarse grid will do: the tries around the best of it are judged by the whole loop
SWEEPS = 1  # a second one takes as long and gains 0.1 dB at most
PANEL = 128  # rows whose errors reach the rows after them in one product
DAMP = 0.01  # of the mean of the diagonal, as in the paper
MOST_DAMP = 1.0
_SMALLEST_PIVOT = 1e-9  # of the mean of the diagonal: below it, the factor is noise


@dataclass(frozen=True, eq=False)
class Factor:
    """A Hessian made ready, for all layers that share an input.

    Attributes:
        order: the input channels as they are gone through, [K]; each block stays in one piece.
        hessian: damped, in that order, float32 [K, K].
        moves: R_ij / R_ii below the diagonal, in that order, float32 [K, K].
        pivots: R_ii², float32 [K].
        damp: what was added to the diagonal, relative to its mean; more than what was asked for where the Hessian is
            so singular that it cannot be factored otherwise.
        size: of the blocks; None for one.
    """

    order: NDArray[np.intp]
    hessian: Floats
    moves: Floats
    pivots: Floats
    damp: float
    size: int | None


def gptq(
    w: NDArray[Any],
    hessian: NDArray[np.float64] | Factor,
    *,
    size: int | None,
    format: Format,
    damp: float = DAMP,
    act_order: bool = True,
    sweeps: int = SWEEPS,
    half: bool = True,
) -> Blocks:
    """The integers with which the layer's output errs little, tr((W - Ŵ)ᵀ H (W - Ŵ)).

    Args:
        w: floating point weight [K, N].
        hessian: Σ x·xᵀ over the inputs of the layer, float64 [K, K], in any unit; or what `factor` made of it for this
            size, for layers that share an input.
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        damp: what is added to the diagonal, relative to its mean; raised where the Hessian cannot be factored.
        act_order: channels of much power come first.
        sweeps: of coordinate descent after GPTQ proper; 0 for none.
        half: scales are numbers that FP16 holds exactly.

    Raises:
        ModelError: the weight is no matrix, holds NaN or infinity, or needs a scale beyond FP16.
        DataError: the Hessian holds NaN or infinity.
    """
    weight = blocks.matrix(w)
    found = hessian if isinstance(hessian, Factor) else factor(hessian, size=size, damp=damp, act_order=act_order)
    if len(found.order) != len(weight) or found.size != size:
        raise ValueError(f"a factor of {len(found.order)} channels in blocks of {found.size} is not that of the weight")
    with ThreadPoolExecutor(available_processors(), "gptq") as pool:
        state = _State(weight[found.order], found, format, half, pool)
        state.round()
        for _ in range(sweeps):
            state.sweep()
    return state.result()


def factor(
    hessian: NDArray[np.float64],
    *,
    size: int | None,
    damp: float = DAMP,
    shrink: float = 0.0,
    act_order: bool = True,
) -> Factor:
    """Orders, shrinks, damps and factors a Hessian; the arguments are those of `gptq`, and `shrink` is σ, 0..1.

    Channels that the data never used are rounded for themselves: nothing but the damping is on their diagonal.

    Raises:
        DataError: the Hessian holds NaN or infinity.
    """
    if not np.isfinite(hessian).all():
        raise DataError(
            f"the inputs of a layer of {len(hessian)} channels hold NaN or infinity: GPTQ needs finite samples; repair "
            "the samples, or quantize the weights with rtn"
        )
    order = _order(np.diag(hessian), size) if act_order else np.arange(len(hessian))
    ordered = np.asarray(hessian, np.float64).take(order, axis=0).take(order, axis=1)
    mean = float(np.diag(ordered).mean())
    diagonal = np.diag_indices(len(ordered))
    ordered /= mean if mean > 0 else 1.0
    power = ordered[diagonal]
    ordered *= 1 - shrink
    used = damp if mean > 0 else MOST_DAMP
    while True:
        ordered[diagonal] = power + used
        lower = _lower(ordered)
        if lower is not None or used >= MOST_DAMP:
            break
        used = min(max(2 * used, 1e-4), MOST_DAMP)
    if lower is None:
        raise DataError("the Hessian of a layer is not positive: it is no sum of x·xᵀ")
    pivots = np.diag(lower)
    moves = lower.astype(np.float32, order="C")
    moves /= pivots[:, None].astype(np.float32)
    return Factor(order, ordered.astype(np.float32), moves, np.asarray(pivots**2, np.float32), used, size)


def _lower(h: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The lower triangular R with Rᵀ R = H; None where there is none, or none that means something.

    With both axes turned round, R is the upper factor of Cholesky's.
    """
    try:
        upper = np.linalg.cholesky(h[::-1, ::-1], upper=True)
    except np.linalg.LinAlgError:
        return None
    return np.asarray(upper[::-1, ::-1], np.float64) if np.diag(upper).min() ** 2 >= _SMALLEST_PIVOT else None


def _order(power: NDArray[np.float64], size: int | None) -> NDArray[np.intp]:
    """Blocks by their largest power, channels by power within a block; a last block that is short stays the last."""
    found = [rows.start + np.argsort(-power[rows], kind="stable") for rows in blocks.spans(len(power), size)]
    short = [found.pop()] if size and len(power) % size else []
    found.sort(key=lambda channels: -power[channels[0]])
    return np.concatenate(found + short)


class _State:
    """A weight while it is quantized, its rows in the order of the factor."""

    def __init__(self, w: Floats, factor: Factor, format: Format, half: bool, pool: ThreadPoolExecutor) -> None:
        self._w, self._factor, self._format, self._half, self._pool = w, factor, format, half, pool
        self._limits = LOWEST[format], LARGEST[format]
        self._spans = list(blocks.spans(len(w), factor.size))
        self._rounding, self._descending = gptq_loops.loops(w.size)
        self._q = np.zeros_like(w)
        self._e = np.zeros_like(w)
        self._scales = np.ones((len(self._spans), w.shape[1]), np.float32)

    def round(self) -> None:
        """GPTQ proper."""
        w, moves = self._w, self._factor.moves
        for panel in self._panels():
            start = self._spans[panel.start].start
            rows = slice(start, self._spans[panel.stop - 1].stop)
            ahead = w[rows] + moves[rows, :start] @ self._e[:start] if start else w[rows]
            for block in range(panel.start, panel.stop):
                span = self._spans[block]
                target = ahead[span.start - start : span.stop - start]
                if span.start > start:
                    target = target + moves[span, start : span.start] @ self._e[start : span.start]
                self._round(block, target)

    def _round(self, block: int, target: Floats) -> None:
        span = self._spans[block]
        importance = self._factor.pivots[span]
        base = blocks.clipped_scales(target, None, self._format, importance, half=self._half, factors=_CLIPS)
        factors = FACTORS if span.stop - span.start <= 2 * PANEL else FACTORS[:1]
        tries = blocks.storable(base * np.asarray(factors, np.float32)[:, None], self._format, half=self._half)
        moves = np.ascontiguousarray(self._factor.moves[span, span])
        q, e, best = self._q[span], self._e[span], self._scales[block]

        def work(columns: tuple[int, int]) -> None:
            self._rounding(self._w[span], target, moves, importance, tries, *self._limits, columns, q, e, best)

        self._share(work)

    def sweep(self) -> None:
        """Improves scales and integers, block by block; the error never grows."""
        hessian = self._factor.hessian
        for panel in self._panels():
            start = self._spans[panel.start].start
            rows = slice(start, self._spans[panel.stop - 1].stop)
            gradient = hessian[rows] @ self._e
            for block in range(panel.start, panel.stop):
                span = self._spans[block]
                within = slice(span.start - start, span.stop - start)
                moved = self._descend(block, gradient[within])
                if span.stop < rows.stop:
                    gradient[within.stop :] += hessian[span.stop : rows.stop, span] @ moved

    def _descend(self, block: int, gradient: Floats) -> Floats:
        span = self._spans[block]
        hessian = np.ascontiguousarray(self._factor.hessian[span, span])
        q, scale, before = self._q[span], self._scales[block], self._e[span].copy()
        reach = hessian @ q
        step = _fit(scale, np.einsum("kn,kn->n", q, gradient), np.einsum("kn,kn->n", q, reach), self._half)
        scale += step
        gradient = gradient - reach * step
        moved = np.empty_like(before)

        def work(columns: tuple[int, int]) -> None:
            self._descending(gradient, hessian, scale, *self._limits, columns, q, moved)

        self._share(work)
        self._e[span] = self._w[span] - q * scale
        return np.asarray(self._e[span] - before)

    def result(self) -> Blocks:
        """What came out, the input channels where they were."""
        order, size = self._factor.order, self._factor.size
        values = np.empty(self._q.shape, np.int8)
        values[order] = self._q
        if size is None:
            return Blocks(values, self._scales[0], size, self._format)
        scales = np.empty_like(self._scales)
        scales[[order[span.start] // size for span in self._spans]] = self._scales
        return Blocks(values, scales, size, self._format)

    def _panels(self) -> list[slice]:
        """Neighbouring blocks of about as many rows as a product pays for."""
        each = max(1, PANEL // (self._factor.size or len(self._w)))
        return [slice(first, min(first + each, len(self._spans))) for first in range(0, len(self._spans), each)]

    def _share(self, work: Callable[[tuple[int, int]], None]) -> None:
        """Splits the outputs among the processors."""
        columns = self._w.shape[1]
        tiles = -(-columns // gptq_loops.TILE)
        each = gptq_loops.TILE * -(-tiles // available_processors())
        list(self._pool.map(work, [(first, min(first + each, columns)) for first in range(0, columns, each)]))


def _fit(scale: Floats, product: Floats, square: Floats, half: bool) -> Floats:
    """What to add to the scales so that Σ (e - step · q)ᵀ H (e - step · q) is least, as far as they can be stored."""
    usable = square > 0
    wanted = scale + np.where(usable, product / np.where(usable, square, 1), 0)
    stored = wanted.astype(np.float16).astype(np.float32) if half else wanted
    step = np.where(stored > 0, stored - scale, 0)
    return np.where(step * (step * square - 2 * product) < 0, step, 0).astype(np.float32)
