"""Graphs of a few convolutions over an image [1, 8, 6, 6]."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tests.kit.rewrite import Spec, model, to_graph

SAME = {"pads": [1, 1, 1, 1]}


W = np.random.default_rng(3).standard_normal((8, 8, 3, 3)).astype(np.float32)


POINT = W[:, :, :1, :1].copy()


def graph(*nodes: Spec, outputs: tuple[str, ...] = ("y",), inputs: Any = None, **weights: Any) -> gs.Graph:
    inputs = inputs or {"x": (1, 8, 6, 6)}
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights={"w": W, "p": POINT, **weights}, opset=21))
