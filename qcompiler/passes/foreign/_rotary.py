"""RotaryEmbedding(x, positions, cos, sin): pairs of features turned by an angle that grows with their position.

x₁, x₂ = halves of the features (or every other one)  ⇒  x₁ · cos - x₂ · sin, x₂ · cos + x₁ · sin
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.passes import attention_parts as parts
from qcompiler.passes.foreign._rules import (
    INT64,
    NotWrittenError,
    Rule,
    cut,
    fixed,
    integer,
    rank,
    refuse_values,
    rule,
)
from qcompiler.passes.node_writer import NodeWriter


def turned(
    w: NodeWriter,
    what: str,
    x: gs.Tensor,
    angles: tuple[gs.Tensor, gs.Tensor],
    turns: int,
    width: int,
    *,
    interleaved: bool,
) -> gs.Tensor:
    """Features turned by their angles.

    Args:
        w: what makes the nodes.
        what: part of the nodes' names.
        x: [..., width], of rank 4.
        angles: cosines and sines, [..., turns / 2], that broadcast to x.
        turns: so many features are turned, the first ones; the rest stays.
        width: of x.
        interleaved: pairs lie side by side; else the second ones follow behind all first ones.
    """
    cos, sin = angles
    part = x if turns == width else cut(w, f"{what}_turning", x, 0, turns, 3)
    if interleaved:
        pairs = w.op("Reshape", f"{what}_pairs", [part, w.integers("pairs", [0, 0, 0, turns // 2, 2])])
        one, two = (w.op("Gather", f"{what}_{i}", [pairs, w.integers("of_pair", i)], axis=4) for i in range(2))
    else:
        one, two = (cut(w, f"{what}_{i}", part, i * turns // 2, (i + 1) * turns // 2, 3) for i in range(2))
    first = w.op("Sub", f"{what}_first", [_times(w, what, one, cos), _times(w, what, two, sin)])
    second = w.op("Add", f"{what}_second", [_times(w, what, two, cos), _times(w, what, one, sin)])
    if interleaved:
        each = [w.op("Unsqueeze", f"{what}_each", [half, w.integers("pair_axis", [4])]) for half in (first, second)]
        both = w.op("Concat", f"{what}_both", each, axis=4)
        made = w.op("Reshape", f"{what}_turned", [both, w.integers("features", [0, 0, 0, turns])])
    else:
        made = w.op("Concat", f"{what}_turned", [first, second], axis=3)
    if turns == width:
        return made
    return w.op("Concat", f"{what}_whole", [made, cut(w, f"{what}_rest", x, turns, width, 3)], axis=3)


def _times(w: NodeWriter, what: str, x: gs.Tensor, by: gs.Tensor) -> gs.Tensor:
    return w.op("Mul", f"{what}_part", [x, by])


def angles(
    w: NodeWriter, tables: tuple[gs.Tensor, gs.Tensor], positions: gs.Tensor, axis: int
) -> tuple[gs.Tensor, gs.Tensor]:
    """Cosines and sines of positions, with an axis of 1 for the heads put in."""
    cos, sin = (
        w.op("Gather", name, [one, positions], axis=0) for name, one in zip(("cos", "sin"), tables, strict=True)
    )
    spread = w.integers("heads_axis", [axis])
    return w.op("Unsqueeze", "cos_each", [cos, spread]), w.op("Unsqueeze", "sin_each", [sin, spread])


def _rotary(w: NodeWriter) -> None:
    refuse_values(w, is_packed_batching=0, scale=1.0)
    x, tables = w.reads(0), (w.reads(2), w.reads(3))
    turns, by_head = 2 * fixed(tables[0], 1), rank(x) == 4
    if rank(x) not in (3, 4):
        raise NotWrittenError(f"reads {rank(x)} axes")
    width, heads = _heads(w, x, turns)
    apart = x if by_head else w.op("Reshape", "by_head", [x, w.integers("by_head_shape", [0, 0, heads, width])])
    positions, behind = _positions(w, x, rows=2 if by_head else 1), 1 if by_head else 2
    how = integer(w, "interleaved")
    made = turned(w, "x", apart, angles(w, tables, positions, behind), turns, width, interleaved=bool(how))
    w.result(0, made if by_head else w.op("Reshape", "joined", [made, w.integers("joined_shape", [0, 0, -1])]))


def _heads(w: NodeWriter, x: gs.Tensor, turns: int) -> tuple[int, int]:
    """Width of a head, and their number (-1: what fits)."""
    if rank(x) == 4:
        return fixed(x, 3), -1
    if not integer(w, "rotary_embedding_dim"):
        return turns, -1
    heads = integer(w, "num_heads")
    if not heads:
        raise NotWrittenError("has the attribute 'rotary_embedding_dim' without 'num_heads'")
    return fixed(x, 2) // heads, heads


def _positions(w: NodeWriter, x: gs.Tensor, rows: int) -> gs.Tensor:
    """INT64 [batch, rows], or [1, rows] where the first position is all that is given."""
    given = w.reads(1)
    if rank(given) == 2:
        return given
    line = parts.places(w, "row", parts.length(w, "x", x, rows), 1)
    return w.op("Add", "positions", [line, given], dtype=INT64)


ROTARY: dict[str, Rule] = {
    "RotaryEmbedding": rule(_rotary, "interleaved num_heads rotary_embedding_dim is_packed_batching scale"),
}
