"""One node through the rows of the table, from one opset to another."""

from __future__ import annotations

from functools import cache

import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.passes.opsets._place import CannotRaiseError, Place
from qcompiler.passes.opsets._table import TABLE
from qcompiler.runtime import schemas

# What ONNX Runtime's optimiser put into ONNX's own domain before ONNX had it, with the first opset that says the same
EARLIER = {"LayerNormalization": 17}


def raised(node: gs.Node, old: int, new: int, place: Place) -> list[gs.Node]:
    """The nodes that stand for a node of opset `old` in opset `new`, in order; its graph's list is left to the caller.

    Raises:
        ModelError: the new opset has no word for it.
    """
    old = max(old, min(EARLIER.get(node.op, old), new))
    first = next((opset for opset in _stops(node.op) if old < opset <= new), None)
    if first is None:
        _refuse_unknown(node, old, new)
        return [node]
    how = TABLE.get((node.op, first))
    if how is None:
        raise _refused(node, old, new, f"opset {first} changed it")
    try:
        made = how(node, place)
    except CannotRaiseError as why:
        raise _refused(node, old, new, str(why)) from why
    return [last for one in made for last in raised(one, first, new, place)]


@cache
def _stops(op: str) -> tuple[int, ...]:
    """The opsets with a row for an operator, and those that changed its signature."""
    return tuple(sorted({*schemas.changes(op), *(opset for name, opset in TABLE if name == op)}))


def _refuse_unknown(node: gs.Node, old: int, new: int) -> None:
    if schemas.versions(node.op) and schemas.schema(node.op, old) is None:
        raise _refused(node, old, new, f"opset {old} has no such operator")


def _refused(node: gs.Node, old: int, new: int, why: str) -> ModelError:
    later = max(new, 13)
    return ModelError(
        f"node '{node.name}' ({node.op}) cannot be taken from opset {old} to {new}: {why}. Export the model again with "
        f"opset {later}" + (" or newer." if later > new else ", or with one between.")
    )
