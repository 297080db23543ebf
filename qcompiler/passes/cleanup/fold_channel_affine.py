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

from qcompiler.ir.edit import detach, remove_nodes, replace_uses
from qcompiler.ir.graph import constant_value, graphs, is_float, is_op, producer
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.cleanup._affine import Affine, absorb, channels, why_not_absorb
from qcompiler.passes.cleanup.fold_batch_norm import fold as fold_batch_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FoldChannelAffine(Pass):
    """Fold multiplications and additions of constants per channel into the Conv, ConvTranspose or Gemm before them.

    A BatchNormalization that stands behind them (Conv → Add → BatchNormalization) goes along.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})  # the last of the folding passes
    exact_to: ClassVar[float | None] = 1e-4

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Mul, Div, Add or Sub that has a constant and a linear node before it."""
        names = Names(graph)
        for inner in graphs(graph):
            gone: list[gs.Node] = []
            for node in inner.nodes:
                refusal = _fold(inner, node, names)
                if refusal is None:
                    continue
                if refusal:
                    yield Skipped(node.name, refusal)
                    continue
                source = next(tensor for tensor in node.inputs if is_op(producer(tensor), *_LINEAR))
                replace_uses(inner, node.outputs[0], source)
                detach(node)  # at once, so that the next one in a chain finds the linear node free
                gone.append(node)
                yield Changed(node.name, f"{node.op} folded into '{source.inputs[0].name}'")
            remove_nodes(inner, gone)


def _fold(graph: gs.Graph, node: gs.Node, names: Names) -> str | None:
    """Empty where the node was folded, else why not; None where it is not of the kind."""
    if is_op(node, "BatchNormalization"):
        # FoldBatchNorm has had its say on all but those that only came free in this sweep.
        return None if fold_batch_norm(graph, node, names) else ""
    operands = _operands(node)
    if operands is None:
        return None
    index, linear, constant = operands
    return why_not_absorb(graph, linear, node) or _absorb(node, index, linear, constant, names)


def _operands(node: gs.Node) -> tuple[int, gs.Node, NDArray[Any]] | None:
    """Index of the input that a linear node writes, that node, and the constant on the other side."""
    if not is_op(node, "Mul", "Div", "Add", "Sub"):
        return None
    for index in (0, 1):
        linear = producer(node.inputs[index])
        constant = constant_value(node.inputs[1 - index])
        if linear is not None and is_op(linear, *_LINEAR) and constant is not None:
            return index, linear, constant
    return None


def _absorb(node: gs.Node, index: int, linear: gs.Node, constant: NDArray[Any], names: Names) -> str:
    if not is_float(node.inputs[1 - index]):
        return "its constant is not float"
    values = _per_channel(constant, linear)
    if values is None:
        return f"its constant of shape {list(constant.shape)} is not one value per output channel of '{linear.name}'"
    if not np.isfinite(values).all():
        return "its constant is not finite"
    affine = _affine(node.op, index, values)
    return absorb(linear, affine, names) if isinstance(affine, Affine) else affine


def _affine(op: str, index: int, values: NDArray[Any]) -> Affine | str:
    if op == "Div" and index == 1:
        return "it divides by the result"
    if op == "Div" and not values.all():
        return "it divides by zero"
    if op == "Div":
        return Affine(scale=1.0 / values)
    if op == "Mul":
        return Affine(scale=values)
    if op == "Add":
        return Affine(shift=values)
    if index == 0:
        return Affine(shift=-values)
    return Affine(scale=np.full(values.shape, -1.0), shift=values)


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
