"""Activations on a symmetric grid that lie to one side of zero, moved onto its middle without an operator at the layer.

    x·Ŵ + b  =  (x + c)·Ŵ + (b - c·1ᵀŴ),   c = (zero - 128) · step

GELU, SiLU and Softplus write next to nothing below zero, so a symmetric grid wastes almost half of its integers on
them. A grid with a zero point does not, but TensorRT has none. Moved by c, the values are those of the unsigned grid
less 128: the same integers, with zero still on the grid. The Add is part of the kernel that computes the activation,
and what it adds to the outputs is known, so it is taken off the bias once and for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.numerics import rounding
from qcompiler.plan import Quantizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


MIDDLE = 128


def shift_of(quantizer: Quantizer) -> float:
    """What is added to a tensor so that its unsigned grid becomes a symmetric one, 0 where it is one already.

    It is a number that FP16 holds, so that the same is added whatever the graph is typed as.
    """
    if quantizer.span is None:
        return 0.0
    width, zero = rounding.grid(*quantizer.span)
    whole = float(width) * (zero - MIDDLE)
    with np.errstate(over="ignore"):
        half = float(np.float16(whole))
    return half if np.isfinite(half) and half else whole


def bias_behind(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node, int] | None:
    """Where the constant is that is added to what a product writes: the Gemm, or the Add behind it, and which input."""
    if graphs.is_op(node, "Gemm"):
        fits = len(node.inputs) > 2 and _is_bias(node.inputs[2]) and node.attrs.get("beta", 1.0) == 1.0
        return (node, 2) if fits else None
    reader = graphs.only_consumer(graph, node.outputs[0])
    if not graphs.is_op(node, "MatMul") or reader is None or not graphs.is_op(reader, "Add"):
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    return (reader, index) if _is_bias(reader.inputs[index]) else None


def _is_bias(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a float constant of one axis at most that is longer than 1, the last."""
    values = graphs.constant_value(tensor)
    return values is not None and values.dtype == np.float32 and values.size in (1, *values.shape[-1:])


def add(graph: gs.Graph, names: Names, tensor: gs.Variable, moved: float) -> gs.Variable:
    """An Add behind a tensor."""
    amount = gs.Constant(names.fresh(f"{tensor.name}/shift"), np.array(moved, np.float32))
    output = gs.Variable(names.fresh(f"{tensor.name}/shifted"), np.float32, tensor.shape)
    graph.nodes.append(gs.Node("Add", names.fresh(f"{tensor.name}/Shift"), {}, [tensor, amount], [output]))
    return output


def take_off(graph: gs.Graph, names: Names, node: gs.Node, moved: float, sums: NDArray[np.float32]) -> None:
    """Takes what a moved activation adds to the outputs of a layer off the bias behind it.

    What stands between the layer and an Add is another tensor than the float model has, and gets a name of its own:
    what was observed of that name does not hold for it.

    Args:
        graph: that the layer belongs to.
        names: of its nodes and tensors.
        node: the layer, with its weight quantized.
        moved: what was added to its activation.
        sums: of the weights of each output channel, float32 [channels].

    Raises:
        ValueError: there is no such bias.
    """
    found = bias_behind(graph, node)
    if found is None:
        raise ValueError(f"'{node.name}' has no constant bias behind it: its activation cannot be shifted")
    owner, index = found
    if owner is not node:
        node.outputs[0].name = names.fresh(f"{node.outputs[0].name}/moved")
    old = owner.inputs[index]
    extra = np.float64(moved) * float(node.attrs.get("alpha", 1.0)) * sums
    values = (graphs.values_of(old) - extra).astype(np.float32)
    edit.set_input(owner, index, gs.Constant(names.fresh(f"{old.name}/shifted"), values))
