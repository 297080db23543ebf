"""GPTQ: integers chosen one input channel after the other, each making up for the errors of those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.blocks import Blocks, Format


def gptq(
    w: NDArray[Any],
    hessian: NDArray[np.float64],
    *,
    size: int | None,
    format: Format,
    damp: float = 0.01,
    act_order: bool = True,
    half: bool = True,
) -> Blocks:
    """The integers that err least in the layer's output, tr((W - Ŵ)ᵀ H (W - Ŵ)).

    Args:
        w: floating point weight [K, N].
        hessian: Σ x·xᵀ over the inputs of the layer, float64 [K, K].
        size: input channels that share a scale, None for one scale per output.
        format: `int4` or `int8`.
        damp: what is added to the diagonal, relative to its mean.
        act_order: the input channels of most power come first.
        half: scales are numbers that FP16 holds exactly.

    Raises:
        ModelError: the weight is no matrix, holds NaN or infinity, or needs a scale beyond FP16.
    """
    return blocks.clip_by_error(w, size, format, np.diag(hessian), half=half)
