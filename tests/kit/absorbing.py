"""How the division of a tensor is tested: models in a few lines, random factors, outputs before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.runtime.session import Session
from qcompiler.verification.equivalence import differences
from tests.kit.rewrite import model, random_feeds, to_graph, whole

IMAGE = {"x": (2, 4, 6, 6)}
TOKENS = {"x": (2, 5, 8)}


def normal(*shape: int, seed: int = 3) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return np.abs(normal(*shape)) + np.float32(0.5)


def find(graph: gs.Graph, name: str) -> gs.Tensor:
    return graph.tensors()[name]


def factors(plan: absorb.Absorption, seed: int = 0) -> Any:
    """Random ones over three orders of magnitude that keep what is tied together."""
    return plan.tied(np.exp(np.random.default_rng(seed).normal(size=plan.classes.size) * 1.5).astype(np.float32))


def divide(
    proto: onnx.ModelProto, name: str, *, axis: int | None = None, split: bool = False
) -> tuple[gs.Graph, absorb.Absorption]:
    """Plans and applies random factors; asserts that the tensor is divided by them and that no output moved."""
    graph = to_graph(proto)
    feeds = random_feeds(graph)
    tensor = find(graph, name)
    axis = axis if axis is not None else absorb.channel_axis(tensor)
    assert axis is not None
    before = run(graph, feeds, [tensor.name])
    written = whole(graph).SerializeToString(deterministic=True)
    plan = absorb.find_moves(graph, tensor, axis, split=split)
    assert plan.why == ""
    assert whole(graph).SerializeToString(deterministic=True) == written, "planning edits nothing"
    scale = factors(plan)
    assert absorb.apply(graph, plan, scale, Names(graph)) == ""
    onnx.checker.check_model(whole(graph), full_check=True)
    watched = f"{name}/smoothed" if plan.copies else name
    after = run(graph, feeds, [watched])
    shaped = scale.reshape([-1 if k == axis % len(tensor.shape) else 1 for k in range(len(tensor.shape))])
    np.testing.assert_allclose(after.pop(watched)[0], before.pop(name)[0] / shaped, rtol=1e-4, atol=1e-5)
    assert max(differences(before, after).values()) <= 1e-5
    return graph, plan


def run(graph: gs.Graph, feeds: Any, more: Sequence[str] = ()) -> dict[str, list[Any]]:
    names = [*(output.name for output in graph.outputs), *more]
    return {name: [value] for name, value in Session(graph, outputs=names, optimize=False).run(feeds).items()}


def takers(plan: absorb.Absorption) -> list[str]:
    return sorted(node.op for node in plan.takers)


def build(
    nodes: Sequence[Any], weights: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    """A model; a weight that is given as a shape is random."""
    filled = {name: normal(*value) if isinstance(value, tuple) else value for name, value in weights.items()}
    return model(*nodes, inputs=inputs, weights=filled, outputs=outputs, opset=23)


VECTORS = {"x": (3, 4)}
DENSE, KERNEL = ("MatMul", "t w", "y"), ("Conv", "t w", "y")
PADS = {"pads": [1] * 4}
GELU = [
    ("Div", "h root", "e1"),
    ("Erf", "e1", "e2"),
    ("Add", "e2 one", "e3"),
]
CONSTANTS = {"root": np.float32(1.4142135), "one": np.float32(1), "half": np.float32(0.5)}
NORM = [
    ("ReduceMean", "x last", "m"),
    ("Sub", "x m", "d"),
    ("Mul", "d d", "d2"),
    ("ReduceMean", "d2 last", "v"),
    ("Add", "v eps", "ve"),
    ("Sqrt", "ve", "sd"),
    ("Div", "d sd", "n"),
]
LAST = {"last": np.array([-1]), "eps": np.float32(1e-5)}
