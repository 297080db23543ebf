"""Products that project several things at once: q, k and v, or gate and up, cut apart behind the product.

TensorRT-RTX 1.7 moves the cut in front of some products, and then finds scales per output channel that it cannot cut
with the weight: the product runs in float without a word. With one scale for the whole weight it stays INT8. Seen in
its listings:

    MatMul, Add, Reshape, Transpose, then Gather, Slice or Split into q, k and v      float
    MatMul, Add, then Split or three Slices, each part as wide as the input, all
    three of them to a Reshape (heads)                                                float
    the same with two or four parts, with other widths, or cut again                  INT8
    parts that go on to something else (gates, a GLU, norms, further products)        INT8
    Mul, Relu or anything but a bias in front of a cut that no Reshape precedes       INT8

What is INT8 keeps a scale per channel. What is not foreseen here shows in the audit of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import PRODUCTS

PARTS: Final = 3
_CUTS: Final = ("Split", "Slice")
_FAR: Final = 8  # nodes between a product and its cut


def is_joint(node: gs.Node) -> bool:
    """Whether a product gives several things that a Gather, Slice or Split takes apart so that it needs one scale."""
    return node.op in PRODUCTS and (_cut_behind_views(node) or _cut_at_once(node))


def _cut_behind_views(node: gs.Node) -> bool:
    tensor, moved = node.outputs[0], False
    for _ in range(_FAR):
        readers = [reader for reader, _ in graphs.consumers(tensor)]
        if moved and readers and all(reader.op in ("Gather", *_CUTS) for reader in readers):
            return True
        between = ("Add", "Mul", "Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
        if len(readers) != 1 or readers[0].op not in between:
            return False
        moved = moved or readers[0].op in between[4:]
        tensor = readers[0].outputs[0]
    return False


def _cut_at_once(node: gs.Node) -> bool:
    """Whether it is cut behind a bias at most into three parts, each as wide as its input, that become heads."""
    tensor = node.outputs[0]
    for _ in range(_FAR):
        readers = _readers(tensor)
        if len(readers) != 1 or not _is_plain(readers[0]):
            break
        tensor = readers[0].outputs[0]
    parts = list(_parts(tensor, node))
    return len(parts) == PARTS and all(width in (None, _depth(node)) and _become_heads(one) for one, width in parts)


def _is_plain(node: gs.Node) -> bool:
    """Whether a node adds a bias or does nothing."""
    if graphs.is_op(node, "Add"):
        return any(graphs.constant_value(tensor) is not None for tensor in node.inputs)
    return graphs.is_op(node, "Cast", "Identity")


def _readers(tensor: gs.Tensor) -> list[gs.Node]:
    return list({id(reader): reader for reader, _ in graphs.consumers(tensor)}.values())


def _become_heads(part: gs.Tensor) -> bool:
    """Whether all that reads a part is a Reshape, as the one that makes heads of it."""
    readers = _readers(part)
    while len(readers) == 1 and graphs.is_op(readers[0], "Cast", "Identity"):
        readers = _readers(readers[0].outputs[0])
    return bool(readers) and all(graphs.is_op(reader, "Reshape") for reader in readers)


def _parts(tensor: gs.Tensor, product: gs.Node) -> Iterator[tuple[gs.Tensor, int | None]]:
    """What is cut out of a tensor along its last axis, with the width of each part; nothing where it is not only cut.

    Widths that only a run would tell are None.
    """
    readers, rank = _readers(tensor), _rank(product)
    if not all(_cuts_channels(reader, rank) for reader in readers):
        return
    for reader in readers:
        yield from zip(reader.outputs, _widths(reader, _width(product)), strict=True)


def _cuts_channels(node: gs.Node, rank: int | None) -> bool:
    """Whether a Split or Slice cuts along the last axis alone."""
    if graphs.is_op(node, "Split"):
        axes: Sequence[int] | None = [int(node.attrs.get("axis", 0))]
    elif graphs.is_op(node, "Slice"):
        axes = _values(node, 3, "axes")
    else:
        return False
    return axes is not None and len(axes) == 1 and axes[0] in (-1, None if rank is None else rank - 1)


def _widths(node: gs.Node, width: int | None) -> list[int | None]:
    """The width of every part that a Split or Slice gives."""
    if graphs.is_op(node, "Split"):
        sizes = _values(node, 1, "split")
        equal = None if width is None else width // len(node.outputs)
        return [equal] * len(node.outputs) if sizes is None else list(sizes)
    starts, ends = _values(node, 1, "starts"), _values(node, 2, "ends")
    if starts is None or ends is None or width is None:
        return [None]
    return [len(range(width)[starts[0] : ends[0]])]


def _values(node: gs.Node, index: int, name: str) -> list[int] | None:
    """Integers that are an attribute in old opsets and an input later; None where they are computed or omitted."""
    if name in node.attrs:
        return [int(one) for one in node.attrs[name]]
    value = graphs.constant_value(node.inputs[index]) if graphs.is_present(node, index) else None
    return None if value is None else [int(one) for one in np.asarray(value).reshape(-1)]


def _width(product: gs.Node) -> int | None:
    """The output channels of a product; None where its weight does not tell."""
    shape = graphs.static_shape(product.inputs[1])
    return None if not shape else shape[graphs.output_axis(product)]


def _depth(product: gs.Node) -> int | None:
    """The input channels of a product; None where its weight does not tell."""
    shape, width = graphs.static_shape(product.inputs[1]), _width(product)
    return None if not shape or not width or len(shape) != 2 else shape[0] * shape[1] // width


def _rank(node: gs.Node) -> int | None:
    """The rank of what a product gives; None where it is not known."""
    if node.op == "Gemm":
        return 2
    for tensor in (node.outputs[0], node.inputs[0]):
        shape = graphs.shape_of(tensor)
        if shape is not None:
            return len(shape)
    return None
