"""Mul, Div, Add and Sub by constants per channel, behind a linear node, become part of its weight and bias.

    Add(Mul(Conv(x, W, b), s[1,M,1,1]), t[1,M,1,1])  ⇒  Conv(x, W·s, b·s + t)

Paddle writes the bias of every convolution like that, and other exporters whole batch normalisations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.affine import Affine, absorb, channels, why_not_absorb
from qcompiler.graph import (
    Names,
    constant_value,
    detach,
    graphs,
    is_float,
    is_op,
    producer,
    remove_nodes,
    replace_uses,
)
from qcompiler.pass_ import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FoldChannelAffine(Pass):
    """Fold multiplications and additions of constants per channel into the Conv, ConvTranspose or Gemm before them."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 1e-4

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Mul, Div, Add or Sub that has a constant and a linear node before it."""
        names = Names(graph)
        for inner in graphs(graph):
            gone: list[gs.Node] = []
            for node in inner.nodes:
                operands = _operands(node)
                if operands is None:
                    continue
                index, linear, constant = operands
                refusal = why_not_absorb(inner, linear, node) or _fold(node, index, linear, constant, names)
                if refusal:
                    yield Skipped(node.name, refusal)
                    continue
                replace_uses(inner, node.outputs[0], linear.outputs[0])
                detach(node)  # at once, so that the next one in a chain finds the linear node free
                gone.append(node)
                yield Changed(node.name, f"{node.op} folded into '{linear.name}'")
            remove_nodes(inner, gone)


def _operands(node: gs.Node) -> tuple[int, gs.Node, NDArray[Any]] | None:
    """Index of the input that a linear node writes, that node, and the constant on the other side."""
    if not is_op(node, "Mul", "Div", "Add", "Sub"):
        return None
    for index in (0, 1):
        linear = producer(node.inputs[index])
        constant = constant_value(node.inputs[1 - index])
        if linear is not None and is_op(linear, "Conv", "ConvTranspose", "Gemm") and constant is not None:
            return index, linear, constant
    return None


def _fold(node: gs.Node, index: int, linear: gs.Node, constant: NDArray[Any], names: Names) -> str:
    if not is_float(node.inputs[1 - index]):
        return "its constant is not float"
    values = _per_channel(constant, linear)
    if values is None:
        return f"its constant of shape {list(constant.shape)} is not one value per output channel of '{linear.name}'"
    if not np.isfinite(values).all():
        return "its constant is not finite"
    if node.op == "Div" and index == 1:
        return "it divides by the result"
    if node.op == "Div" and not values.all():
        return "it divides by zero"
    if node.op == "Div":
        return absorb(linear, Affine(scale=1.0 / values), names)
    if node.op == "Mul":
        return absorb(linear, Affine(scale=values), names)
    if node.op == "Add":
        return absorb(linear, Affine(shift=values), names)
    if index == 0:
        return absorb(linear, Affine(shift=-values), names)
    return absorb(linear, Affine(scale=np.full(values.shape, -1.0), shift=values), names)


def _per_channel(constant: NDArray[Any], linear: gs.Node) -> NDArray[Any] | None:
    """The constant as float64 [M] where it varies along the channel axis of the output at most; else None."""
    rank = len(linear.inputs[1].shape)
    if constant.ndim > rank:
        return None
    aligned = np.asarray(constant, np.float64).reshape((1,) * (rank - constant.ndim) + constant.shape)
    count = channels(linear)
    if aligned.size != aligned.shape[1] or aligned.shape[1] not in (1, count):
        return None
    return np.broadcast_to(aligned.reshape(-1), (count,))
