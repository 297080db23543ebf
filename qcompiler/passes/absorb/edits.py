"""The constants that take a division or a multiplication by factors per channel: finding, scaling, replacing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import add_constant, insert_before, set_input
from qcompiler.ir.graph import (
    constant_value,
    consumers,
    is_constant,
    is_float,
    is_linear,
    is_op,
    is_output,
    producer,
    static_shape,
    values_of,
)
from qcompiler.ir.made import Held, Made, ScaledWeights, later, scaled
from qcompiler.ir.names import Names
from qcompiler.ir.operators import VIEWS
from qcompiler.passes.absorb.index import Index, along, before_view, only_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Edit:
    """One constant to divide or to multiply.

    Attributes:
        node: the node that uses it.
        input: which of the inputs of `node` it is, or stands behind.
        index: the channel of each of its elements, broadcastable to it. It may be larger than the constant along an
            axis of length 1, which then grows.
        multiply: whether it is multiplied; else divided.
        chain: nodes between it and `node` (Transpose, Reshape, ...), from `node` towards the constant; mostly empty.
        reads: whether it is the weight of a layer that reads a divided tensor and makes up for that.
    """

    node: gs.Node
    input: int
    index: Index
    multiply: bool
    chain: tuple[gs.Node, ...] = ()
    reads: bool = False

    @property
    def constant(self) -> gs.Constant:
        """The constant as it is now."""
        reader, i = (self.chain[-1], 0) if self.chain else (self.node, self.input)
        return reader.inputs[i]


def edit_of(node: gs.Node, i: int, index: Index, *, multiply: bool = False) -> Edit | str | None:
    """The edit that scales what input `i` of `node` reads by `index`; None where that is no constant, else why not."""
    chain: list[gs.Node] = []
    tensor = node.inputs[i]
    while not is_constant(tensor):
        maker = producer(tensor)
        if maker is None or not is_op(maker, *VIEWS):
            return None
        if any(constant_value(option) is None for option in maker.inputs[1:] if option.name):
            return None
        chain.append(maker)
        tensor = maker.inputs[0]
    if not is_float(tensor):
        return f"constant '{tensor.name}' of '{node.name}' is not float"
    for link in chain:
        before, after = static_shape(link.inputs[0]), static_shape(link.outputs[0])
        found = before_view(link, index, before, after)
        if found is None:
            return f"the {link.op} '{link.name}' behind constant '{tensor.name}' mixes its axes"
        index = found
    return Edit(node, i, index, multiply, tuple(chain))


def compensate(node: gs.Node, i: int, index: Index, *, check: bool = True) -> Edit | str:
    """The edit of the weight of a linear node that makes up for the division of its input `i`; else why there is none.

    Args:
        node: any reader of the divided tensor.
        i: which of its inputs that is.
        index: the channels of that input.
        check: whether the weight must have as many input channels as `index` has.
    """
    also = f"also read by '{node.name}' ({node.op})"
    weight = 1 - i if is_op(node, "MatMul") else 1
    if not is_linear(node) or (i != 0 and not is_op(node, "MatMul")) or len(node.inputs) < 2:
        return also
    axis = _contracted(node, i, index.ndim)
    channels = only_axis(index, axis)
    if channels is None:
        return f"{also}, which adds up elements of different channels"
    shape = static_shape(node.inputs[weight])
    if shape is None:
        return f"{also}, which has no constant weight"
    placed = _on_weight(node, i, channels, shape) if check else np.zeros((1,) * len(shape), np.int64)
    if placed is None:
        return f"{also}, whose weight has shape {list(shape)}"
    edit = edit_of(node, weight, placed, multiply=True)
    if edit is None:
        return f"{also}, which has no constant weight"
    return f"{also}: {edit}" if isinstance(edit, str) else replace(edit, reads=True)


def _contracted(node: gs.Node, i: int, rank: int) -> int:
    """The axis of input `i` that a linear node adds up over."""
    if is_op(node, "Conv", "ConvTranspose"):
        return 1
    if is_op(node, "Gemm"):
        return 0 if node.attrs.get("transA", 0) else 1
    return rank - 1 if i == 0 else max(rank - 2, 0)


def _on_weight(node: gs.Node, i: int, channels: Index, shape: Sequence[int]) -> Index | None:
    rank = len(shape)
    if is_op(node, "Conv"):
        group = int(node.attrs.get("group", 1))
        if channels.size not in (1, shape[1] * group):
            return None
        per_group = np.broadcast_to(channels, (shape[1] * group,)).reshape(group, shape[1])
        rows = np.repeat(per_group, shape[0] // group, axis=0) if group > 1 else per_group
        return rows.reshape(*rows.shape, *[1] * (rank - 2))
    axis = 0
    if is_op(node, "Gemm"):
        axis = 1 if node.attrs.get("transB", 0) else 0
    elif is_op(node, "MatMul"):
        axis = max(rank - 2, 0) if i == 0 else rank - 1
    return along(axis, channels, rank) if channels.size in (1, shape[axis]) else None


def scaled_constants(edits: Sequence[Edit], factors: NDArray[np.float32]) -> list[tuple[Edit, Held]] | str:
    """The new arrays, several edits of one constant taken together; or which of them would leave its type's range.

    Args:
        edits: what to scale.
        factors: float32 [C + 1]; the last one, for `NONE`, is 1.
    """
    together: dict[tuple[int, int], tuple[Edit, list[tuple[Array, bool]]]] = {}
    for edit in edits:
        own = together.setdefault((id(edit.node), edit.input), (edit, []))
        together[id(edit.node), edit.input] = (edit, [*own[1], (factors[edit.index], edit.multiply)])
    done: list[tuple[Edit, Held]] = []
    for edit, given in together.values():
        held, old = edit.constant._values, values_of(edit.constant)
        new = scaled(old, tuple(given))
        if not (np.isfinite(new) | ~np.isfinite(old)).all():
            return f"'{edit.constant.name}' of '{edit.node.name}' would leave the range of {old.dtype}"
        wide = isinstance(held, np.ndarray | Made) and old.dtype == np.float32
        done.append((edit, ScaledWeights(held, tuple(given)) if wide and later(old) else new))
    return done


def set_constants(
    graph: gs.Graph, values: Sequence[tuple[Edit, Held]], copies: Mapping[int, gs.Node], names: Names
) -> None:
    """Gives each edit its array: a new initializer, which takes the old name where nothing else reads the old one."""
    for edit, new in values:
        reader, i = copies.get(id(edit.node), edit.node), edit.input
        edit = replace(edit, node=reader, chain=_own(graph, reader, i, edit.chain, names))
        reader, i = (edit.chain[-1], 0) if edit.chain else (reader, i)
        old = reader.inputs[i]
        shared = len(consumers(old)) > 1 or is_output(graph, old)
        set_input(reader, i, add_constant(names.fresh(old.name) if shared else old.name, new))


def _own(graph: gs.Graph, reader: gs.Node, i: int, chain: Sequence[gs.Node], names: Names) -> tuple[gs.Node, ...]:
    """The chain with every node doubled that others read too."""
    anchor, own = reader, []
    for link in chain:
        output = link.outputs[0]
        if len(consumers(output)) > 1 or is_output(graph, output):
            twin = gs.Variable(names.fresh(output.name), output.dtype, output.shape)
            link = gs.Node(link.op, names.fresh(link.name), dict(link.attrs), list(link.inputs), [twin], link.domain)
            insert_before(graph, anchor, link)
            set_input(reader, i, twin)
        own.append(link)
        anchor, reader, i = link, link, 0
    return tuple(own)
