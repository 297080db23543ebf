"""Attentions of ONNX Runtime's own: the one with its projections, and the one behind them.

    Attention(x, w, b, mask, past)          ⇒  three MatMuls and Adds, then the attention itself
    MultiHeadAttention(q, k, v, b, mask)    ⇒  the attention itself
    QAttention(x₈, w₈, b, scales)           ⇒  as Attention, on DQ(x₈) and DQ(w₈)

Masked places get `mask_filter_value` (-10000) added to their products, which a causal mask hides altogether: that is
what ONNX Runtime does, and what a row that sees nothing is made of. The projections of q, k and v are taken apart where
they are constant, so that each one has weights of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes import attention_parts as parts
from qcompiler.passes.attention_parts import Heads, Masked
from qcompiler.passes.foreign._rules import (
    INT64,
    NotWrittenError,
    RankUnknownError,
    Rule,
    cut,
    fixed,
    integer,
    needed,
    number,
    rank,
    refuse_inputs,
    refuse_outputs,
    refuse_values,
    rule,
)
from qcompiler.passes.node_writer import NodeWriter

_BOOL = np.dtype(np.bool_)


@dataclass(frozen=True, slots=True)
class _Cache:
    """Keys and values of earlier runs, [batch, heads, rows, width]; None where there are none."""

    keys: gs.Tensor | None = None
    values: gs.Tensor | None = None


# --- The attention itself ---------------------------------------------------------------------------------------------


def _multi_head(w: NodeWriter) -> None:
    refuse_inputs(w, past_sequence_length=8, cache_indirection=9)
    heads, query = needed(w, "num_heads"), w.reads(0)
    width = fixed(query, 4) if rank(query) == 5 else fixed(query, -1) // heads
    q, k, v = _apart(w, heads)
    cache = _Cache(w.read(6), w.read(7))
    k, v = parts.behind_past(w, "key", cache.keys, k), parts.behind_past(w, "value", cache.values, v)
    how = Heads(heads, heads, width, width, _scale(w))  # the width of v is read for fewer heads of keys only
    written = parts.attend(w, q, k, v, how, Masked(_added(w, q, k, cache, mask=4, bias=5)))
    w.result(0, parts.join_heads(w, "output", written.context, -1))
    for index, result in enumerate((k, v, written.masked), start=1):
        w.result(index, result)


def _apart(w: NodeWriter, heads: int) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """q, k and v as [batch, heads, rows, width], with their bias."""
    query, key, value, bias = w.reads(0), w.read(1), w.read(2), w.read(3)
    if rank(query) == 5:
        if bias is not None:
            raise NotWrittenError("has a bias beside q, k and v in one tensor")
        return _unpacked(w, "q", query, 0), _unpacked(w, "k", query, 1), _unpacked(w, "v", query, 2)
    if key is None:
        raise NotWrittenError("has no input 'key'")
    if rank(key) == 5:
        if bias is not None:
            raise NotWrittenError("has a bias beside k and v in one tensor")
        return parts.split_heads(w, "q", query, heads), _unpacked(w, "k", key, 0), _unpacked(w, "v", key, 1)
    if value is None:
        raise NotWrittenError("has no input 'value'")
    if rank(key) == 4:  # keys and values by head, as an encoder's cache has them
        if bias is not None:
            query = w.op("Add", "q_biased", [query, cut(w, "q_bias", bias, 0, fixed(query, -1), 0)])
        return parts.split_heads(w, "q", query, heads), key, value
    if bias is not None:
        query, key, value = _biased(w, (query, key, value), bias)
    q, k, v = (parts.split_heads(w, name, one, heads) for name, one in zip("qkv", (query, key, value), strict=True))
    return q, k, v


def _biased(
    w: NodeWriter, inputs: tuple[gs.Tensor, gs.Tensor, gs.Tensor], bias: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    made, start = list[gs.Tensor](), 0
    for name, one in zip("qkv", inputs, strict=True):
        width = fixed(one, -1)
        made.append(w.op("Add", f"{name}_biased", [one, piece(w, f"{name}_bias", bias, start, start + width)]))
        start += width
    return made[0], made[1], made[2]


def piece(w: NodeWriter, what: str, whole: gs.Tensor, start: int, end: int) -> gs.Tensor:
    """`whole[..., start:end]`; a constant of its own where `whole` is one."""
    value = graphs.constant_value(whole)
    if value is not None:
        return w.constant(what, np.ascontiguousarray(value[..., start:end]))
    return cut(w, what, whole, start, end, -1)


def _unpacked(w: NodeWriter, what: str, packed: gs.Tensor, index: int) -> gs.Tensor:
    """One of what lies side by side on axis 3 of [batch, rows, heads, 2 or 3, width], by head."""
    taken = w.op("Gather", f"{what}_taken", [packed, w.integers(f"{what}_place", index)], axis=3)
    return w.op("Transpose", f"{what}_by_head", [taken], perm=[0, 2, 1, 3])


def _scale(w: NodeWriter) -> float | None:
    return number(w, "scale", 0) or None


def _added(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, cache: _Cache, mask: int, bias: int) -> gs.Tensor | None:
    """What is added to the products: padding, then what comes later, then the bias."""
    added: gs.Tensor | None = None
    padding = w.read(mask)
    if padding is not None:
        seen = _not_padding(w, padding, k)
        hidden = w.number("hidden", number(w, "mask_filter_value", -10000))
        added = w.op("Where", "padding", [seen, w.number("seen", 0), hidden])
    if integer(w, "unidirectional"):
        earlier = _earlier(w, q, k, cache)
        shown = w.number("earlier", 0) if added is None else added
        added = w.op("Where", "causal_mask", [earlier, shown, w.number("later", parts.lowest(w.dtype))])
    extra = w.read(bias)
    if extra is None:
        return added
    return extra if added is None else w.op("Add", "mask", [added, extra])


def _earlier(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, cache: _Cache) -> gs.Tensor:
    """BOOL [rows, keys]: a row sees what is not behind it. ONNX Runtime lets the last one see all there is."""
    offset = None if cache.keys is None else parts.length(w, "past", cache.keys)
    earlier = parts.causal(w, q, k, offset)
    rows, keys = ((graphs.shape_of(w.reads(index)) or (None, None))[1] for index in (0, _other(w)))
    if rows is not None and rows == keys:
        return earlier
    count = parts.length(w, "rows", q)
    behind = w.op("Add", "behind", [parts.places(w, "row", count, 0), w.integers("one", 1)], dtype=INT64)
    last = w.op("Equal", "last", [behind, count], dtype=_BOOL)
    return w.op("Or", "earlier", [earlier, last], dtype=_BOOL)


def _other(w: NodeWriter) -> int:
    """Index of the input whose second axis counts the keys that are not out of the cache."""
    apart = w.node.op == "MultiHeadAttention" and w.read(1) is not None
    return 1 if apart and rank(w.reads(1)) == 3 else 0


def _not_padding(w: NodeWriter, mask: gs.Tensor, k: gs.Tensor) -> gs.Tensor:
    """BOOL that broadcasts to [batch, heads, rows, keys]: where a mask says that there is something to see."""
    axes = rank(mask)
    if axes == 1:
        return _within(w, mask, k)
    if axes not in (2, 3):
        raise NotWrittenError(f"has a mask of {axes} axes")
    dtype = graphs.dtype_of(mask)
    if dtype == _BOOL:
        seen = mask
    else:
        zero = w.constant("nothing", np.zeros((), dtype or np.int32))
        seen = w.op("Greater", "shown", [mask, zero], dtype=_BOOL)
    return w.op("Unsqueeze", "seen", [seen, w.integers("seen_axes", [1, 2] if axes == 2 else [1])], dtype=_BOOL)


def _within(w: NodeWriter, mask: gs.Tensor, k: gs.Tensor) -> gs.Tensor:
    """A vector holds the number of keys of each text; a second half of it, the first key that is no padding."""
    batch, size = (graphs.shape_of(one) or (None,) for one in (w.reads(0), mask))
    keys = parts.places(w, "key", parts.length(w, "k", k), 1)
    if size[0] is not None and size[0] == batch[0]:
        return w.op("Less", "inside", [keys, _each(w, "end", mask)], dtype=_BOOL)
    if not isinstance(size[0], int) or not isinstance(batch[0], int):
        raise RankUnknownError(f"has the mask '{mask.name}', a vector of unknown length")
    if size[0] != 2 * batch[0]:
        raise NotWrittenError(f"has a mask of {size[0]} numbers for {batch[0]} texts")
    end, start = (cut(w, name, mask, at, at + batch[0], 0) for name, at in (("ends", 0), ("starts", batch[0])))
    before = w.op("Less", "inside", [keys, _each(w, "end", end)], dtype=_BOOL)
    behind = w.op("GreaterOrEqual", "begun", [keys, _each(w, "start", start)], dtype=_BOOL)
    return w.op("And", "between", [before, behind], dtype=_BOOL)


def _each(w: NodeWriter, what: str, lengths: gs.Tensor) -> gs.Tensor:
    """INT64 [batch, 1, 1, 1]."""
    wide = w.op("Cast", f"{what}_wide", [lengths], dtype=INT64, to=graphs.onnx_type(INT64))
    return w.op("Unsqueeze", what, [wide, w.integers(f"{what}_axes", [1, 2, 3])], dtype=INT64)


# --- With projections -------------------------------------------------------------------------------------------------


def _attention(w: NodeWriter) -> None:
    refuse_inputs(w, past_sequence_length=6)
    refuse_values(w, past_present_share_buffer=0, do_rotary=0)
    weight, widths = w.reads(1), _widths(w, w.reads(1))
    if graphs.constant_value(weight) is None:
        weights = [weight]
    else:
        weights = [piece(w, f"{name}_weight", weight, *ends) for name, ends in _thirds(widths)]
    _projected(w, w.reads(0), weights, widths, w.read(2), _Places(mask=3, past=4, bias=5))


def _quantized_attention(w: NodeWriter) -> None:
    refuse_values(w, past_present_share_buffer=0, do_rotary=0)
    x, weight, scale, zero = _dequantized(w, "x", w.reads(0), w.reads(3), w.read(6)), w.reads(1), w.reads(4), w.read(7)
    widths = _widths(w, weight)
    apart = graphs.constant_value(weight) is not None
    weights = [
        _dequantized(
            w,
            f"{name}_weight",
            piece(w, f"{name}_stored", weight, *ends) if apart else weight,
            _of_columns(w, f"{name}_scale", scale, ends),
            None if zero is None else _of_columns(w, f"{name}_zero_point", zero, ends),
        )
        for name, ends in (_thirds(widths) if apart else [("qkv", (0, sum(widths)))])
    ]
    _projected(w, x, weights, widths, w.reads(2), _Places(mask=5, past=8, bias=9))


def _dequantized(w: NodeWriter, what: str, x: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None) -> gs.Tensor:
    """DequantizeLinear; scales that are a vector run along the columns."""
    attrs: dict[str, Any] = {"axis": 1} if rank(scale) else {}
    made = w.op("DequantizeLinear", f"{what}_float", [x, scale, *([] if zero is None else [zero])], **attrs)
    made.shape = x.shape
    return made


def _of_columns(w: NodeWriter, what: str, tensor: gs.Tensor, ends: tuple[int, int]) -> gs.Tensor:
    """Scales or zero points of some columns: a scalar where there is one for all."""
    value = graphs.constant_value(tensor)
    if value is not None and value.size == 1:
        return w.constant(what, value.reshape(()))
    return tensor if not rank(tensor) else piece(w, what, tensor, *ends)


@dataclass(frozen=True, slots=True)
class _Places:
    """Indices of inputs: what says what is padding; the cache; what is added to the products."""

    mask: int
    past: int
    bias: int


def _widths(w: NodeWriter, weight: gs.Tensor) -> list[int]:
    """Columns of q, k and v in the joint weight."""
    widths = [int(one) for one in w.node.attrs.get("qkv_hidden_sizes", [])] or [fixed(weight, 1) // 3] * 3
    if widths[0] != widths[1]:
        raise NotWrittenError(f"has qkv_hidden_sizes={widths}, where q and k are not alike")
    return widths


def _thirds(widths: list[int]) -> list[tuple[str, tuple[int, int]]]:
    """q, k and v, each with its first column and the one behind its last."""
    ends = [sum(widths[:count]) for count in range(4)]
    return list(zip("qkv", pairwise(ends), strict=True))


def _projected(
    w: NodeWriter,
    x: gs.Tensor,
    weights: list[gs.Tensor],
    widths: list[int],
    offset: gs.Tensor | None,
    places: _Places,
) -> None:
    """The attention of x [batch, rows, features] to itself.

    Args:
        w: what makes the nodes.
        x: what is projected.
        weights: [features, width] of q, k and v, or one for all of them.
        widths: of q, k and v.
        offset: [widths of q, k and v].
        places: of the other inputs.
    """
    refuse_outputs(w, more=2)
    heads = needed(w, "num_heads")
    q, k, v = (
        parts.split_heads(w, name, one, heads)
        for name, one in zip("qkv", _projections(w, x, weights, widths, offset), strict=True)
    )
    cache = _halves(w, w.read(places.past))
    k, v = parts.behind_past(w, "key", cache.keys, k), parts.behind_past(w, "value", cache.values, v)
    how = Heads(heads, heads, widths[0] // heads, widths[2] // heads, _scale(w))
    written = parts.attend(w, q, k, v, how, Masked(_added(w, q, k, cache, places.mask, places.bias)))
    w.result(0, parts.join_heads(w, "output", written.context, widths[2]))
    if w.wants(1):
        both = [w.op("Unsqueeze", name, [one, w.integers("first", [0])]) for name, one in (("keys", k), ("values", v))]
        w.result(1, w.op("Concat", "present", both, axis=0))


def _projections(
    w: NodeWriter, x: gs.Tensor, weights: list[gs.Tensor], widths: list[int], offset: gs.Tensor | None
) -> list[gs.Tensor]:
    """q, k and v: products of their own, or parts of one."""
    if len(weights) == 1:
        whole = w.op("MatMul", "qkv", [x, weights[0]])
        whole = whole if offset is None else w.op("Add", "qkv_biased", [whole, offset])
        return w.ops("Split", "apart", [whole, w.integers("widths", widths)], 3, axis=-1)
    made = list[gs.Tensor]()
    for (name, ends), weight in zip(_thirds(widths), weights, strict=True):
        one = w.op("MatMul", name, [x, weight])
        if offset is not None:
            one = w.op("Add", f"{name}_biased", [one, piece(w, f"{name}_bias", offset, *ends)])
        made.append(one)
    return made


def _halves(w: NodeWriter, past: gs.Tensor | None) -> _Cache:
    if past is None:
        return _Cache()
    keys, values = (
        w.op("Gather", name, [past, w.integers(f"{name}_half", half)], axis=0)
        for half, name in enumerate(("past_keys", "past_values"))
    )
    return _Cache(keys, values)


_MASKED = "num_heads scale mask_filter_value unidirectional"
_SHARED = "past_present_share_buffer do_rotary"
ATTENTIONS: dict[str, Rule] = {
    "MultiHeadAttention": rule(_multi_head, _MASKED),
    "Attention": rule(_attention, f"{_MASKED} {_SHARED} qkv_hidden_sizes rotary_embedding_dim"),
    "QAttention": rule(_quantized_attention, f"{_MASKED} {_SHARED}", kept_by=["onnxruntime"]),
}
