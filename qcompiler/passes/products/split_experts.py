"""A stack of constant matrices becomes a product for each, so that each has ranges of its own.

    MatMul(x [e, s, k], W [e, k, n])  ⇒  Concat(MatMul(x₁, W₁), ..., MatMul(xₑ, Wₑ))      x₁, ..., xₑ = Split(x)
    MatMul(x [1, s, k], W [e, k, n])  ⇒  Concat(MatMul(x, W₁), ..., MatMul(x, Wₑ))
    MatMul(x, W [1, k, n])            ⇒  MatMul(x, W [k, n])
    MatMul(x, W [e, k, n])            ⇒  Mul(MatMul(x, W / f), f [e, 1, n])               many, or small ones

Experts of a mixture differ in size. Engines take one scale for the activations of all of them, and scales along the
last axis of the weights alone: one along the experts makes TensorRT-RTX compute in float, and ONNX Runtime takes none
at all where there is a stack. What was split has everything that other products have. TensorRT-RTX quantizes all parts
of a Split in one kernel and scales and joins all results in another, so only the products themselves become more.

Where that would be too many, the weights of each expert and column are divided by f, which makes the ranges of all
experts alike, and their results are multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.products._writer import AXES_ARE_INPUTS, Writer
from qcompiler.runtime import shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST = 32  # experts that get products of their own: beyond, so many kernels in a row would cost more than they gain
_TILE = 64 * 64  # elements: matrices up to one tile of a product are better computed together
_ALIKE = 0.5  # a range that is larger than this share of the largest costs less than a bit


@dataclass(frozen=True)
class SplitExperts(Pass):
    """Give each of several constant matrices that one MatMul stacks a product, and so a scale, of its own."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per MatMul with a constant of three or more axes."""
        found = [(inner, node) for inner in graphs.graphs(graph) for node in inner.nodes if _stack(node)]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            shape = graphs.shape_of(node.inputs[0])
            if shape is None or len(shape) < 2 or int(graph.opset) < AXES_ARE_INPUTS:
                yield Skipped(node.name, "the axes of its activation are not known")
                continue
            why = _how(node, shape)
            if why:
                factors = _factors(graphs.values_of(node.inputs[1]))
                if factors is None:
                    yield Skipped(node.name, why)
                    continue
                _equalize(inner, node, factors, names)
                yield Changed(node.name, f"weights of all experts have one range; {why}")
                continue
            count = _split(inner, node, shape, names)
            yield Changed(node.name, f"{count} products" if count > 1 else "its weight has two axes")


def _stack(node: gs.Node) -> tuple[int, ...]:
    """The axes in front of the matrices of a constant right operand; empty where it is one matrix, or computed."""
    if not graphs.is_op(node, "MatMul") or not graphs.is_constant(node.inputs[1]) or graphs.is_constant(node.inputs[0]):
        return ()
    shape = graphs.static_shape(node.inputs[1]) if graphs.is_float(node.inputs[1]) else None
    return () if shape is None else shape[:-2]


def _how(node: gs.Node, shape: tuple[int | str | None, ...]) -> str:
    """Why a stack cannot be taken apart, or should not be."""
    stack, matrix = _stack(node), math.prod(node.inputs[1].shape[-2:])
    count = math.prod(stack)
    if count > _MOST:
        return f"{count} products would be too many"
    if count > 1 and matrix <= _TILE:
        return f"matrices of {matrix} elements are too small for products of their own"
    own = shape[:-2][-len(stack) :]
    for mine, theirs in zip(reversed(own), reversed(stack), strict=False):
        if theirs > 1 and mine not in (1, theirs):
            return f"its activation has an axis of size '{mine}' where the weights have {theirs}"
    return ""


def _split(graph: gs.Graph, node: gs.Node, shape: tuple[int | str | None, ...], names: Names) -> int:
    """Replaces a product of a stack; returns how many there are now."""
    writer, stack = Writer(graph, node, names), _stack(node)
    values = graphs.values_of(node.inputs[1])
    rank = max(len(shape), values.ndim)
    x = writer.unsqueeze(node.inputs[0], list(range(rank - len(shape))))
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    made = _products(writer, x, sizes, values, rank - values.ndim, math.prod(stack) == 1)
    writer.replace(made)
    return math.prod(stack)


def _products(
    writer: Writer, x: gs.Tensor, sizes: tuple[int | str | None, ...], values: NDArray[np.float32], axis: int, one: bool
) -> gs.Tensor:
    """x [..., stack.., rows, depth] times values [stack.., depth, columns]; `axis` is the first one of the stack."""
    if values.ndim == 2:
        weight = writer.constant("weight", values)
        return writer.matmul(x, weight, name="" if one else writer.fresh("expert"))
    count = values.shape[0]
    if count == 1:
        return _products(writer, x, sizes, values[0], axis + 1, one)
    parts = [x] * count if sizes[axis] == 1 else writer.split(x, axis, [1] * count)
    products = [_products(writer, part, sizes, values[index], axis + 1, one) for index, part in enumerate(parts)]
    return writer.add("Concat", products, axis=axis)


def _factors(values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """[stack.., 1, columns]: ranges of columns as a share of the largest expert's; None where all are alike."""
    ranges = np.abs(values).max(axis=-2, keepdims=True)
    largest = ranges.max(axis=tuple(range(values.ndim - 2)), keepdims=True)
    factors = np.where(ranges > 0, ranges / np.where(largest > 0, largest, 1), 1).astype(values.dtype)
    found: NDArray[np.float32] | None = factors if float(factors.min()) < _ALIKE else None
    return found


def _equalize(graph: gs.Graph, node: gs.Node, factors: NDArray[np.float32], names: Names) -> None:
    writer, values = Writer(graph, node, names), graphs.values_of(node.inputs[1])
    weight = writer.constant("weight", (values / factors).astype(values.dtype))
    product = writer.matmul(node.inputs[0], weight)
    product.shape = node.outputs[0].shape
    writer.replace(writer.add("Mul", [product, writer.constant("ranges", factors)]))
