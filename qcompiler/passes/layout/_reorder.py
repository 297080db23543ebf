"""An operator is told that axis i of what it reads is what `order[i]` was: attributes and constants that name axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import add_constant, insert_after, insert_before, set_input, set_output
from qcompiler.ir.graph import axes_of, constant_value, is_constant, is_present, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.layout._axes import Layout, back
from qcompiler.passes.layout._operators import (
    AXIS,
    BROADCASTING,
    PICKERS,
    QUANTIZERS,
    REDUCERS,
    SAMPLED,
    moved_axis,
)


@dataclass(frozen=True)
class Reorder:
    """Tells nodes of one graph; what they read and write in another order is put there by the caller."""

    graph: gs.Graph
    names: Names

    def __call__(self, node: gs.Node, order: Layout) -> None:
        """Edits a node that `fits` this order."""
        if node.op in BROADCASTING or node.op == "Concat":
            self._constants(node, order)
        if node.op in AXIS or node.op in PICKERS or (node.op in QUANTIZERS and constant_size(node, 1) != 1):
            default = AXIS.get(node.op, 0 if node.op in PICKERS else 1)
            node.attrs["axis"] = moved_axis(node.attrs.get("axis", default), order)
        rule = next((rule for ops, rule in _RULES if node.op in ops), None)
        if rule is not None and node.op not in PICKERS:
            rule(self, node, order)

    def put(self, node: gs.Node, index: int, values: object, what: str) -> None:
        """Gives a node a constant of its own as an input."""
        constant = add_constant(self.names.fresh(f"{node.name}/{what}"), np.asarray(values))
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        set_input(node, index, constant)

    def _constants(self, node: gs.Node, order: Layout) -> None:
        for index, tensor in enumerate(node.inputs):
            if not is_constant(tensor):
                continue
            values = values_of(tensor)
            if values.size == 1 and node.op != "Concat":
                continue
            full = values.reshape((1,) * (len(order) - values.ndim) + values.shape)
            self.put(node, index, np.ascontiguousarray(full.transpose(order)), "reordered")


def constant_size(node: gs.Node, index: int) -> int | None:
    """How many values an input has that is constant; else None."""
    value = constant_value(node.inputs[index]) if is_present(node, index) else None
    return None if value is None else int(value.size)


def _axes(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    axes = axes_of(node)
    if not axes:
        return
    moved = sorted(moved_axis(axis, order) for axis in axes)
    if "axes" in node.attrs:
        node.attrs["axes"] = moved
    else:
        reorder.put(node, 1, np.array(moved, np.int64), "axes")


def _slice(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    listed = constant_value(node.inputs[3]) if is_present(node, 3) else None
    if listed is None:
        listed = np.arange(constant_size(node, 1) or 0)
    reorder.put(node, 3, np.array([moved_axis(axis, order) for axis in listed.reshape(-1)], np.int64), "axes")


def _pad(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    listed = constant_value(node.inputs[3]) if is_present(node, 3) else None
    if listed is not None:
        reorder.put(node, 3, np.array([moved_axis(axis, order) for axis in listed.reshape(-1)], np.int64), "axes")
        return
    widths = constant_value(node.inputs[1])
    if widths is not None:
        both = [*order, *(axis + len(order) for axis in order)]
        reorder.put(node, 1, widths.reshape(-1)[both].astype(np.int64), "pads")


def _resize(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    if "axes" in node.attrs:
        node.attrs["axes"] = [moved_axis(axis, order) for axis in node.attrs["axes"]]
        return
    index = 2 if is_present(node, 2) else 3
    _list(reorder, node, order, index)


def _tile(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    _list(reorder, node, order, 1)


def _list(reorder: Reorder, node: gs.Node, order: Layout, index: int) -> None:
    """An input with a value for each axis; what is computed is picked anew."""
    value = constant_value(node.inputs[index])
    if value is not None:
        reorder.put(node, index, value.reshape(-1)[list(order)], "reordered")
        return
    old = node.inputs[index]
    new = gs.Variable(reorder.names.fresh(f"{old.name}/reordered"), old.dtype, [len(order)])
    picks = add_constant(reorder.names.fresh(f"{new.name}/order"), np.array(order, np.int64))
    pick = gs.Node("Gather", reorder.names.fresh(f"{new.name}/Gather"), {"axis": 0}, [old, picks], [new])
    insert_before(reorder.graph, node, pick)
    set_input(node, index, new)


def _shape(reorder: Reorder, node: gs.Node, order: Layout) -> None:
    """Shape gives the sizes as they lie now; a Gather behind it puts them back."""
    old = node.outputs[0]
    found = gs.Variable(reorder.names.fresh(f"{old.name}/stored"), np.int64, [len(order)])
    picks = add_constant(reorder.names.fresh(f"{found.name}/order"), np.array(back(order), np.int64))
    set_output(node, 0, found)
    pick = gs.Node("Gather", reorder.names.fresh(f"{found.name}/Gather"), {"axis": 0}, [found, picks], [old])
    insert_after(reorder.graph, node, pick)


_Rule = Callable[[Reorder, gs.Node, Layout], None]
_RULES: tuple[tuple[tuple[str, ...], _Rule], ...] = (
    ((*REDUCERS, "Squeeze"), _axes),
    (("Slice",), _slice),
    (("Pad",), _pad),
    (SAMPLED, _resize),
    (("Tile",), _tile),
    (("Shape",), _shape),
)
