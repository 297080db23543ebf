"""Multiply-accumulates of all operators that multiply, from the shapes that one real sample gives every tensor.

| operators                                  | one node counts                                                         |
|--------------------------------------------|-------------------------------------------------------------------------|
| Conv, DeformConv and their kin             | elements written x elements of one filter                               |
| ConvTranspose                              | elements read x elements of one filter                                  |
| MatMul, Gemm and their kin                 | elements written x depth                                                |
| Einsum                                     | operands two by two; what only one of them has is summed before         |
| Attention, MultiHeadAttention, GroupQuery- | q.k and p.v over all keys, those of the past too, masked or not; with a |
| Attention                                  | matrix for q, k and v among its inputs also that product                |
| LSTM, GRU, RNN                             | steps x batch x elements of both matrices                               |
| MoE                                        | rows x experts of each x elements of the matrices of one                |
| DFT, STFT                                  | 2 N log2 N for each transform of N points, as an FFT does it            |

Work in nested graphs counts for the nodes that do it. Where the model was run, that is what the run did: the branch
that was taken, and as many rounds as a Loop or Scan made (see `runtime.work`). Without a run, it is the branch of an If
that has more work, and rounds as far as constants and shapes tell them. What multiplies and cannot be counted is never
0 in silence: `uncounted` names it.

Not counted are element-wise products, norms, pools and resampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import PRODUCTS, RECURRENT

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_STANDARD: Final = (None, "", "ai.onnx")
_MICROSOFT: Final = (
    "com.microsoft",
    "com.ms.internal.nhwc",
    "com.microsoft.nchwc",
)  # ONNX Runtime's own
# Products of two matrices by any name, the left one first
_MATRICES: Final = (
    *PRODUCTS, "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm", "FusedMatMulActivation", "GemmFastGelu",
    "GemmFloat8", "TransposeMatMul", "SparseToDenseMatMul", "QGemm", "MatMulInteger16", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QOrderedMatMul",
)  # fmt: skip
# Convolutions by any name, and which of their inputs is the filter [M, C/g, ...]
_CONVOLUTIONS: Final[Mapping[str, int]] = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "NhwcConv": 1, "ConvInteger": 1, "DeformConv": 1,
    "QLinearConv": 3,
}  # fmt: skip
# They multiply, and shapes alone do not tell how much
_OPAQUE: Final = frozenset(
    {
        "AttnLSTM", "BeamSearch", "CDist", "CausalConvWithState", "DecoderAttention", "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention", "DynamicSparseAttention", "GatedDeltaNet", "GatedRelativePositionBias",
        "GreedySearch", "LinearAttention", "LongformerAttention", "MatMulBlockQuantizedFp4Weight",
        "MatMulBlockQuantizedFp8Weight", "MatMulFpQ4", "MatMulNBitsMlp", "MatMulNBitsQkv", "PackedAttention",
        "PackedMultiHeadAttention", "PagedAttention", "QOrderedAttention", "QOrderedLongformerAttention", "Sampling",
        "SparseAttention", "SparsePagedAttention", "WhisperBeamSearch", "WordConvEmbedding",
    }
)  # fmt: skip


class _Read(NamedTuple):
    """A node with the shapes that are known around it."""

    node: gs.Node
    shapes: Shapes

    def of(self, index: int) -> Shape | None:
        """The shape of an input; None where it is omitted or not known."""
        return shape_in(self.node.inputs[index], self.shapes) if graphs.is_present(self.node, index) else None

    def out(self, index: int = 0) -> Shape | None:
        """The shape of an output; None where there is none or it is not known."""
        outputs = self.node.outputs
        return shape_in(outputs[index], self.shapes) if index < len(outputs) and outputs[index].name else None

    def attr(self, name: str, default: int = 0) -> int:
        return int(self.node.attrs.get(name, default))


def multiplies(node: gs.Node) -> bool:
    """Whether a node is of an operator that multiplies, or of one that nobody here knows and that therefore may."""
    if node.domain in (*_STANDARD, *_MICROSOFT):
        return node.op in _COUNTS or node.op in _OPAQUE
    # of foreign operators only quantizers are known to do nothing else
    return node.domain != "ai.onnx.ml" and "QuantizeLinear" not in node.op


def countable(node: gs.Node) -> bool:
    """Whether a node multiplies, and shapes tell how much."""
    return node.domain in (*_STANDARD, *_MICROSOFT) and node.op in _COUNTS


def macs_of(node: gs.Node, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one run of a node, without its nested graphs.

    Args:
        node: any node.
        shapes: of what it reads and writes, by name; those of initializers are known.

    Returns:
        0 where its operator does not multiply; None where it does and a shape that is needed is not known.
    """
    if not multiplies(node):
        return 0
    return _COUNTS[node.op](_Read(node, shapes)) if countable(node) else None


