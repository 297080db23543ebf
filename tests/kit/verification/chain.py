"""A chain of matrix products, the same chain with one product changed, feeds for both, and what numpy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feeds = dict[str, NDArray[Any]]


WEIGHTS = [np.random.default_rng(k).normal(size=(8, 8)).astype(np.float32) / 3 for k in range(5)]


def chain(
    path: Path, weights: list[NDArray[Any]], *, extra: tuple[onnx.NodeProto, ...] = (), outputs: str = "y"
) -> Path:
    """x -> MatMul, Relu -> ... -> y; the MatMul k is called mm{k} and writes h{k}."""
    nodes, last = [], "x"
    for k in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [last, f"w{k}"], [f"h{k}"], name=f"mm{k}"))
        last = "y" if k == len(weights) - 1 else f"r{k}"
        nodes.append(helper.make_node("Relu" if last != "y" else "Identity", [f"h{k}"], [last], name=f"act{k}"))
    listed = [
        helper.make_tensor_value_info(name, kind, ["n", "m"][: 1 + (kind == TensorProto.FLOAT)])
        for name, kind in {"y": TensorProto.FLOAT, "index": TensorProto.INT64}.items()
        if name in outputs.split()
    ]
    graph = helper.make_graph(
        [*nodes, *extra],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        listed,
        [numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def changed(layer: int, amount: float) -> list[NDArray[Any]]:
    noise = np.random.default_rng(9).normal(size=(8, 8)).astype(np.float32)
    return [weight + amount * noise if k == layer else weight for k, weight in enumerate(WEIGHTS)]


class Samples:
    """Feeds of random rows, the same at each iteration."""

    name = "random rows"
    random = False

    def __init__(self, count: int = 6, rows: int = 3) -> None:
        self.count, self.rows = count, rows

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            yield {"x": rng.normal(size=(self.rows, 8)).astype(np.float32)}


def numpy_chain(weights: list[NDArray[Any]]) -> Callable[[Mapping[str, NDArray[Any]]], Feeds]:
    def run(feeds: Mapping[str, NDArray[Any]]) -> Feeds:
        x = feeds["x"]
        for k, weight in enumerate(weights):
            x = x @ weight
            x = np.maximum(x, 0) if k < len(weights) - 1 else x
        return {"y": x}

    return run
