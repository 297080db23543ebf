"""Products of ONNX Runtime's own: those that transpose, scale and activate, and convolutions with channels at the end.

    FusedMatMul(a, b){transA, transB, transBatchA, transBatchB, alpha}   ⇒  alpha · MatMul(Transpose(a), Transpose(b))
    FusedGemm(a, b, c){activation}                                       ⇒  Relu(Gemm(a, b, c))
    FusedConv(x, w, b, z){activation}                                    ⇒  Relu(Conv(x, w, b) + z)
    NhwcConv, NhwcFusedConv                                              ⇒  the same between Transposes

A constant operand is transposed here, so that it is a weight like any other.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.foreign._activations import activated, named_activation
from qcompiler.passes.foreign._rules import Rule, integer, number, rank, rule
from qcompiler.passes.node_writer import NodeWriter

_TRANSPOSED = "transA transB transBatchA transBatchB alpha"
_GIVEN = ("alpha", "beta", "gamma")
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _matmul(w: NodeWriter) -> None:
    w.result(0, _product(w))


def _matmul_activation(w: NodeWriter) -> None:
    parameters = {name: number(w, f"activation_{name}", 0) for name in _GIVEN if f"activation_{name}" in w.node.attrs}
    w.result(0, activated(w, _product(w), named_activation(w), parameters))


def _product(w: NodeWriter) -> gs.Tensor:
    operands = [_turned(w, name, index) for index, name in enumerate("AB")]
    product, alpha = w.op("MatMul", "product", operands), number(w, "alpha", 1)
    return product if alpha == 1 else w.op("Mul", "scaled", [product, w.number("alpha", alpha)])


def _turned(w: NodeWriter, name: str, index: int) -> gs.Tensor:
    x = w.reads(index)
    last, batch = integer(w, f"trans{name}"), integer(w, f"transBatch{name}")
    axes = rank(x) if last or batch else 0
    if axes < 2:  # a vector has nothing to transpose
        return x
    leading = list(range(1, axes - 1)) if batch else list(range(axes - 2))
    row = 0 if batch else axes - 2
    perm = [*leading, axes - 1, row] if last else [*leading, row, axes - 1]
    value = graphs.constant_value(x)
    if value is not None:
        return w.constant(f"{name}_transposed", np.ascontiguousarray(value.transpose(perm)))
    return w.op("Transpose", f"{name}_transposed", [x], perm=perm)


def _gemm(w: NodeWriter) -> None:
    attrs = {name: w.node.attrs[name] for name in ("alpha", "beta", "transA", "transB") if name in w.node.attrs}
    bias = w.read(2)
    product = w.op("Gemm", "product", [w.reads(0), w.reads(1), *([] if bias is None else [bias])], **attrs)
    parameters = {name: number(w, f"activation_{name}", 0) for name in _GIVEN if f"activation_{name}" in w.node.attrs}
    w.result(0, activated(w, product, named_activation(w), parameters))


def _conv(w: NodeWriter) -> None:
    w.result(0, _activated_conv(w, w.reads(0), w.reads(1), w.read(3)))


def _nhwc_conv(w: NodeWriter) -> None:
    z = w.read(3)
    first, add = (
        None if one is None else w.op("Transpose", "first", [one], perm=[0, 3, 1, 2]) for one in (w.reads(0), z)
    )
    assert first is not None
    made = _activated_conv(w, first, w.reads(1), add)
    w.result(0, w.op("Transpose", "last", [made], perm=[0, 2, 3, 1]))


def _activated_conv(w: NodeWriter, x: gs.Tensor, weight: gs.Tensor, z: gs.Tensor | None) -> gs.Tensor:
    attrs = {name: w.node.attrs[name] for name in _CONV if name in w.node.attrs}
    bias = w.read(2)
    made = w.op("Conv", "product", [x, weight, *([] if bias is None else [bias])], **attrs)
    if z is not None:
        made = w.op("Add", "sum", [made, z])
    given = [float(one) for one in w.node.attrs.get("activation_params", [])]
    return activated(w, made, named_activation(w), dict(zip(_GIVEN, given, strict=False)))


_ACTIVATION = "activation activation_alpha activation_beta activation_gamma"
PRODUCTS: dict[str, Rule] = {
    "FusedMatMul": rule(_matmul, _TRANSPOSED),
    "TransposeMatMul": rule(_matmul, _TRANSPOSED),
    "FusedMatMulActivation": rule(_matmul_activation, f"{_TRANSPOSED} {_ACTIVATION}"),
    "FusedGemm": rule(_gemm, f"alpha beta transA transB {_ACTIVATION}"),
    "FusedConv": rule(_conv, " ".join(_CONV) + " activation activation_params"),
    "NhwcConv": rule(_nhwc_conv, " ".join(_CONV)),
    "NhwcFusedConv": rule(_nhwc_conv, " ".join(_CONV) + " activation activation_params"),
}
