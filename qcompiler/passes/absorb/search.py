"""The walk back from a tensor to the constants that can take its division; nothing is edited here.

Every tensor on the way is divided too, so whatever else reads it must be a linear node whose weight makes up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import (
    captured,
    constant_value,
    consumers,
    is_constant,
    is_float,
    is_input,
    is_op,
    is_output,
    is_present,
    is_standard,
    producer,
    shape_of,
    static_shape,
)
from qcompiler.ir.operators import CHANNEL_NORMS, HOMOGENEOUS, NORMS, POOLS
from qcompiler.passes.absorb.edits import Edit, compensate, edit_of
from qcompiler.passes.absorb.index import NONE, Index, only_axis

_BLIND = ("Shape", "Size")  # they read a tensor without looking at its values
_FARTHEST = 100  # tensors on the way; a residual stream has no end otherwise

Rule = Callable[["Search", gs.Node, gs.Tensor, Index], None]
State = tuple[dict[int, tuple[gs.Tensor, Index]], set[tuple[int, int]], list[Edit], list[tuple[Index, Index]]]


class NoWayError(Exception):
    """Why a tensor cannot be divided; never leaves `absorb.find_moves`."""


class Search:
    """One walk: what it has divided, read, edited and tied so far.

    Attributes:
        scaled: tensors that are divided, by id, with the channel of each element; nearest first.
        read: (id of the node, input) of the reads that know of the division.
        edits: constants to divide and multiply.
        ties: pairs of index arrays whose factors must be equal, element by element.
        copies: nodes to double (with `split`), nearest first.
    """

    def __init__(self, graph: gs.Graph, rules: Mapping[str, Rule], *, split: bool = False) -> None:
        self.scaled: dict[int, tuple[gs.Tensor, Index]] = {}
        self.read: set[tuple[int, int]] = set()
        self.edits: list[Edit] = []
        self.ties: list[tuple[Index, Index]] = []
        self.copies: list[gs.Node] = []
        self._graph = graph
        self._rules = rules
        self._split = split
        self._inside = captured(graph)

    # --- The walk ---

    def through(self, tensor: gs.Tensor, index: Index) -> None:
        """Divides a tensor by means of the node that makes it.

        Raises:
            NoWayError: it cannot.
        """
        if id(tensor) in self.scaled:
            self._tie(self.scaled[id(tensor)][1], index, tensor)
            return
        if (index == NONE).all():
            return
        if len(self.scaled) == _FARTHEST:
            no_way(f"no constant takes it within {_FARTHEST} tensors")
        if not is_float(tensor):
            no_way(f"'{tensor.name}' is not float")
        maker = producer(tensor)
        if maker is None:
            what = "an input of the graph" if is_input(self._graph, tensor) else "not computed in this graph"
            no_way(f"'{tensor.name}' is {what}")
        self.scaled[id(tensor)] = (tensor, index)
        self._look_ahead(tensor, index, maker)
        rule = self._rules.get(maker.op) if _is_known(maker) else None
        if rule is None:
            no_way(f"'{maker.name}' ({maker.op}) does not pass a factor on")
        if maker.outputs[0] is not tensor and not is_op(maker, "Split"):
            no_way(f"'{tensor.name}' is not the main output of '{maker.name}' ({maker.op})")
        rule(self, maker, tensor, index)

    def into(self, node: gs.Node, i: int, index: Index, *, grow: bool = False) -> None:
        """Divides what input `i` of `node` reads, constant or not.

        Args:
            node: a node.
            i: which of its inputs.
            index: the channel of each element of its output, as far as the input is broadcast to that.
            grow: whether a constant may become larger, because the node broadcasts its inputs.

        Raises:
            NoWayError: it cannot be divided.
        """
        tensor = node.inputs[i]
        if is_constant_behind(node, i):
            self.constant(node, i, index, grow=grow)
            return
        shape = shape_of(tensor)
        if shape is None:
            no_way(f"the rank of '{tensor.name}' is not known")
        self.read.add((id(node), i))
        self.through(tensor, self.narrow(index, shape, tensor))

    def constant(self, node: gs.Node, i: int, index: Index, *, grow: bool = False, multiply: bool = False) -> None:
        """Divides, or multiplies, the constant that input `i` of `node` reads; arguments as for `into`.

        Raises:
            NoWayError: it is none, or has another shape.
        """
        tensor = node.inputs[i]
        shape = static_shape(tensor)
        if not is_constant_behind(node, i) or shape is None:
            no_way(f"input {i} of '{node.name}' ({node.op}) is not constant")
        if grow and self._grows(node, tensor, index):
            if not is_constant(tensor):
                no_way(f"constant '{tensor.name}' of '{node.name}' stands behind a node that fixes its shape")
            self.edits.append(Edit(node, i, index, multiply))
            return
        edit = edit_of(node, i, self.narrow(index, shape, tensor), multiply=multiply)
        if not isinstance(edit, Edit):
            no_way(str(edit))
        self.edits.append(edit)

    def first(self, ways: Sequence[Callable[[], None]], else_: str) -> None:
        """Goes the first way that leads to an end without leaving a read open; else the first that leads to an end."""
        reasons: list[str] = []
        start, reached = self._save(), None
        for way in ways:
            try:
                way()
            except NoWayError as refusal:
                reasons.append(str(refusal))
                self._restore(start)
                continue
            if not self._open():
                return
            reached = reached or self._save()
            self._restore(start)
        if reached is None:
            no_way(f"{else_}: {'; '.join(dict.fromkeys(reasons))}")
        self._restore(reached)

    # --- Who else reads ---

    def close(self) -> None:
        """Makes up for the division in every other reader, or doubles the node that makes the tensor.

        Raises:
            NoWayError: a reader cannot make up for it.
        """
        waiting = list(self.scaled.values())
        closed: set[int] = set()
        while waiting:
            tensor, index = waiting.pop(0)
            closed.add(id(tensor))
            why = "a graph output" if is_output(self._graph, tensor) else ""
            why = why or ("read in a branch or a loop" if tensor.name in self._inside else "")
            for node, i in self._others(tensor, index):
                edit = compensate(node, i, index)
                if isinstance(edit, Edit):
                    self.edits.append(edit)
                elif self._goes_on(node, i, index):
                    self.scaled[id(node.outputs[0])] = (node.outputs[0], index)
                    waiting.append((node.outputs[0], index))
                else:
                    why = why or edit
                    continue
                self.read.add((id(node), i))
            if why:
                self._double(tensor, why, closed)

    def _goes_on(self, node: gs.Node, i: int, index: Index) -> bool:
        """Whether a reader hands the division on to its own readers, where it may still be made up for."""
        if self._may_double(producer(node.inputs[i])):
            return False  # it simply goes on reading the original
        if not (is_op(node, *HOMOGENEOUS, *POOLS) and i == 0) and not is_op(node, "Mul"):
            return False
        if is_op(node, *POOLS) and only_axis(index, 1) is None:
            return False
        ranks = {len(tensor.shape) if tensor.shape is not None else 0 for tensor in (node.inputs[i], node.outputs[0])}
        # A product of two divided tensors would be divided twice.
        twice = is_op(node, "Mul") and id(node.inputs[1 - i]) in self.scaled
        return len(ranks) == 1 and not twice and id(node.outputs[0]) not in self.scaled

    def _double(self, tensor: gs.Tensor, why: str, closed: Collection[int]) -> None:
        maker = producer(tensor)
        # The original goes on reading its inputs as they were: too late for those that are done with.
        if maker is None or not self._may_double(maker) or any(id(one) in closed for one in maker.inputs):
            no_way(f"'{tensor.name}' is {why}")
        self.copies.append(maker)
        # What the copy reads divided, the original still wants as it was.
        self.read -= {(id(maker), i) for i in range(len(maker.inputs))}

    def _may_double(self, maker: gs.Node | None) -> bool:
        return self._split and maker is not None and _is_cheap(maker)

    def _look_ahead(self, tensor: gs.Tensor, index: Index, maker: gs.Node) -> None:
        """Gives up early where a reader can neither make up for the division nor turn out to be on the way itself."""
        if self._may_double(maker):
            return
        for node, i in self._others(tensor, index):
            edit = compensate(node, i, index)
            if isinstance(edit, str) and (node.op not in self._rules or node.op in NORMS + CHANNEL_NORMS):
                no_way(f"'{tensor.name}' is {edit}")

    def _others(self, tensor: gs.Tensor, index: Index) -> list[tuple[gs.Node, int]]:
        """The reads that do not know of the division and to which it matters."""
        return [
            (node, i)
            for node, i in consumers(tensor)
            if (id(node), i) not in self.read and not is_op(node, *_BLIND) and not (i == 0 and _sees_none(node, index))
        ]

    def _open(self) -> bool:
        return any(
            isinstance(compensate(node, i, index), str)
            for tensor, index in self.scaled.values()
            for node, i in self._others(tensor, index)
        )

    # --- Ties ---

    def narrow(self, index: Index, shape: Sequence[int | str | None], tensor: gs.Tensor) -> Index:
        """The index of an operand of `shape` that is broadcast to that of `index`.

        Along the axes that it lacks, all factors must be equal: they are tied.

        Raises:
            NoWayError: an axis has another length.
        """
        while index.ndim > len(shape):
            index = self._merge(index, 0, tensor)[0]
        index = index.reshape((1,) * (len(shape) - index.ndim) + index.shape)
        for axis, dim in enumerate(shape):
            length = index.shape[axis]
            if dim == 1:
                index = self._merge(index, axis, tensor)
            elif isinstance(dim, int) and length not in (1, dim):
                no_way(f"'{tensor.name}' has {dim} elements along an axis of {length} factors")
        return index

    def _merge(self, index: Index, axis: int, tensor: gs.Tensor) -> Index:
        first = index.take([0], axis)
        if index.shape[axis] > 1:
            self._tie(index, first, tensor)
        return first

    def _tie(self, left: Index, right: Index, tensor: gs.Tensor) -> None:
        left, right = np.broadcast_arrays(left, right)
        if np.array_equal(left, right):
            return
        if ((left == NONE) != (right == NONE)).any():
            no_way(f"only a part of '{tensor.name}' would be divided")
        kept = left != NONE
        self.ties.append((left[kept], right[kept]))

    def _grows(self, node: gs.Node, tensor: gs.Tensor, index: Index) -> bool:
        shape = static_shape(tensor) or ()
        padded = (1,) * (index.ndim - len(shape)) + shape
        grown = [axis for axis in range(index.ndim) if padded[axis] == 1 < index.shape[axis]]
        after = shape_of(node.outputs[0])
        if grown and (after is None or any(after[axis] != index.shape[axis] for axis in grown)):
            no_way(f"the length of '{node.outputs[0].name}' along its channels is not known")
        return bool(grown)

    def _save(self) -> State:
        return dict(self.scaled), set(self.read), list(self.edits), list(self.ties)

    def _restore(self, state: State) -> None:
        scaled, read, edits, ties = state
        self.scaled, self.read, self.edits, self.ties = dict(scaled), set(read), list(edits), list(ties)


def no_way(why: str) -> NoReturn:
    """Ends a walk, or the branch of it that `Search.first` is trying."""
    raise NoWayError(why)


def is_constant_behind(node: gs.Node, i: int) -> bool:
    """Whether input `i` is a float constant, perhaps behind Transpose, Reshape and the like."""
    rank = len(node.inputs[i].shape) if node.inputs[i].shape is not None else 0
    return isinstance(edit_of(node, i, np.zeros((1,) * rank, np.int64)), Edit)


def positions(node: gs.Node, tensor: gs.Tensor) -> dict[int, Index | None]:
    """Which elements along an axis of its input a Slice, Split or Gather keeps; None where that is not known.

    Axes that it keeps whole are left out. Empty for other nodes.
    """
    shape = shape_of(node.inputs[0]) if is_op(node, "Slice", "Split", "Gather") else None
    if shape is None:
        return {}
    if is_op(node, "Split"):
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        sizes = [(shape_of(output) or [None] * len(shape))[axis] for output in node.outputs]
        known = [size for size in sizes if isinstance(size, int)]
        which = next((k for k, output in enumerate(node.outputs) if output is tensor), 0)
        whole = np.arange(sum(known))[sum(known[:which]) : sum(known[: which + 1])]
        return {axis: whole if len(known) == len(sizes) else None}
    if is_op(node, "Gather"):
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        picked, length = constant_value(node.inputs[1]), shape[axis]
        if picked is None or picked.ndim > 1 or not isinstance(length, int):
            return {axis: None}
        return {axis: picked.reshape(-1).astype(np.int64) % length}
    return _slices(node, shape)


def _slices(node: gs.Node, shape: Sequence[int | str | None]) -> dict[int, Index | None]:
    rank = len(shape)
    given = [constant_value(node.inputs[i]) if is_present(node, i) else None for i in range(1, 5)]
    starts, ends, axes, steps = (None if one is None else [int(v) for v in one.reshape(-1)] for one in given)
    if axes is None and is_present(node, 3):
        return dict.fromkeys(range(rank))
    axes = axes if axes is not None else list(range(rank))
    if starts is None or ends is None or (steps is None and is_present(node, 4)):
        return {axis % rank: None for axis in axes}
    kept: dict[int, Index | None] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        length = shape[axis % rank]
        if start == 0 and step == 1 and end >= 2**31 - 1:
            continue
        kept[axis % rank] = np.arange(length)[start:end:step] if isinstance(length, int) else None
    return {axis: one for axis, one in kept.items() if one is None or one.size != shape[axis] or one[0]}


def _sees_none(node: gs.Node, index: Index) -> bool:
    """Whether a node reads only a part of a tensor that is not divided."""
    if is_op(node, "Split"):
        return False
    for axis, kept in positions(node, node.outputs[0]).items():
        if kept is not None and index.shape[axis] > 1:
            index = index.take(kept, axis)
    return bool((index == NONE).all())


def _is_known(node: gs.Node) -> bool:
    return is_standard(node) or (node.domain == "com.microsoft" and node.op.startswith("Skip"))


def _is_cheap(node: gs.Node) -> bool:
    """Whether a node may be doubled: a normalisation, or arithmetic with a constant."""
    if len(node.outputs) > 1 and not is_op(node, *NORMS):
        return False
    if is_op(node, *NORMS, *CHANNEL_NORMS):
        return True
    return is_op(node, "Mul", "Div", "Add", "Sub") and any(is_constant_behind(node, i) for i in (0, 1))
