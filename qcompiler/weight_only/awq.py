"""AWQ: input channels that matter are scaled up before their weights are rounded, and their inputs down.

    s_k = mean|x_k|^r / mean_n(|w_kn| / max of its block)^(1-r),   x' = x / s,   W' = s · W

(Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", §3.2, with the weights' part of the authors' code), also
without the weights' part. The exponent r is searched on a grid, by the outputs of all layers that read the activation,
computed with the very blocks that will be stored, from rows that the magnitudes were not taken of. The clip search
looks at what a block adds to the outputs, for each output by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import gain_db
from qcompiler.passes.absorb.absorb import largest_of
from qcompiler.statistics.rows import thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.numerics.blocks import Blocks, Format
    from qcompiler.statistics.rows import Rows
    from qcompiler.weight_only.row_trials import RowTrials


RATIOS = tuple(step / 20 for step in range(1, 20))
FACTORS = tuple(1 - step / 20 for step in range(11))
_SMALLEST = 1e-4  # of the largest channel: dead channels are not blown up


@dataclass(frozen=True, eq=False)
class Scales:
    """What was chosen for the layers that share an activation.

    Attributes:
        scales: what the activation is divided by and the weights are multiplied with, float32 [K], positive.
        gain_db: by how much the output error falls on rows that nothing was fitted to; 0.0 where nothing is gained and
            all scales are 1.
        ratio: the exponent of the activation's magnitudes; None where nothing is gained.
    """

    scales: NDArray[np.float32]
    gain_db: float
    ratio: float | None


def find_scales(
    seen: RowTrials,
    weights: Sequence[NDArray[Any]],
    *,
    size: int | None,
    format: Format,
    classes: NDArray[np.int64] | None = None,
    half: bool = True,
) -> Scales:
    """The scales under which the outputs of all layers that read the activation err least.

    Args:
        seen: rows of the activation, to fit to and to judge by.
        weights: of each layer, [K, N].
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        classes: channels of one number need one scale, [K]; None where all are free.
        half: scales of the weights are numbers that FP16 holds exactly.
    """
    ones = np.ones(len(weights[0]), np.float32)
    thin = [thinned(blocks.matrix(weight)) for weight in weights]
    sizes = _sizes(weights, size)
    plain, errors = 0.0, np.zeros(2 * len(RATIOS))
    for trial in seen.trials:
        exact = [trial.judge.values @ weight for weight in thin]

        def error(scales: NDArray[np.float32], judge: Rows = trial.judge, exact: Any = exact) -> float:
            x, total = judge.values / scales, 0.0
            for weight, product in zip(thin, exact, strict=True):
                stored = blocks.round_to_nearest(weight * scales[:, None], size, format, half=half)
                gap = x @ blocks.dequantize(stored) - product
                total += float(np.dot(judge.counts, np.einsum("rn,rn->r", gap, gap)))
            return total

        plain += error(ones)
        errors += [error(scales) for scales, _ in _offered(trial.fitted, sizes, classes)]
    best = int(np.argmin(errors))
    if not errors[best] < plain:
        return Scales(ones, 0.0, None)
    scales, ratio = list(_offered(seen.rows, sizes, classes))[best]
    return Scales(scales, gain_db(plain, float(errors[best])), ratio)


def _offered(
    rows: Rows, sizes: NDArray[np.float64], classes: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Scales with the exponent that made them."""
    x = np.asarray(rows.counts @ np.abs(rows.values), np.float64) / max(float(rows.counts.sum()), 1.0)
    parts = [x, sizes]
    if classes is not None:
        parts = [largest_of(part, classes) for part in parts]
    x, w = (np.maximum(part, (float(part.max(initial=0.0)) or 1.0) * _SMALLEST) for part in parts)
    for exponent in RATIOS:
        for scales in (x**exponent, x**exponent / w ** (1 - exponent)):
            yield np.asarray(scales / np.sqrt(scales.max() * scales.min()), np.float32), exponent


def _sizes(weights: Sequence[NDArray[Any]], size: int | None) -> NDArray[np.float64]:
    """Mean over outputs of |w| relative to the largest of its block, [K]."""
    total, outputs = np.zeros(len(weights[0])), 0
    for weight in weights:
        magnitudes = np.abs(np.asarray(weight, np.float64))
        for rows in blocks.spans(len(magnitudes), size):
            top = magnitudes[rows].max(axis=0, initial=0.0)
            total[rows] += (magnitudes[rows] / np.where(top > 0, top, 1.0)).sum(axis=1)
        outputs += weight.shape[1]
    return total / outputs


def clip(w: NDArray[Any], rows: Rows, *, size: int | None, format: Format, half: bool = True) -> Blocks:
    """The nearest integers, with the range of each block that errs least in what the block adds to the outputs.

    Args:
        w: floating point weight [K, N], already multiplied with the scales.
        rows: recorded rows of the activation, already divided by them.
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        half: scales are numbers that FP16 holds exactly.
    """
    weight = blocks.matrix(w)
    plain = blocks.round_to_nearest(weight, size, format, half=half)
    whole = np.atleast_2d(plain.scales)
    best, least = whole.copy(), np.full(whole.shape, np.inf)
    for factor in FACTORS:
        scales = whole if factor == 1 else blocks.storable(whole * np.float32(factor), format, half=half)
        gap = blocks.dequantize(blocks.quantize(weight, scales, size, format)) - weight
        for block, part in enumerate(blocks.spans(len(weight), size)):
            added = rows.values[:, part] @ gap[part]
            error = rows.counts @ added**2
            better = error < least[block]
            least[block] = np.where(better, error, least[block])
            best[block] = np.where(better, scales[block], best[block])
    return blocks.quantize(weight, best, size, format)
