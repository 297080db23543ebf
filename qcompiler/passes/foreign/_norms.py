"""Normalisations of ONNX Runtime's own, with the sums in front of them, and the layer that embeds words.

SkipLayerNormalization(x, skip, γ, β, b)       ⇒  LayerNormalization(x + b + skip, γ, β)
SimplifiedLayerNormalization(x, γ)             ⇒  x / √(mean(x²) + ε) · γ
SkipSimplifiedLayerNormalization(x, skip, γ)   ⇒  the same of x + skip
EmbedLayerNormalization(ids, segments, ...)    ⇒  LayerNormalization(Gather + Gather + Gather)
GroupNorm(x, γ, β), SkipGroupNorm              ⇒  InstanceNormalization of the groups, · γ + β, and SiLU
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import PRODUCTS
from qcompiler.passes.foreign._activations import silu
from qcompiler.passes.foreign._rules import (
    INT64,
    NotWrittenError,
    Rule,
    fixed,
    integer,
    needed,
    number,
    rank,
    refuse_outputs,
    refuse_values,
    rule,
)
from qcompiler.passes.node_writer import NodeWriter

_EPSILON = 1e-12  # of those that skip or embed


def layer_norm(w: NodeWriter, x: gs.Tensor, gamma: gs.Tensor, beta: gs.Tensor | None, epsilon: float) -> gs.Tensor:
    """ONNX's own, over the last axis."""
    reads = [x, gamma, *([] if beta is None else [beta])]
    return w.op("LayerNormalization", "normalised", reads, axis=-1, epsilon=epsilon)


def rms_norm(w: NodeWriter, x: gs.Tensor, gamma: gs.Tensor, epsilon: float) -> gs.Tensor:
    """x / √(mean(x²) + ε) · γ over the last axis."""
    square = w.op("Pow", "square", [x, w.number("two", 2)])
    mean = w.op("ReduceMean", "mean_square", [square, w.integers("last", [-1])], keepdims=1)
    root = w.op("Sqrt", "root", [w.op("Add", "above_zero", [mean, w.number("epsilon", epsilon)])])
    return w.op("Mul", "scaled", [w.op("Div", "normalised", [x, root]), gamma])


def _skip_sum(w: NodeWriter, bias: gs.Tensor | None) -> gs.Tensor:
    """The sum; a bias belongs to the one of both that a product gives."""
    x, skip = w.reads(0), w.reads(1)
    if bias is not None:
        before = graphs.producer(skip)
        of_skip = before is not None and graphs.is_op(before, *PRODUCTS)
        if of_skip:
            skip = w.op("Add", "biased", [skip, bias])
        else:
            x = w.op("Add", "biased", [x, bias])
    return w.op("Add", "sum", [x, skip])


def _skip_layer_norm(w: NodeWriter) -> None:
    refuse_outputs(w, mean=1, inv_std_var=2)
    total = _skip_sum(w, w.read(4))
    w.result(0, layer_norm(w, total, w.reads(2), w.read(3), number(w, "epsilon", _EPSILON)))
    w.result(3, total)


def _skip_rms_norm(w: NodeWriter) -> None:
    refuse_outputs(w, mean=1, inv_std_var=2)
    total = _skip_sum(w, w.read(3))
    w.result(0, rms_norm(w, total, w.reads(2), number(w, "epsilon", _EPSILON)))
    w.result(3, total)


def _rms_norm(w: NodeWriter) -> None:
    refuse_outputs(w, inv_std_var=1)
    refuse_values(w, stash_type=1)
    axis = integer(w, "axis", -1)
    if axis != -1 and axis % rank(w.reads(0)) != rank(w.reads(0)) - 1:
        raise NotWrittenError(f"has axis={axis}")
    w.result(0, rms_norm(w, w.reads(0), w.reads(1), number(w, "epsilon", 1e-5)))


def _embed(w: NodeWriter) -> None:
    given = w.read(8)
    places = _positions(w) if given is None else w.op("Gather", "positions", [w.reads(3), given], axis=0)
    words = w.op("Gather", "words", [w.reads(2), w.reads(0)], axis=0)
    total = w.op("Add", "placed", [words, places])
    segments = w.read(1)
    if segments is not None:
        kinds = w.op("Gather", "kinds", [w.reads(4), segments], axis=0)
        total = w.op("Add", "sum", [total, kinds])
    w.result(0, layer_norm(w, total, w.reads(5), w.reads(6), number(w, "epsilon", _EPSILON)))
    if w.wants(1):
        w.result(1, _lengths(w))
    w.result(2, total)


