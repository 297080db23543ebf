"""Attention of opset 23 and 24 as MatMul, Softmax and MatMul, with its cache as Concat.

Attention(q, k, v, mask, past_k, past_v)  ⇒  k = Concat(past_k, k);  v = Concat(past_v, v);
                                             Softmax(scale · q · kᵀ + mask) · v

TensorRT takes the operator with one output only, so without a cache, and in half only. Written out it becomes the same
fused kernel; its products can be quantized, scales move through it, and its masks are masks like all others.

Source: ONNX operator specification, Attention-24.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes import attention_parts as parts
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.runtime import shapes

_BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)
_MASK, _PAST_KEY, _PAST_VALUE, _VALID = 3, 4, 5, 6  # inputs behind q, k and v
_KNOWN = frozenset({"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"})
_PRECISION = "softmax_precision"
_AFTER_SOFTMAX = 3


@dataclass(frozen=True)
class WriteOutAttention(Pass):
    """Write out Attention of opset 23 and 24, with mask, cache and grouped heads."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Attention."""
        found = [(inner, n) for inner in graphs.graphs(graph) for n in inner.nodes if graphs.is_op(n, "Attention")]
        if not found:
            return
        shapes.infer(graph)
        names = Names(graph)
        for inner, node in found:
            heads = _heads(node)
            if isinstance(heads, str):
                yield Skipped(node.name, f"{heads}; Attention stays as it is")
                continue
            q = node.inputs[0]
            count = _write_out(NodeWriter(inner, node, names, graphs.dtype_of(q) or np.dtype(np.float32)), heads)
            yield Changed(node.name, f"Attention of {heads.queries} heads written out as {count} nodes")
        shapes.infer(graph)  # it now tells the shapes of a cache that is written


def _heads(node: gs.Node) -> parts.Heads | str:
    """Heads and their widths, or what is not known of them."""
    strange = sorted(set(node.attrs) - _KNOWN - {_PRECISION})
    if strange:
        return f"it has {', '.join(strange)}, which is not written out"
    dims = [graphs.shape_of(tensor) for tensor in node.inputs[:3]]
    if any(dim is None or len(dim) not in (3, 4) for dim in dims) or not graphs.is_float(node.inputs[0]):
        return "the type or the number of axes of q, k and v is not known"
    q, k, v = (dim or () for dim in dims)
    if len(q) == 4:
        sizes: tuple[Any, ...] = (q[1], k[1], q[3], v[3])
        if not all(isinstance(size, int) for size in sizes):
            return "number and width of the heads are not fixed"
        return _of(node, *sizes)
    queries, keys = int(node.attrs.get("q_num_heads", 0)), int(node.attrs.get("kv_num_heads", 0))
    widths = (q[2], v[2])
    if not queries or not keys or not all(isinstance(width, int) for width in widths):
        return "number and width of the heads are not fixed"
    return _of(node, queries, keys, int(q[2] or 0) // queries, int(v[2] or 0) // keys)


def _of(node: gs.Node, queries: int, keys: int, width: int, of_value: int) -> parts.Heads | str:
    if queries % keys:
        return f"{queries} heads of q cannot share {keys} of k"
    wide = node.attrs.get(_PRECISION)
    return parts.Heads(
        queries,
        keys,
        width,
        of_value,
        scale=node.attrs.get("scale"),
        softcap=float(node.attrs.get("softcap", 0.0)),
        softmax=graphs.np_dtype(wide) if wide else None,
    )


def _write_out(w: NodeWriter, heads: parts.Heads) -> int:
    q, k, v = (w.reads(index) for index in range(3))
    packed = len(graphs.shape_of(q) or ()) == 3
    if packed:
        q = parts.split_heads(w, "q", q, heads.queries)
        k = parts.split_heads(w, "k", k, heads.keys)
        v = parts.split_heads(w, "v", v, heads.keys)
    past = w.read(_PAST_KEY)
    k = parts.behind_past(w, "key", past, k)
    v = parts.behind_past(w, "value", w.read(_PAST_VALUE), v)
    mask = _mask(w, q, k, past)
    written = parts.attend(w, q, k, v, heads, mask)
    context = written.context
    w.result(0, parts.join_heads(w, "context", context, heads.queries * heads.of_value) if packed else context)
    w.result(1, k)
    w.result(2, v)
    if w.wants(3):
        w.result(3, _products(w, written, mask))
    return w.finish()


def _products(w: NodeWriter, written: parts.AttentionTensors, mask: parts.Masked) -> gs.Tensor:
    """The products as the mode asks for them."""
    mode = int(w.node.attrs.get("qk_matmul_output_mode", 0))
    if mode == _AFTER_SOFTMAX:
        return parts.unless_blind(w, "probabilities_out", written.probabilities, mask)
    return (written.products, written.capped, written.masked)[mode]


def _mask(w: NodeWriter, q: gs.Tensor, k: gs.Tensor, past: gs.Tensor | None) -> parts.Masked:
    """What a row may see: the causal part, what is valid in the cache, and the mask that is given."""
    given, valid = w.read(_MASK), w.read(_VALID)
    seen: list[gs.Tensor] = []
    each = None
    if valid is not None:
        wide = w.op("Cast", "valid", [valid], dtype=_INT64, to=graphs.onnx_type(_INT64))
        each = w.op("Unsqueeze", "valid_each", [wide, w.integers("valid_axes", [1, 2, 3])], dtype=_INT64)
    if w.node.attrs.get("is_causal", 0):
        offset = None if past is None else parts.length(w, "past", past)
        if each is not None and past is None:
            offset = w.op("Sub", "before", [each, parts.length(w, "q", q)], dtype=_INT64)
        seen.append(parts.causal(w, q, k, offset))
    if each is not None:
        keys = parts.places(w, "key", parts.length(w, "k", k), 1)
        seen.append(w.op("Less", "filled", [keys, each], dtype=_BOOL))
    boolean = given is not None and graphs.dtype_of(given) == _BOOL
    if given is not None and boolean:
        seen.append(given)
    bias = None if boolean else given
    return parts.masked(w, parts.all_of(w, "seen", seen), bias, blind=given is not None or each is not None)
