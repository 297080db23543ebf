"""Rotary position embedding as Mul, Sub and Add: what all operators of that name are written out as.

    x₁, x₂ = halves of x (or every other element)  ⇒  x₁·cos - x₂·sin,  x₂·cos + x₁·sin

Sources: ONNX operator specification, RotaryEmbedding-23; https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.passes.node_writer import NodeWriter


def rotate(
    w: NodeWriter,
    x: gs.Tensor,
    cos: gs.Tensor,
    sin: gs.Tensor,
    *,
    width: int,
    rotated: int = 0,
    interleaved: bool = False,
) -> gs.Tensor:
    """The rows of x turned by their positions.

    Args:
        w: what makes the nodes.
        x: [batch, heads, rows, width] or [batch, rows, heads, width].
        cos: of the angles, with axes like `x` and `rotated / 2` of them in each row.
        sin: likewise.
        width: of a head.
        rotated: so many elements of each head are turned, and the others stay; 0 means all.
        interleaved: neighbours are turned together; else the first half with the second one.
    """
    rotated = rotated or width
    turned, rest = x, None
    if rotated != width:
        sizes = w.integers("rotated_sizes", [rotated, width - rotated])
        turned, rest = w.ops("Split", "rotated_part", [x, sizes], 2, axis=-1)
    first, second = _apart(w, turned, rotated, interleaved)
    real = w.op("Sub", "real", [w.op("Mul", "real_cos", [first, cos]), w.op("Mul", "real_sin", [second, sin])])
    imaginary = w.op("Add", "imag", [w.op("Mul", "imag_cos", [second, cos]), w.op("Mul", "imag_sin", [first, sin])])
    if not interleaved:
        parts = [real, imaginary] if rest is None else [real, imaginary, rest]
        return w.op("Concat", "turned", parts, axis=-1)
    last = w.integers("pair_axis", [-1])
    pairs = [w.op("Unsqueeze", what, [part, last]) for what, part in (("real_each", real), ("imag_each", imaginary))]
    together = w.op("Concat", "pairs_turned", pairs, axis=-1)
    flat = w.op("Reshape", "turned", [together, w.integers("turned_shape", [0, 0, 0, rotated])])
    return flat if rest is None else w.op("Concat", "with_rest", [flat, rest], axis=-1)


def _apart(w: NodeWriter, x: gs.Tensor, rotated: int, interleaved: bool) -> list[gs.Tensor]:
    """What is turned together, as two tensors of half the width."""
    if not interleaved:
        return w.ops("Split", "halves", [x, w.integers("half_sizes", [rotated // 2] * 2)], 2, axis=-1)
    pairs = w.op("Reshape", "pairs", [x, w.integers("pairs_shape", [0, 0, 0, rotated // 2, 2])])
    ones = w.ops("Split", "of_pairs", [pairs, w.integers("pair_sizes", [1, 1])], 2, axis=-1)
    last = w.integers("of_pair_axis", [-1])
    return [w.op("Squeeze", f"of_pair_{i}", [one, last]) for i, one in enumerate(ones)]
