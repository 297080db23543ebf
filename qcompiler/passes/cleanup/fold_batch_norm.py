"""BatchNormalization behind a linear node becomes part of its weight and bias.

BatchNormalization(Conv(x, W, b); γ, β, μ, σ²)  ⇒  Conv(x, W·s, (b - μ)·s + β)    with s = γ / √(σ² + ε)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import detach, remove_nodes, replace_uses
from qcompiler.ir.graph import constant_value, graphs, is_op, producer
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.cleanup._affine import Affine, absorb, channels, why_not_absorb


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 1e-4

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per BatchNormalization."""
        names = Names(graph)
        for inner in graphs(graph):
            gone: list[gs.Node] = []
            for node in inner.nodes:
                if not is_op(node, "BatchNormalization"):
                    continue
                refusal = fold(inner, node, names)
                if refusal:
                    yield Skipped(node.name, refusal)
                    continue
                source = node.inputs[0]
                replace_uses(inner, node.outputs[0], source)
                detach(node)  # at once, so that whatever follows finds the linear node free
                gone.append(node)
                yield Changed(node.name, f"folded into '{source.inputs[0].name}'")
            remove_nodes(inner, gone)


def fold(graph: gs.Graph, node: gs.Node, names: Names) -> str:
    """Puts a BatchNormalization into the linear node before it, which is left to be bypassed.

    Returns:
        Why that is impossible, and then nothing is changed; empty where it is done.
    """
    linear = producer(node.inputs[0])
    if linear is None or not is_op(linear, "Conv", "ConvTranspose", "Gemm"):
        return f"it follows {'no node' if linear is None else linear.op}, not Conv, ConvTranspose or Gemm"
    if node.attrs.get("training_mode", 0) or any(t.name and t.outputs for t in node.outputs[1:]):
        return "it is in training mode"
    if not node.attrs.get("spatial", 1):
        return "it normalises each position by itself (spatial=0)"
    refusal = why_not_absorb(graph, linear, node)
    if refusal:
        return refusal
    affine = _affine(node)
    if isinstance(affine, str):
        return affine
    if affine.scale is None or affine.scale.shape != (channels(linear),):
        return f"its parameters do not have one value per output channel of '{linear.name}'"
    return absorb(linear, affine, names)


def _affine(node: gs.Node) -> Affine | str:
    found = [constant_value(tensor) for tensor in node.inputs[1:5]]
    values = [np.asarray(value, np.float64) for value in found if value is not None]
    if len(values) != 4:
        return "its parameters are not constant"
    gamma, beta, mean, variance = values
    spread = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (spread > 0).all() or not np.isfinite(np.stack(values)).all():
        return "its parameters are not finite, or a variance is negative"
    scale = gamma / np.sqrt(spread)
    return Affine(scale, beta - mean * scale)
