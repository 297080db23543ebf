"""GroupQueryAttention(q, k, v, past, lengths): the attention of decoders, with its cache, its mask and its rotation.

    cache + k  →  attention of rows to what is earlier  →  present = cache with k behind it

Row i of text b stands at place lengths[b] + 1 - rows + i. ONNX Runtime puts keys right behind those that are valid;
here they stand behind the whole cache, and what is not valid in it is not seen: the output is the same. So is the
present, where the cache is full, which is the case in which it grows. ONNX Runtime's own graphs keep the operator,
which may also write into its cache.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes import attention_parts as parts
from qcompiler.passes.attention_parts import Heads, Masked
from qcompiler.passes.foreign._attention import piece
from qcompiler.passes.foreign._rotary import angles, turned
from qcompiler.passes.foreign._rules import (
    INT64,
    NotWrittenError,
    Rule,
    fixed,
    integer,
    needed,
    number,
    refuse_inputs,
    refuse_outputs,
    refuse_values,
    rule,
)
from qcompiler.passes.node_writer import NodeWriter

_BOOL = np.dtype(np.bool_)


def _grouped(w: NodeWriter) -> None:
    refuse_inputs(w, position_ids=9, head_sink=11, k_scale=12, v_scale=13, q_norm_weight=14, k_norm_weight=15)
    refuse_outputs(w, output_qk=3)
    refuse_values(w, sliding_window_cache=0, causal=1, qk_output=0, k_quant_type="NONE", v_quant_type="NONE")
    if integer(w, "smooth_softmax", -1) > 0:
        raise NotWrittenError("has smooth_softmax=1")
    heads, of_keys = needed(w, "num_heads"), needed(w, "kv_num_heads")
    packed = w.read(1) is None
    width = fixed(w.reads(0), 2) // (heads + 2 * of_keys if packed else heads)
    q, k, v = _by_head(w, heads, of_keys, width, packed=packed)
    first = _first_row(w)
    if integer(w, "do_rotary"):
        q, k = _rotated(w, q, k, first, width)
    past = w.read(3)
    keys, values = parts.behind_past(w, "key", past, k), parts.behind_past(w, "value", w.read(4), v)
    mask = _mask(w, q, k, past, first)
    how = Heads(heads, of_keys, width, width, number(w, "scale", 0) or None, number(w, "softcap", 0))
    written = parts.attend(w, q, keys, values, how, mask)
    w.result(0, parts.join_heads(w, "output", written.context, heads * width))
    w.result(1, keys)
    w.result(2, values)


def _by_head(
    w: NodeWriter, heads: int, of_keys: int, width: int, *, packed: bool
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """q, k and v as [batch, heads, rows, width]."""
    whole, counts = w.reads(0), (heads, of_keys, of_keys)
    if packed:
        ends = np.cumsum([0, *counts]) * width
        given = [piece(w, name, whole, int(ends[i]), int(ends[i + 1])) for i, name in enumerate("qkv")]
    else:
        given = [whole, w.reads(1), w.reads(2)]
    q, k, v = (parts.split_heads(w, name, one, n) for name, one, n in zip("qkv", given, counts, strict=True))
    return q, k, v


def _first_row(w: NodeWriter) -> gs.Tensor:
    """How many places of the cache are valid, INT64 [batch, 1]: the place of the first row of each text."""
    lengths = w.op("Cast", "lengths", [w.reads(5)], dtype=INT64, to=graphs.onnx_type(INT64))
    each = w.op("Reshape", "lengths_each", [lengths, w.integers("lengths_shape", [-1, 1])], dtype=INT64)
    rows = parts.length(w, "rows", w.reads(0), 1)
    behind = w.op("Sub", "behind", [rows, w.integers("one", 1)], dtype=INT64)
    first = w.op("Sub", "before", [each, behind], dtype=INT64)
    return w.op("Max", "first", [first, w.integers("none", 0)], dtype=INT64)


def _rotated(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, first: gs.Tensor, width: int) -> tuple[gs.Tensor, gs.Tensor]:
    tables = (w.reads(7), w.reads(8))
    line = parts.places(w, "rotated", parts.length(w, "rotated", w.reads(0), 1), 1)
    places = w.op("Add", "positions", [first, line], dtype=INT64)
    by, turns = angles(w, tables, places, 1), 2 * fixed(tables[0], 1)
    how = bool(integer(w, "rotary_interleaved"))
    return (
        turned(w, "q", q, by, turns, width, interleaved=how),
        turned(w, "k", k, by, turns, width, interleaved=how),
    )


def _mask(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, past: gs.Tensor | None, first: gs.Tensor) -> Masked:
    """Places of the cache that are valid, and new ones up to the row's own; a window ends both at the other side."""
    rows = parts.places(w, "row", parts.length(w, "q", q), 0)
    new = parts.places(w, "new", parts.length(w, "k", k), 1)
    window = integer(w, "local_window_size", -1)
    seen = w.op("LessOrEqual", "earlier", [new, rows], dtype=_BOOL)
    if window > 0:
        seen = w.op("And", "near", [seen, _within(w, "new", rows, new, window)], dtype=_BOOL)
    if past is not None:
        seen = _behind_cache(w, seen, past, rows, first, window)
    return parts.masked(w, seen, w.read(10), blind=False)


def _within(w: NodeWriter, what: str, rows: gs.Tensor, keys: gs.Tensor, window: int) -> gs.Tensor:
    """Whether a key lies less than a window in front of a row."""
    apart = w.op("Sub", f"{what}_distance", [rows, keys], dtype=INT64)
    return w.op("Less", f"{what}_in_window", [apart, w.integers("window", window)], dtype=_BOOL)


def _behind_cache(
    w: NodeWriter, seen: gs.Tensor, past: gs.Tensor, rows: gs.Tensor, first: gs.Tensor, window: int
) -> gs.Tensor:
    """BOOL [batch, 1, rows, cache and keys] of BOOL [rows, keys]."""
    old = parts.places(w, "old", parts.length(w, "past", past), 1)
    valid = w.op("Unsqueeze", "valid", [first, w.integers("valid_axes", [2, 3])], dtype=INT64)
    held = w.op("Less", "held", [old, valid], dtype=_BOOL)
    if window > 0:
        own = w.op("Add", "row_place", [rows, valid], dtype=INT64)
        held = w.op("And", "held_near", [held, _within(w, "old", own, old, window)], dtype=_BOOL)
    batch, count = (
        w.op("Shape", f"{name}s", [one], dtype=INT64, end=1) for name, one in (("text", first), ("row", rows))
    )
    one = w.integers("one_axis", [1])
    shape = w.op("Concat", "seen_shape", [batch, one, count, one], dtype=INT64, axis=0)
    both = [
        w.op("Expand", f"{name}_spread", [part, shape], dtype=_BOOL) for name, part in (("held", held), ("seen", seen))
    ]
    return w.op("Concat", "all_seen", both, dtype=_BOOL, axis=3)


_ATTRIBUTES = (
    "num_heads kv_num_heads scale softcap do_rotary rotary_interleaved local_window_size causal sliding_window_cache "
    "qk_output qk_norm_epsilon smooth_softmax k_quant_type v_quant_type kv_cache_bit_width"
)
GROUPED: dict[str, Rule] = {"GroupQueryAttention": rule(_grouped, _ATTRIBUTES, kept_by=["onnxruntime"])}
