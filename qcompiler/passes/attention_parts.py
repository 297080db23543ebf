"""softmax(scale · q · kᵀ + mask) · v as MatMul, Softmax and MatMul: what all operators of that name are written out as.

    q · scale, Transpose(k)  →  MatMul  →  softcap · Tanh(· / softcap)  →  Add(mask)  →  Softmax  →  MatMul with v

All of them on [batch, heads, rows, width], which is the form that engines join to one kernel again and that quantized
attentions are placed in. Fewer heads of keys than of queries are repeated by Expand, never by Concat. What may not be
seen is one additive mask with the lowest number of the type, not infinity: a row that sees nothing is then no NaN. Such
rows give zero, as ONNX Runtime has it, by a Where behind the product with v, which leaves the kernel whole.

Sources: ONNX operator specification, Attention-23 and -24; ONNX Runtime, core/providers/cpu/llm/attention.cc.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.node_writer import NodeWriter

_BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Heads:
    """How an attention computes.

    Attributes:
        queries: number of heads of q.
        keys: number of heads of k and v; it divides `queries`.
        width: of a head of q and k, which the usual scale is made of.
        of_value: width of a head of v.
        scale: what the products are multiplied by; None means 1/√width.
        softcap: the products are held within ± this; 0 means that they are not.
        softmax: element type (numpy) that the softmax computes in; None means that of q.
    """

    queries: int
    keys: int
    width: int
    of_value: int
    scale: float | None = None
    softcap: float = 0.0
    softmax: np.dtype[Any] | None = None


@dataclass(frozen=True, slots=True)
class Masked:
    """What the rows of q may see: tensors that broadcast to [batch, heads, rows, keys].

    Attributes:
        bias: what is added to the products; None where everything is seen.
        sees: BOOL, False for rows that see nothing at all, with a last axis of 1; None where there are no such rows.
    """

    bias: gs.Tensor | None = None
    sees: gs.Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionTensors:
    """Tensors of an attention: the products with their scale, then with softcap, then with the mask, after the softmax.

    Attributes:
        context: the result, [batch, heads of q, rows, width of v].
        products, capped, masked, probabilities: each [batch, heads of q, rows, keys].
    """

    context: gs.Tensor
    products: gs.Tensor
    capped: gs.Tensor
    masked: gs.Tensor
    probabilities: gs.Tensor


def split_heads(w: NodeWriter, what: str, packed: gs.Tensor, heads: int) -> gs.Tensor:
    """[batch, rows, heads x width] as [batch, heads, rows, width]."""
    apart = w.op("Reshape", f"{what}_apart", [packed, w.integers(f"{what}_heads", [0, 0, heads, -1])])
    return w.op("Transpose", f"{what}_by_head", [apart], perm=[0, 2, 1, 3])


def join_heads(w: NodeWriter, what: str, heads: gs.Tensor, width: int) -> gs.Tensor:
    """[batch, heads, rows, width of a head] as [batch, rows, `width`]; that is the width of all heads together."""
    by_row = w.op("Transpose", f"{what}_by_row", [heads], perm=[0, 2, 1, 3])
    return w.op("Reshape", f"{what}_joined", [by_row, w.integers(f"{what}_width", [0, 0, width])])


def repeat_heads(w: NodeWriter, what: str, few: gs.Tensor, keys: int, queries: int, width: int) -> gs.Tensor:
    """[batch, keys, rows, width] with every head `queries / keys` times in a row; as it is where both are the same."""
    if keys == queries:
        return few
    apart = w.op("Unsqueeze", f"{what}_each", [few, w.integers(f"{what}_axis", [2])])
    times = w.integers(f"{what}_times", [1, 1, queries // keys, 1, 1])
    many = w.op("Expand", f"{what}_repeated", [apart, times])
    return w.op("Reshape", f"{what}_for_all", [many, w.integers(f"{what}_shape", [0, queries, -1, width])])


def behind_past(w: NodeWriter, what: str, past: gs.Tensor | None, own: gs.Tensor) -> gs.Tensor:
    """Keys or values [batch, heads, rows, width] behind those of the cache; as they are where there is none."""
    if past is None:
        return own
    return w.op("Concat", f"present_{what}", [past, own], axis=2)


def length(w: NodeWriter, what: str, tensor: gs.Tensor, axis: int = 2) -> gs.Tensor:
    """The size of one axis as an INT64 scalar; constant where the shape says it."""
    shape = graphs.shape_of(tensor)
    size = None if shape is None else shape[axis]
    if isinstance(size, int):
        return w.integers(f"{what}_length", size)
    sizes = w.op("Shape", f"{what}_shape_of", [tensor], dtype=_INT64)
    return w.op("Gather", f"{what}_length", [sizes, w.integers(f"{what}_length_axis", axis)], dtype=_INT64, axis=0)


def places(w: NodeWriter, what: str, count: gs.Tensor, axis: int) -> gs.Tensor:
    """0, 1, 2 … below `count` (INT64 scalar) along an axis of two: [count, 1] for `axis` 0, [1, count] for 1."""
    bounds = [w.integers(f"{what}_first", 0), count, w.integers(f"{what}_step", 1)]
    line = w.op("Range", f"{what}_line", bounds, dtype=_INT64)
    return w.op("Unsqueeze", f"{what}_places", [line, w.integers(f"{what}_places_axis", [1 - axis])], dtype=_INT64)


def causal(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, offset: gs.Tensor | None = None) -> gs.Tensor:
    """Row i sees keys up to i + `offset`: BOOL [rows, keys], or [batch, 1, rows, keys].

    Args:
        w: what makes the nodes.
        q: [batch, heads, rows, width].
        k: [batch, heads, keys, width], with what came out of the cache.
        offset: INT64: how many keys lie before the first row; a scalar, such as the length of the cache, or
            [batch, 1, 1, 1].
    """
    rows = places(w, "row", length(w, "q", q), 0)
    if offset is not None:
        rows = w.op("Add", "row_last", [rows, offset], dtype=_INT64)
    keys = places(w, "key", length(w, "k", k), 1)
    return w.op("LessOrEqual", "causal", [keys, rows], dtype=_BOOL)


def all_of(w: NodeWriter, what: str, conditions: list[gs.Tensor]) -> gs.Tensor | None:
    """BOOL tensors that broadcast, joined by And; None where there are none."""
    joined: gs.Tensor | None = None
    for one in conditions:
        joined = one if joined is None else w.op("And", what, [joined, one], dtype=_BOOL)
    return joined


def masked(w: NodeWriter, seen: gs.Tensor | None, bias: gs.Tensor | None, *, blind: bool = True) -> Masked:
    """One additive mask out of what may be seen and what is added anyway.

    Args:
        w: what makes the nodes.
        seen: BOOL, True for what may be seen; None where it is everything.
        bias: of the type that is computed in; None where there is none.
        blind: there may be rows that see nothing at all. False where that is known to be impossible, as with a causal
            mask alone.
    """
    if seen is not None:
        otherwise = w.number("hidden", lowest(w.dtype))
        bias = w.op("Where", "mask", [seen, bias if bias is not None else w.number("seen", 0.0), otherwise])
    if bias is None or not blind:
        return Masked(bias)
    value = graphs.constant_value(bias)
    if value is not None:
        blind_rows = value.max(axis=-1, keepdims=True) <= lowest(w.dtype)
        return Masked(bias, w.constant("sees", ~blind_rows) if blind_rows.any() else None)
    most = w.op("ReduceMax", "most", [bias, w.integers("most_axis", [-1])], keepdims=1)
    return Masked(bias, w.op("Greater", "sees", [most, w.number("nothing", lowest(w.dtype))], dtype=_BOOL))


def lowest(dtype: np.dtype[Any]) -> float:
    """The lowest finite number of a type."""
    return float(ml_dtypes.finfo(dtype).min)  # type: ignore[no-untyped-call]


def attend(
    w: NodeWriter, q: gs.Tensor, k: gs.Tensor, v: gs.Tensor, heads: Heads, mask: Masked | None = None
) -> AttentionTensors:
    """The attention of q [batch, heads, rows, width] to k and v [batch, heads, keys, width], mask and all."""
    mask = mask or Masked()
    k = repeat_heads(w, "k", k, heads.keys, heads.queries, heads.width)
    v = repeat_heads(w, "v", v, heads.keys, heads.queries, heads.of_value)
    scale = 1 / math.sqrt(heads.width) if heads.scale is None else heads.scale
    scaled = q if scale == 1 else w.op("Mul", "scaled", [q, w.number("scale", scale)])
    turned = w.op("Transpose", "k_turned", [k], perm=[0, 1, 3, 2])
    products = w.op("MatMul", "scores", [scaled, turned])
    capped = _capped(w, products, heads.softcap)
    logits = capped if mask.bias is None else w.op("Add", "masked", [capped, mask.bias])
    probabilities = _softmax(w, logits, heads.softmax)
    context = unless_blind(w, "context", w.op("MatMul", "weighted", [probabilities, v]), mask)
    return AttentionTensors(context, products, capped, logits, probabilities)


def unless_blind(w: NodeWriter, what: str, rows: gs.Tensor, mask: Masked) -> gs.Tensor:
    """Zero in rows that see nothing: for the context [.., rows, width], and for probabilities that are an output."""
    if mask.sees is None:
        return rows
    return w.op("Where", what, [mask.sees, rows, w.number(f"{what}_unseen", 0.0)])


def _capped(w: NodeWriter, products: gs.Tensor, softcap: float) -> gs.Tensor:
    if not softcap:
        return products
    cap = w.number("softcap", softcap)
    bent = w.op("Tanh", "bent", [w.op("Div", "relative", [products, cap])])
    return w.op("Mul", "capped", [bent, cap])


def _softmax(w: NodeWriter, logits: gs.Tensor, dtype: np.dtype[Any] | None) -> gs.Tensor:
    """In another type where one is asked for that is wider; a narrower one would only lose."""
    if dtype is None or dtype.itemsize <= w.dtype.itemsize:
        return w.op("Softmax", "probabilities", [logits], axis=-1)
    wide = w.op("Cast", "logits", [logits], dtype=dtype, to=graphs.onnx_type(dtype))
    soft = w.op("Softmax", "softmax", [wide], dtype=dtype, axis=-1)
    return w.op("Cast", "probabilities", [soft], to=graphs.onnx_type(w.dtype))
