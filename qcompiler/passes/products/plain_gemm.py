"""A Gemm with a constant matrix multiplies by that alone: alpha and beta are in constants, the matrix is on the right.

    Gemm(x, W, c; alpha, beta)      ⇒  Gemm(x, alpha·W, beta·c)         a computed c gets a Mul in front
    Gemm(x, W, c; beta=0)           ⇒  Gemm(x, W)
    Gemm(x, W; transA=1)            ⇒  Gemm(Transpose(x), W)
    Gemm(W, x, c)                   ⇒  Add(Transpose(MatMul(Transpose(x), Wᵀ)), c)

TensorRT multiplies by alpha between the DequantizeLinear and the product, which then runs in float; and what is counted
and smoothed by channel has its channels last. In the engine the transposes are part of the kernels around.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass
from qcompiler.passes.products._writer import Writer

_BIAS_IS_OPTIONAL = 11  # from this opset on


@dataclass(frozen=True)
class PlainGemm(Pass):
    """Fold alpha and beta of a Gemm into its constants, and bring its constant matrix to the right."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Gemm with a constant matrix that is not plain yet; others multiply activations."""
        names = Names(graph)
        for inner in graphs.graphs(graph):
            for node in [one for one in inner.nodes if graphs.is_op(one, "Gemm")]:
                if graphs.is_constant(node.inputs[1]):
                    done = [*_fold_alpha(node, names), *_fold_beta(inner, node, names), *_turn_left(inner, node, names)]
                elif graphs.is_constant(node.inputs[0]):
                    done = _as_product(inner, node, names)
                else:
                    continue
                if done:
                    yield Changed(node.name, "; ".join(done))


def _scaled(tensor: gs.Tensor, factor: float, names: Names) -> gs.Constant:
    values = graphs.values_of(tensor)
    return edit.add_constant(names.fresh(f"{tensor.name}/scaled"), np.asarray(values * factor, values.dtype))


def _fold_alpha(node: gs.Node, names: Names) -> list[str]:
    alpha = float(node.attrs.pop("alpha", 1.0))
    if alpha == 1.0:
        return []
    edit.set_input(node, 1, _scaled(node.inputs[1], alpha, names))
    return [f"alpha={alpha:g} is in its weight"]


def _fold_beta(graph: gs.Graph, node: gs.Node, names: Names) -> list[str]:
    beta = float(node.attrs.pop("beta", 1.0))
    if beta == 1.0 or not graphs.is_present(node, 2):
        return []
    bias = node.inputs[2]
    if beta == 0.0:
        if int(graph.opset) >= _BIAS_IS_OPTIONAL:
            del node.inputs[2]
        else:
            edit.set_input(node, 2, edit.add_constant(names.fresh(f"{node.name}/zero"), np.zeros(1, np.float32)))
        return ["beta=0 drops its bias"]
    if graphs.is_constant(bias):
        edit.set_input(node, 2, _scaled(bias, beta, names))
        return [f"beta={beta:g} is in its bias"]
    factor = edit.add_constant(names.fresh(f"{node.name}/beta"), np.array(beta, graphs.dtype_of(node.inputs[1])))
    scaled = gs.Variable(names.fresh(f"{bias.name}/scaled"), bias.dtype, bias.shape)
    edit.insert_before(graph, node, gs.Node("Mul", names.fresh(f"{node.name}/Mul"), {}, [bias, factor], [scaled]))
    edit.set_input(node, 2, scaled)
    return [f"beta={beta:g} stands in front of it"]


def _turn_left(graph: gs.Graph, node: gs.Node, names: Names) -> list[str]:
    if not node.attrs.pop("transA", 0):
        return []
    x = node.inputs[0]
    shape = graphs.shape_of(x)
    turned = gs.Variable(names.fresh(f"{x.name}/turned"), x.dtype, None if shape is None else shape[::-1])
    made = gs.Node("Transpose", names.fresh(f"{node.name}/Transpose"), {"perm": [1, 0]}, [x], [turned])
    edit.insert_before(graph, node, made)
    edit.set_input(node, 0, turned)
    return ["transA is a Transpose"]


def _as_product(graph: gs.Graph, node: gs.Node, names: Names) -> list[str]:
    """Gemm(W, x, c) with its matrix on the right."""
    writer, attrs = Writer(graph, node, names), node.attrs
    w, x = graphs.values_of(node.inputs[0]), node.inputs[1]
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    w = w if attrs.get("transA", 0) else w.T
    w = w if alpha == 1.0 else (w * alpha).astype(w.dtype)
    rows = x if attrs.get("transB", 0) else writer.transpose(x, [1, 0])
    result = writer.transpose(writer.matmul(rows, writer.constant("weight", w)), [1, 0])
    if graphs.is_present(node, 2) and beta != 0.0:
        bias = node.inputs[2]
        if beta != 1.0:
            bias = writer.add("Mul", [bias, writer.constant("beta", np.array(beta, w.dtype))])
        result = writer.add("Add", [result, bias])
    writer.replace(result)
    return ["its matrix came to the right"]
