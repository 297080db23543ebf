"""The 8-bit grid without a sign: where the smallest value is not the negative of the largest, a zero point saves range.

ONNX Runtime's x86 kernels multiply unsigned activations by signed weights (that is what VNNI does), so there the grid
costs nothing; TensorRT has none.
"""

from __future__ import annotations

import numpy as np

LEVELS = 255.0

Span = tuple[float, float]


def span(amax: float, observed: Span) -> Span:
    """The part of [-amax, amax] that was observed, widened to contain 0."""
    low, high = observed
    return max(min(low, 0.0), -amax), min(max(high, 0.0), amax)


def grid(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point (0..255) of uint8 over [low, high], which contains 0.

    255 steps never reach beyond `high` where `low` is 0: ONNX Runtime drops a Relu or Clip in front of
    QuantizeLinear only if the grid lies within its bounds.
    """
    scale = np.float32(max(high - low, float(np.finfo(np.float32).tiny)) / LEVELS)
    if float(scale) * LEVELS > high - low and high > low:
        scale = np.nextafter(scale, np.float32(0))
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