def node_macs(graph: gs.Graph, shapes: Shapes, nested: Mapping[str, int] | None = None) -> dict[str, int]:
    """Multiply-accumulates of every node that multiplies and can be counted, by name, nested graphs included.

    Args:
        graph: names of its nodes are unique.
        shapes: of tensors, by name.
        nested: of the nodes in nested graphs, as a run showed them; those that it lacks did not run or cannot be
            counted. None where there was no run: shapes and constants then have to tell.
    """
    found = _own(graph, shapes)
    if nested is not None:
        return found | dict(nested)
    for owner in graph.nodes:
        if graphs.subgraphs(owner):
            found |= _inside(owner, shapes)
    return found


def uncounted(graph: gs.Graph, macs: Mapping[str, int]) -> list[str]:
    """Names of the nodes that multiply, or may, and have no count, in graph order, nested graphs included."""
    return [node.name for node in graphs.walk(graph) if multiplies(node) and node.name not in macs]


def tensors_for_shapes(graph: gs.Graph) -> list[str]:
    """Names of the tensors of the main graph whose shapes `node_macs` and `too_small` need."""
    nodes = [node for node in graph.nodes if multiplies(node)]
    tensors = [tensor for node in nodes for tensor in (*node.inputs, *node.outputs)]
    names = [tensor.name for tensor in tensors if tensor.name and not graphs.is_constant(tensor)]
    return list(dict.fromkeys(names))


def shape_in(tensor: gs.Tensor, shapes: Shapes) -> Shape | None:
    """The shape of a tensor: an initializer's own, else the one known by its name."""
    if isinstance(tensor, gs.Constant):
        return tuple(int(size) for size in tensor.shape)
    return shapes.get(tensor.name)


# --- Nested graphs without a run --------------------------------------------------------------------------------------


def _own(graph: gs.Graph, shapes: Shapes) -> dict[str, int]:
    """Of the nodes of one graph."""
    counted = ((node.name, macs_of(node, shapes)) for node in graph.nodes if multiplies(node))
    return {name: count for name, count in counted if count is not None}


def _inside(owner: gs.Node, shapes: Shapes) -> dict[str, int]:
    """Of the nodes in the graphs that a node carries; those of branches that are not taken count 0."""
    bodies = graphs.subgraphs(owner)
    counted = [node_macs(body, shapes) for body in bodies]
    if graphs.is_op(owner, "If"):
        most = max(range(len(bodies)), key=lambda index: sum(counted[index].values()))
        idle = [macs for index, macs in enumerate(counted) if index != most]
        return counted[most] | {name: 0 for macs in idle for name in macs}
    rounds = _rounds(owner, shapes)
    if rounds is None:
        return {}
    return {name: count * rounds for macs in counted for name, count in macs.items()}


def _rounds(owner: gs.Node, shapes: Shapes) -> int | None:
    """How often the body of a Loop or Scan runs; None where neither a constant nor a shape tells."""
    if graphs.is_op(owner, "Loop"):
        most = graphs.constant_value(owner.inputs[0]) if graphs.is_present(owner, 0) else None
        return None if most is None or most.size != 1 else int(most.reshape(-1)[0])
    if not graphs.is_op(owner, "Scan"):
        return None
    count = int(owner.attrs.get("num_scan_inputs", 0))
    sequence = shape_in(owner.inputs[-count], shapes) if count else None
    axes = owner.attrs.get("scan_input_axes") or [0]
    return None if not sequence else sequence[int(axes[0])]


# --- One operator after the other -------------------------------------------------------------------------------------


def _convolution(read: _Read) -> int | None:
    """Every element of the output sums over the filter of its channel."""
    out, weight = read.out(), read.of(_CONVOLUTIONS[read.node.op])
    return None if out is None or weight is None else math.prod(out) * math.prod(weight[1:])


def _transposed(read: _Read) -> int | None:
    """Every element of the input goes into the filters of all output channels of its group."""
    x, weight = read.of(0), read.of(1)
    return None if x is None or weight is None else math.prod(x) * math.prod(weight[1:])


