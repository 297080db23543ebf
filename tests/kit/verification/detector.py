"""A detector with seeded random weights, whose boxes and scores are parts of one output, and pictures for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from tests.kit.rewrite import model


def detector(spread: float = 1.0) -> onnx.ModelProto:
    """Convolutions, and two heads whose outputs are one tensor: boxes in the hundreds, scores around 1.

    `spread` is how much larger than the first the last channel between the second convolution and the third is.
    """
    rng = np.random.default_rng(5)
    shapes = {"w0": (16, 3), "w1": (32, 16), "w2": (32, 32), "box": (8, 32), "score": (24, 32)}
    weights: dict[str, Any] = {
        name: (rng.standard_normal((*shape, 3, 3)) / math.sqrt(shape[1] * 4)).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights["box"] *= 300
    weights |= {f"b{name}": rng.standard_normal(one.shape[0]).astype(np.float32) for name, one in weights.items()}
    uneven = np.geomspace(1, spread, 32).astype(np.float32)
    weights["w1"] *= uneven[:, None, None, None]
    weights["bw1"] *= uneven
    weights["w2"] /= uneven[:, None, None]
    pads = {"pads": [1] * 4}
    return model(
        ("Conv", "x w0 bw0", "c0", pads),
        ("Relu", "c0", "r0"),
        ("Conv", "r0 w1 bw1", "c1", pads),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2 bw2", "c2", pads),
        ("Relu", "c2", "r2"),
        ("Conv", "r2 box bbox", "boxes", pads),
        ("Conv", "r2 score bscore", "scores", pads),
        ("Concat", "boxes scores", "y", {"axis": 1}),
        inputs={"x": (1, 3, 12, 12)},
        outputs=("y",),
        weights=weights,
    )


def pictures(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]