def _positions(w: NodeWriter) -> gs.Tensor:
    """The first rows of the table, one for each place: [places, width]."""
    sizes = w.op("Shape", "sizes", [w.reads(0)], dtype=INT64)
    count = w.op("Slice", "count", [sizes, w.integers("second", [1]), w.integers("third", [2])], dtype=INT64)
    return w.op("Slice", "positions", [w.reads(3), w.integers("first", [0]), count, w.integers("rows", [0])])


def _lengths(w: NodeWriter) -> gs.Tensor:
    """How many places of each row are not masked, INT32 [batch]; zeros where there is no mask."""
    int32 = np.dtype(np.int32)
    mask, axis = w.read(7), w.integers("places", [1])
    if mask is not None:
        return w.op("ReduceSum", "lengths", [mask, axis], dtype=int32, keepdims=0)
    ids = w.op("Cast", "ids", [w.reads(0)], dtype=int32, to=graphs.onnx_type(int32))
    none = w.op("Mul", "none", [ids, w.constant("zero", np.zeros((), np.int32))], dtype=int32)
    return w.op("ReduceSum", "lengths", [none, axis], dtype=int32, keepdims=0)


def _group_norm(w: NodeWriter) -> None:
    w.result(0, _of_groups(w, w.reads(0)))


def _skip_group_norm(w: NodeWriter) -> None:
    x, skip, bias = w.reads(0), w.reads(3), w.read(4)
    if rank(skip) == 2:
        spread = [1, 2] if integer(w, "channels_last", 1) else [2, 3]
        skip = w.op("Unsqueeze", "spread_skip", [skip, w.integers("spread", spread)])
    total = w.op("Add", "sum", [x, skip])
    if bias is not None:
        total = w.op("Add", "biased", [total, _per_channel(w, "bias", bias)])
    w.result(0, _of_groups(w, total))
    w.result(1, total)


def _of_groups(w: NodeWriter, x: gs.Tensor) -> gs.Tensor:
    groups, last, activation = needed(w, "groups"), integer(w, "channels_last", 1), needed(w, "activation")
    if activation not in (0, 1):
        raise NotWrittenError(f"has activation={activation}")
    first = w.op("Transpose", "channels_first", [x], perm=[0, 3, 1, 2]) if last else x
    apart = w.op("Reshape", "groups_apart", [first, w.integers("groups", [0, groups, -1])])
    plain = [w.constant("ones", np.ones(groups, w.dtype)), w.constant("zeros", np.zeros(groups, w.dtype))]
    epsilon = number(w, "epsilon", 1e-5)
    normal = w.op("InstanceNormalization", "normalised", [apart, *plain], epsilon=epsilon)
    back = w.op("Reshape", "groups_joined", [normal, w.op("Shape", "sizes", [first], dtype=INT64)])
    if last:
        back = w.op("Transpose", "channels_last", [back], perm=[0, 2, 3, 1])
    scaled = w.op("Mul", "scaled", [back, _per_channel(w, "gamma", w.reads(1))])
    shifted = w.op("Add", "shifted", [scaled, _per_channel(w, "beta", w.reads(2))])
    return silu(w, shifted) if activation else shifted


def _per_channel(w: NodeWriter, what: str, values: gs.Tensor) -> gs.Tensor:
    """[channels] so that it broadcasts onto the input."""
    if integer(w, "channels_last", 1):
        return values
    return w.op("Reshape", f"{what}_each", [values, w.integers(f"{what}_shape", [fixed(values, 0), 1, 1])])


_GROUPS = "epsilon groups activation channels_last"
NORMS: dict[str, Rule] = {
    "SkipLayerNormalization": rule(_skip_layer_norm, "epsilon"),
    "SkipSimplifiedLayerNormalization": rule(_skip_rms_norm, "epsilon"),
    "SimplifiedLayerNormalization": rule(_rms_norm, "epsilon axis stash_type"),
    "EmbedLayerNormalization": rule(_embed, "epsilon mask_index_type"),
    "GroupNorm": rule(_group_norm, _GROUPS),
    "SkipGroupNorm": rule(_skip_group_norm, _GROUPS),
}
