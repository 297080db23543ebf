"""Dividing a tensor by a positive factor per channel, exactly, by editing constants around it.

    LN(x; g, b) · W   =   LN(x; g/s, b/s) · (diag(s)·W)

`find_moves` finds out, without touching anything, which constants before the tensor can take the division and which
weights behind it take the multiplication that makes up for it, or why there are none. `apply` does it. SmoothQuant
(Xiao et al. 2023, §4) and cross-layer equalization (Nagel et al. 2019, §4.1) are both this, with different factors.

A constant that other nodes read too is never edited: the node that is concerned gets one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import insert_after, insert_before, set_input
from qcompiler.ir.graph import consumers, shape_of
from qcompiler.ir.names import Names
from qcompiler.passes.absorb.edits import Edit, compensate, scaled_constants, set_constants
from qcompiler.passes.absorb.index import NONE, along, groups
from qcompiler.passes.absorb.rules import RULES
from qcompiler.passes.absorb.search import NoWayError, Search

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Absorption:
    """What dividing one tensor by factors per channel would take.

    Attributes:
        tensor: the tensor.
        axis: its channel axis.
        classes: int64 [C]; channels of one class need one common factor (heads that share a value projection). Where
            every channel is free, 0 .. C-1.
        why: why it cannot be done, as the end of a sentence; empty where it can.
        edits: constants to divide or multiply.
        copies: nodes that are doubled, because others read their result as it was (with `split`).
        moved: reads (node, index of the input) that go over to the copies or to the inserted Mul.
        inserted: whether a Mul by 1/s is put in front of the readers instead of absorbing anything.
    """

    tensor: gs.Tensor
    axis: int
    classes: NDArray[np.int64]
    why: str = ""
    edits: tuple[Edit, ...] = ()
    copies: tuple[gs.Node, ...] = ()
    moved: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)
    inserted: bool = False

    @property
    def takers(self) -> tuple[gs.Node, ...]:
        """The nodes whose constants take the division, nearest first."""
        return tuple({id(edit.node): edit.node for edit in self.edits if not edit.reads}.values())

    @property
    def readers(self) -> tuple[gs.Node, ...]:
        """The linear nodes whose weights are multiplied: those of the tensor, and of others that come to be divided."""
        return tuple({id(edit.node): edit.node for edit in self.edits if edit.reads}.values())

    def tied(self, scale: Float) -> Float:
        """The largest factor of each class, for each of its channels: what can be applied, nearest to `scale`."""
        most = np.zeros(int(self.classes.max(initial=0)) + 1, np.float32)
        np.maximum.at(most, self.classes, np.asarray(scale, np.float32))
        return np.asarray(most[self.classes])

    def fits(self, scale: Float) -> bool:
        """Whether all channels of each class have one factor."""
        return bool(np.array_equal(self.tied(scale), np.asarray(scale, np.float32)))


def readers(tensor: gs.Tensor, axis: int | None = None) -> list[tuple[gs.Node, int]]:
    """The linear nodes with a constant weight whose input channels lie on an axis of the tensor, as (node, input).

    Args:
        tensor: an activation.
        axis: the axis, negative from the end; None for that of the first such reader.
    """
    found = [(node, i, one) for node, i in consumers(tensor) if (one := _input_axis(node, i, tensor)) is not None]
    if not found:
        return []
    rank = len(tensor.shape) if tensor.shape is not None else None
    wanted = found[0][2] if axis is None else axis if rank is None or axis < 0 else axis - rank
    return [(node, i) for node, i, one in found if one == wanted]


def reading_edits(tensor: gs.Tensor, axis: int) -> list[Edit]:
    """The weights of the linear nodes that read a tensor along an axis, with the channel of each of their elements."""
    count = _count(tensor, axis)
    rank = len(tensor.shape) if tensor.shape is not None else 0
    channels = along(axis, np.arange(count), rank)
    found = (compensate(node, i, channels) for node, i in readers(tensor, axis))
    return [edit for edit in found if isinstance(edit, Edit)]


def channel_axis(tensor: gs.Tensor) -> int | None:
    """The axis, from the end, on which the first linear reader with a constant weight has its input channels."""
    return next((one for node, i in consumers(tensor) if (one := _input_axis(node, i, tensor)) is not None), None)


def find_moves(graph: gs.Graph, tensor: gs.Tensor, axis: int, *, split: bool = False) -> Absorption:
    """Finds out what dividing `tensor` along `axis` would take. The graph is not changed.

    Args:
        graph: the graph that the tensor belongs to; shapes must have been inferred.
        tensor: the activation to divide.
        axis: its channel axis, negative from the end; `channel_axis` knows it.
        split: whether a normalisation (or a Mul or Add of a constant) whose result others read as it is may be doubled.

    Returns:
        The plan; its `why` is empty where it can be applied.
    """
    count = _count(tensor, axis)
    rank = len(tensor.shape) if tensor.shape is not None else 0
    if not count or not rank:
        return _refused(tensor, axis, f"the number of channels of '{tensor.name}' is not known")
    if not readers(tensor, axis):
        return _refused(tensor, axis, f"no linear node with a constant weight reads '{tensor.name}' along that axis")
    channels = along(axis, np.arange(count), rank)
    why = ""
    for attempt in (False, True)[: 1 + split]:
        search = Search(graph, RULES, split=attempt)
        try:
            search.through(tensor, channels)
            search.close()
        except NoWayError as refusal:
            why = why or str(refusal)
            continue
        return _found(tensor, axis, count, search)
    return _refused(tensor, axis, why, count)


def _found(tensor: gs.Tensor, axis: int, count: int, search: Search) -> Absorption:
    return Absorption(
        tensor,
        axis,
        groups(count, search.ties),
        edits=tuple(search.edits),
        copies=tuple(search.copies),
        moved=frozenset(search.read),
    )


def can(graph: gs.Graph, tensor: gs.Tensor, axis: int, *, split: bool = False) -> str:
    """Why `tensor` cannot be divided along `axis`; empty where it can (perhaps with classes: see `find_moves`)."""
    return find_moves(graph, tensor, axis, split=split).why


def find_insertion(graph: gs.Graph, tensor: gs.Tensor, axis: int) -> Absorption:
    """The plan that puts a Mul by 1/s in front of the linear readers and leaves all other nodes alone."""
    count = _count(tensor, axis)
    rank = len(tensor.shape) if tensor.shape is not None else 0
    linear = readers(tensor, axis)
    if not count or not rank or not linear:
        return _refused(tensor, axis, f"no linear node with a constant weight reads '{tensor.name}' along that axis")
    channels = along(axis, np.arange(count), rank)
    edits: list[Edit] = []
    for node, i in linear:
        edit = compensate(node, i, channels)
        if isinstance(edit, str):
            return _refused(tensor, axis, edit, count)
        edits.append(edit)
    reads = frozenset((id(node), i) for node, i in linear)
    return Absorption(tensor, axis, np.arange(count), edits=tuple(edits), moved=reads, inserted=True)


def apply(graph: gs.Graph, absorption: Absorption, scale: Float, names: Names) -> str:
    """Divides the tensor by `scale` [C] as planned, right after planning: the graph must not have changed since.

    Returns:
        Why nothing was done; empty where it was.
    """
    scale = np.asarray(scale, np.float32)
    if absorption.why:
        return absorption.why
    if scale.shape != absorption.classes.shape:
        return f"there are {absorption.classes.size} channels and {scale.size} factors"
    if not (np.isfinite(scale) & (scale > 0)).all():
        return "a factor is not positive and finite"
    if not absorption.fits(scale):
        return "channels that need one common factor have several"
    values = scaled_constants(absorption.edits, np.append(scale, np.float32(1)))
    if isinstance(values, str):
        return values
    if absorption.inserted:
        _insert(graph, absorption, scale, names)
    copies = _copy(graph, absorption, names)
    set_constants(graph, values, copies, names)
    return ""


def _refused(tensor: gs.Tensor, axis: int, why: str, count: int = 0) -> Absorption:
    return Absorption(tensor, axis, np.arange(count), why)


def _count(tensor: gs.Tensor, axis: int) -> int:
    shape = shape_of(tensor) or ()
    if -len(shape) <= axis < len(shape) and isinstance(dim := shape[axis], int):
        return dim
    # An open dimension: the weight behind it knows.
    return next((_input_channels(node, i) for node, i in readers(tensor, axis)), 0)


def _input_axis(node: gs.Node, i: int, tensor: gs.Tensor) -> int | None:
    """The axis of the input channels of a linear node with a constant weight, from the end; else None."""
    rank = len(tensor.shape) if tensor.shape is not None else 0
    for axis in range(-1, -rank - 1, -1):
        if not isinstance(compensate(node, i, along(axis, np.array([0, NONE]), rank), check=False), str):
            return axis
    return None


def _input_channels(node: gs.Node, i: int) -> int:
    shape = node.inputs[1 - i].shape
    if node.op in ("Conv", "ConvTranspose"):
        return int(shape[1]) * int(node.attrs.get("group", 1)) if node.op == "Conv" else int(shape[0])
    if node.op == "Gemm":
        return int(shape[1 if node.attrs.get("transB", 0) else 0])
    return int(shape[-1] if i == 1 else shape[max(len(shape) - 2, 0)])


def _insert(graph: gs.Graph, absorption: Absorption, scale: Float, names: Names) -> None:
    tensor = absorption.tensor
    rank = len(tensor.shape)
    factor = (1 / scale).reshape([-1 if axis == absorption.axis % rank else 1 for axis in range(rank)])
    dtype = tensor.dtype if tensor.dtype is not None else np.float32
    output = gs.Variable(names.fresh(f"{tensor.name}/smoothed"), tensor.dtype, tensor.shape)
    constant = gs.Constant(names.fresh(f"{tensor.name}/smoothing"), factor.astype(dtype))
    node = gs.Node("Mul", names.fresh(f"{tensor.name}/smooth"), {}, [tensor, constant], [output])
    linear = [(one, i) for one, i in consumers(tensor) if (id(one), i) in absorption.moved]
    first = next(one for one in graph.nodes if any(one is reader for reader, _ in linear))
    insert_before(graph, first, node)
    for reader, i in linear:
        set_input(reader, i, output)


def _copy(graph: gs.Graph, absorption: Absorption, names: Names) -> dict[int, gs.Node]:
    """Doubles nodes, nearest to the tensor first; whoever reads the divided tensor reads the copy from now on."""
    copies: dict[int, gs.Node] = {}
    made: set[int] = set()
    for node in absorption.copies:
        old = node.outputs[0]
        new = gs.Variable(names.fresh(f"{old.name}/smoothed"), old.dtype, old.shape)
        inputs: Sequence[gs.Tensor] = list(node.inputs)
        twin = gs.Node(node.op, names.fresh(f"{node.name}/smoothed"), dict(node.attrs), inputs, [new], node.domain)
        for reader, i in consumers(old):
            if (id(reader), i) in absorption.moved or id(reader) in made:
                set_input(reader, i, new)
        insert_after(graph, node, twin)
        copies[id(node)] = twin
        made.add(id(twin))
    return copies


def largest_of(values: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest value of each class, at every channel of the class, [C]."""
    largest = np.zeros(int(classes.max()) + 1)
    np.maximum.at(largest, classes, values)
    return np.asarray(largest[classes])
