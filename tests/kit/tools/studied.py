"""A perceptron of two products, data for it, and the groups of a study by their first layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompiler.tools.sensitivity.sensitivity import Sensitivity
from tests.kit.rewrite import model

Feeds = list[dict[str, Any]]


RNG = np.random.default_rng(8)


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


W1, W2 = normal(32, 48), normal(48, 24)


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def perceptron() -> onnx.ModelProto:
    return model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("n", 20, 32)},
        weights={"w1": W1, "w2": W2},
    )


def data(count: int = 3, *shape: int) -> Feeds:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((1, *(shape or (20, 32)))).astype(np.float32)} for _ in range(count)]


def by_layer(found: Sensitivity) -> dict[str, Any]:
    return {group.layers[0]: group for group in found.groups}
