"""Small models for those who only look, and feeds that spike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.kit.rewrite import model

RNG = np.random.default_rng(3)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def convnet(dims: tuple[Any, ...] = (1, 3, 16, 16)) -> onnx.ModelProto:
    """Conv, Relu, Conv, mean over pixels, Gemm: one of everything that is common."""
    return model(
        ("Conv", "x w1", "c1", {"pads": [1, 1, 1, 1]}),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", "c2", "p"),
        ("Flatten", "p", "f"),
        ("Gemm", "f w3", "y"),
        inputs={"x": dims},
        weights=weights(w1=(16, 3, 3, 3), w2=(32, 16, 3, 3), w3=(32, 20)),
    )


def mlp() -> onnx.ModelProto:
    nodes = [("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "y")]
    return model(*nodes, inputs={"x": ("n", 24, 32)}, weights=weights(w1=(32, 64), w2=(64, 32)))
