"""Mul(1 - mask, -inf) ⇒ Mul(1 - mask, -65504): what was rounded to infinity in 16 bits masks again.

A mask of -3.4e38 has no place in FP16, and rounded to the nearest it has none in BF16, either: a converter that does
not clip makes -inf of it. Where that multiplies 0 or 1, as in encoders (the part of a mask) and decoders (a causal mask
times what the cache holds), every token that is not masked becomes NaN. An infinity that multiplies means nothing else,
so it becomes the end of its type, which careful converters write. Added, compared or picked, infinities are ordinary
and stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import REARRANGES
from qcompiler.ir.weights import Array
from qcompiler.passes.base import Changed, Note, Pass
from qcompiler.passes.types._values import BF16, FP16, HALVES

_LARGEST = {FP16: 65504.0, BF16: 255 * 2.0**120}  # finite numbers
# What hands infinities on, by the inputs that they come from
_HANDS_ON = {
    **dict.fromkeys((*REARRANGES, "Cast", "Expand", "Tile", "Slice", "Gather", "Neg", "Trilu"), (0,)),
    "Where": (1, 2),
}


@dataclass(frozen=True)
class BoundFactors(Pass):
    """Make the end of its type of a 16-bit infinity that multiplies: 0 times infinity is NaN."""

    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note for each product that reads another number now, by the name of the tensor that it read."""
        names = Names(graph)
        for inner in graphs.graphs(graph):
            for node in [one for one in inner.nodes if graphs.is_op(one, "Mul") and len(one.inputs) == 2]:
                yield from _bound(inner, node, names)


def _bound(graph: gs.Graph, node: gs.Node, names: Names) -> Iterator[Note]:
    for index, tensor in enumerate(list(node.inputs)):
        other = graphs.constant_value(node.inputs[1 - index])
        if other is not None and np.asarray(other, np.float32).all():
            continue  # nothing is 0: the product is infinite by itself
        made: list[gs.Node] = []
        bounded = _again(tensor, names, made)
        if bounded is None:
            continue
        for one in made:
            edit.insert_before(graph, node, one)
        edit.set_input(node, index, bounded)
        yield Changed(tensor.name, f"the infinity that '{node.name}' (Mul) multiplies with is the end of its type")


def _again(tensor: gs.Tensor, names: Names, made: list[gs.Node]) -> gs.Tensor | None:
    """A tensor whose infinities are constants of 16 bits, with the end of that type instead; None where it has none.

    Nodes that hand infinities on are made again, since their results may be read where infinity is meant.
    """
    name, node = f"{tensor.name}/bounded", graphs.producer(tensor)
    end = _end(graphs.constant_value(tensor))
    if end is not None:
        return edit.add_constant(names.fresh(name), end)
    if node is None:
        return None
    attrs, inputs = dict(node.attrs), list(node.inputs)
    if graphs.is_op(node, "ConstantOfShape") and (end := _end(graphs.attribute_value(node))) is not None:
        attrs["value"] = gs.Constant("value", end)
    elif not _hand_on(node, inputs, names, made):
        return None
    out = gs.Variable(names.fresh(name), graphs.dtype_of(tensor), tensor.shape)
    made.append(gs.Node(node.op, names.fresh(f"{node.name}/bounded"), attrs, inputs, [out]))
    return out


def _hand_on(node: gs.Node, inputs: list[gs.Tensor], names: Names, made: list[gs.Node]) -> bool:
    """Puts bounded tensors among the inputs; whether there is one."""
    found = False
    for index in _HANDS_ON.get(node.op, ()) if graphs.is_standard(node) else ():
        source = _again(inputs[index], names, made)
        if source is not None:
            inputs[index], found = source, True
    return found


def _end(values: Array | None) -> Array | None:
    """The values with the ends of their type in place of infinities; None where none is there, or the type is wider."""
    if values is None or values.dtype not in HALVES:
        return None
    endless = np.isinf(values)
    end = np.where(values > 0, _LARGEST[values.dtype], -_LARGEST[values.dtype])
    return np.where(endless, end.astype(values.dtype), values) if endless.any() else None
