"""Activations of ONNX Runtime's own, with the sums in front of them.

    Gelu(x), BiasGelu(x, b)        ⇒  ½x · (1 + erf(x / √2)), x + b for x
    FastGelu(x, b)                 ⇒  ½x · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
    QuickGelu(x){alpha}            ⇒  x · σ(alpha · x)
    BiasSplitGelu(x, b)            ⇒  left · gelu(right), the halves of x + b
    BiasAdd, BiasDropout, BiasSoftmax

Gelu is not written as ONNX's own operator, which opset 20 brought: the long form is in every opset, and what engines
and quantizers look for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.passes.foreign._rules import (
    NotWrittenError,
    Rule,
    cut,
    fixed,
    integer,
    number,
    rank,
    refuse_outputs,
    rule,
    text,
)
from qcompiler.passes.node_writer import NodeWriter


def gelu(w: NodeWriter, x: gs.Tensor) -> gs.Tensor:
    """½x · (1 + erf(x / √2))."""
    erf = w.op("Erf", "erf", [w.op("Div", "relative", [x, w.number("root", math.sqrt(2))])])
    return _gated(w, x, erf)


def fast_gelu(w: NodeWriter, x: gs.Tensor) -> gs.Tensor:
    """½x · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    cube = w.op("Pow", "cube", [x, w.number("three", 3)])
    part = w.op("Mul", "part_of_cube", [cube, w.number("of_cube", 0.044715)])
    inner = w.op("Mul", "inner", [w.op("Add", "bent", [x, part]), w.number("of_inner", math.sqrt(2 / math.pi))])
    return _gated(w, x, w.op("Tanh", "tanh", [inner]))


def _gated(w: NodeWriter, x: gs.Tensor, gate: gs.Tensor) -> gs.Tensor:
    opened = w.op("Add", "gate", [gate, w.number("one", 1)])
    return w.op("Mul", "half", [w.op("Mul", "gated", [x, opened]), w.number("of_half", 0.5)])


def silu(w: NodeWriter, x: gs.Tensor) -> gs.Tensor:
    """x · σ(x)."""
    return w.op("Mul", "silu", [x, w.op("Sigmoid", "sigmoid", [x])])


def _with_bias(w: NodeWriter) -> gs.Tensor:
    bias = w.read(1)
    return w.reads(0) if bias is None else w.op("Add", "biased", [w.reads(0), bias])


def _gelu(w: NodeWriter) -> None:
    w.result(0, gelu(w, _with_bias(w)))


def _fast_gelu(w: NodeWriter) -> None:
    w.result(0, fast_gelu(w, _with_bias(w)))


def _quick_gelu(w: NodeWriter) -> None:
    x, alpha = w.reads(0), number(w, "alpha", 1.702)
    scaled = x if alpha == 1 else w.op("Mul", "scaled", [x, w.number("alpha", alpha)])
    w.result(0, w.op("Mul", "gated", [x, w.op("Sigmoid", "gate", [scaled])]))


def _bias_split_gelu(w: NodeWriter) -> None:
    width = fixed(w.reads(1), 0)
    whole = _with_bias(w)
    left, right = (cut(w, name, whole, at, at + width // 2, -1) for name, at in (("left", 0), ("right", width // 2)))
    w.result(0, w.op("Mul", "product", [left, gelu(w, right)]))


def _bias_add(w: NodeWriter) -> None:
    w.result(0, w.op("Add", "sum", [_with_bias(w), w.reads(2)]))


def _bias_dropout(w: NodeWriter) -> None:
    """Outside of training, where nothing is dropped."""
    refuse_outputs(w, mask=1)
    if w.read(4) is not None:
        raise NotWrittenError("has the input 'training_mode'")
    residual = w.read(2)
    x = _with_bias(w)
    w.result(0, x if residual is None else w.op("Add", "sum", [x, residual]))


def _bias_softmax(w: NodeWriter) -> None:
    axis, axes = integer(w, "axis", 1), rank(w.reads(0))
    if axis % axes != axes - 1:
        raise NotWrittenError(f"has axis={axis} and reads {axes} of them")
    w.result(0, w.op("Softmax", "probabilities", [_with_bias(w)], axis=-1))


def activated(w: NodeWriter, x: gs.Tensor, kind: str, parameters: dict[str, float]) -> gs.Tensor:
    """What fused products end with.

    Args:
        w: what makes the nodes.
        x: the product.
        kind: name of the activation; empty where there is none.
        parameters: alpha, beta and gamma as far as they are given.

    Raises:
        NotWrittenError: there is no such activation.
    """
    if not kind:
        return x
    if kind == "Clip":
        bounds = [w.number(name, parameters[key]) for name, key in (("least", "alpha"), ("most", "beta"))]
        return w.op("Clip", "clipped", [x, *bounds])
    known = _ACTIVATIONS.get(kind)
    if known is None:
        raise NotWrittenError(f"has activation={kind}")
    attrs: dict[str, Any] = {name: parameters[name] for name in known if name in parameters}
    return w.op(kind, "activated", [x], **attrs)


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "HardSwish": (),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def named_activation(w: NodeWriter) -> str:
    """The attribute `activation`."""
    return text(w, "activation")


_PLAIN: dict[str, Callable[[NodeWriter], None]] = {
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
}
ACTIVATIONS: dict[str, Rule] = {
    **{op: rule(write) for op, write in _PLAIN.items()},
    "QuickGelu": rule(_quick_gelu, "alpha"),
    "BiasDropout": rule(_bias_dropout, "seed"),
    "BiasSoftmax": rule(_bias_softmax, "axis is_inner_broadcast"),
}