def _matrix(read: _Read) -> int | None:
    """Every element of the output sums over the depth, which is an axis of the left matrix."""
    out, left = read.out(), read.of(0)
    if out is None or left is None:
        return None
    if not left:
        return math.prod(out)
    turned = read.attr("transA") and len(left) > 1
    behind = 0 if turned and read.attr("transBatchA") else -2
    return math.prod(out) * left[behind if turned else -1]


def _packed(read: _Read) -> int | None:
    """A product with a matrix [K, N] in packed blocks, whose sizes are attributes."""
    out = read.out()
    return None if out is None or "K" not in read.node.attrs else math.prod(out) * read.attr("K")


def _einsum(read: _Read) -> int | None:
    """As ONNX Runtime and NumPy do it: two operands at a time, from the left."""
    shapes = [read.of(index) for index in range(len(read.node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    terms, result = _equation(str(read.node.attrs.get("equation", "")))
    if len(terms) != len(known):
        return None
    sizes: dict[str, int] = {}
    labels = [_labels(term, shape, sizes) for term, shape in zip(terms, known, strict=True)]
    wanted = set(sizes) - set("".join(terms).replace(".", "")) | set(result.replace(".", ""))
    total, left = 0, labels[0]
    for index, right in enumerate(labels[1:], start=2):
        later = wanted.union(*labels[index:])
        shared = left & right
        both = (left | right) & (later | shared)  # what only one of them has, and nobody asks for, is summed before
        total += math.prod(sizes[label] for label in both)
        left = (left | right) & later
    return total


def _equation(text: str) -> tuple[list[str], str]:
    """The terms of an equation and its result, which without an arrow has every letter that occurs once."""
    terms, arrow, result = "".join(text.split()).partition("->")
    if not arrow:
        result = "".join(sorted(one for one in set(terms) if one.isalpha() and terms.count(one) == 1))
    return terms.split(","), result


def _labels(term: str, shape: Shape, sizes: dict[str, int]) -> set[str]:
    """The labels of an operand; axes of its ellipsis are numbered from the last. Fills in the largest size of each."""
    before, dots, behind = term.partition("...")
    rest = len(shape) - len(before) - len(behind)
    many = [f"...{-place}" for place in range(-rest, 0)] if dots else []
    labels = [*before, *many, *behind]
    for label, size in zip(labels, shape, strict=False):
        sizes[label] = max(size, sizes.get(label, 1))
    return set(labels)


def _recurrent(read: _Read) -> int | None:
    """Each step multiplies its input and the state before it by their matrices, of all gates and directions."""
    x, weight, state = (read.of(index) for index in range(3))
    if x is None or weight is None or state is None or len(x) < 2:
        return None
    return x[0] * x[1] * (math.prod(weight) + math.prod(state))


def _attention(read: _Read) -> int | None:
    """Attention of either domain: ONNX's own reads q, k and v, Microsoft's reads x and one matrix for the three."""
    return _projected(read, past=4) if read.node.domain in _MICROSOFT else _standard_attention(read)


def _standard_attention(read: _Read) -> int | None:
    """q, k, v as [batch, heads, rows, width] or [batch, rows, heads x width]."""
    q, k, v = (read.of(index) for index in range(3))
    if q is None or k is None or v is None:
        return None
    if len(q) == 4:
        return _scores(q[0] * q[1] * q[2], _keys(read, k[-2], past=4, present=1), q[3], v[-1])
    heads, groups = read.attr("q_num_heads"), read.attr("kv_num_heads")
    if len(q) != 3 or not heads or not groups:
        return None
    return _scores(q[0] * q[1] * heads, _keys(read, k[1], past=4, present=1), q[2] // heads, v[-1] // groups)


def _projected(read: _Read, past: int) -> int | None:
    """x [batch, rows, in] times one matrix [in, q + k + v], and the attention of that."""
    x, weight = read.of(0), read.of(1)
    if x is None or weight is None or len(x) != 3:
        return None
    parts = [int(size) for size in read.node.attrs.get("qkv_hidden_sizes") or [weight[-1] // 3] * 3]
    keys = _keys(read, x[1], past=past, present=1)
    attention = None if keys is None else x[0] * x[1] * keys * (parts[0] + parts[2])
    return None if attention is None else math.prod(x) * weight[-1] + attention


def _quantized_attention(read: _Read) -> int | None:
    return _projected(read, past=8)


def _multi_head(read: _Read) -> int | None:
    """MultiHeadAttention: q [batch, rows, all]; packed forms have five axes; k and v may come with heads in front."""
    q, k, v, heads = read.of(0), read.of(1), read.of(2), read.attr("num_heads")
    if q is None or not heads:
        return None
    if len(q) == 5:  # [batch, rows, heads, 3, width]
        return _scores(q[0] * q[1] * heads, _keys(read, q[1], past=6, present=1), q[-1], q[-1])
    if k is None or len(q) != 3:
        return None
    width = q[2] // heads
    if len(k) == 5:  # [batch, keys, heads, 2, width]
        return _scores(q[0] * q[1] * heads, _keys(read, k[1], past=6, present=1), width, k[-1])
    if v is None:
        return None
    of_value = v[-1] if len(v) == 4 else v[-1] // heads
    return _scores(q[0] * q[1] * heads, _keys(read, k[2 if len(k) == 4 else 1], past=6, present=1), width, of_value)


def _grouped(read: _Read) -> int | None:
    """GroupQueryAttention: q [batch, rows, all], or q, k and v in one; the caches tell the width of a head."""
    q, k, heads, groups = read.of(0), read.of(1), read.attr("num_heads"), read.attr("kv_num_heads")
    if q is None or len(q) != 3 or not heads or not groups:
        return None
    width = q[2] // (heads if k is not None else heads + 2 * groups)
    return _scores(q[0] * q[1] * heads, _keys(read, q[1], past=3, present=1), width, width)


def _keys(read: _Read, own: int, *, past: int, present: int) -> int | None:
    """How many keys there are: those of the cache that is written, else its own and the cache's that is read."""
    written, before = read.out(present), read.of(past)
    if written is not None and len(written) >= 4:
        return written[-2]
    if before is None and graphs.is_present(read.node, past):
        return None
    return own + (before[-2] if before else 0)


def _scores(rows: int, keys: int | None, width: int, of_value: int) -> int | None:
    """q.k for each row and key, then the sum of the values."""
    return None if keys is None else rows * keys * (width + of_value)


def _experts(read: _Read) -> int | None:
    """MoE: every row goes through its k best experts, [experts, in, out] each matrix; gates have a third one."""
    x = read.of(0)
    first, second, third = (read.of(index) for index in _EXPERTS[read.node.op])
    if x is None or first is None or second is None:
        return None
    packed = 8 // read.attr("expert_weight_bits", 8) if read.node.op == "QMoE" else 1
    each = sum(math.prod(one[1:]) for one in (first, second, third) if one) * packed
    return math.prod(x[:-1]) * read.attr("k", 1) * each


def _fourier(read: _Read) -> int | None:
    """DFT along one axis, which is an attribute before opset 20 and an input from there on."""
    x = read.of(0)
    if x is None or len(x) < 2:
        return None
    axis: int | None = read.attr("axis", 1)
    if graphs.is_present(read.node, 2):
        value = graphs.constant_value(read.node.inputs[2])
        axis = None if value is None else int(value.reshape(-1)[0])
    if axis is None:
        return None
    points = x[axis]
    out = read.out()
    points = max(points, out[axis]) if out is not None and not read.attr("onesided") else points
    return math.prod(x[:-1]) // max(x[axis], 1) * _fast(points)


def _short_fourier(read: _Read) -> int | None:
    """STFT: one transform for each window, [batch, windows, bins, 2]."""
    out, window = read.out(), read.of(2)
    if out is None:
        return None
    if window:
        return out[0] * out[1] * _fast(window[0])
    return out[0] * out[1] * _fast(2 * (out[2] - 1) if read.attr("onesided", 1) else out[2])


def _fast(points: int) -> int:
    """N/2 log2 N butterflies of four real products."""
    return math.ceil(2 * points * math.log2(points)) if points > 1 else 0


_EXPERTS: Final[Mapping[str, Sequence[int]]] = {"MoE": (2, 4, 6), "QMoE": (2, 5, 8)}
_COUNTS: Final[Mapping[str, Callable[[_Read], int | None]]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _transposed),
    **dict.fromkeys(_MATRICES, _matrix),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _packed),
    **dict.fromkeys((*RECURRENT, "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(_EXPERTS, _experts),
    "Einsum": _einsum,
    "Attention": _attention,
    "QAttention": _quantized_attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped,
    "DFT": _fourier,
    "STFT": _short_fourier,
}
