"""Attributes that became inputs.

Squeeze{axes=[1]}(x)  ⇒  Squeeze(x, [1])        Clip{min=0}(x)  ⇒  Clip(x, 0, _)
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.passes.opsets._place import How, Place, element_type, put_input, shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray


class As(Enum):
    """What an attribute becomes."""

    INTS = auto()  # int64, one axis
    SOME = auto()  # the same; a list of none means that it is not given
    INT = auto()  # int64, no axis
    FLOATS = auto()  # float32, one axis
    NUMBER = auto()  # no axis, in the type that the node computes on


def to_inputs(*attributes: tuple[str, As], first: int = 1, default: dict[str, Any] | None = None) -> How:
    """How attributes become the inputs from number `first` on, in this order.

    Args:
        attributes: name, and what it becomes.
        first: number of the first input.
        default: what the attribute was where it is not given and the new opset has another default.
    """

    def how(node: gs.Node, place: Place) -> list[gs.Node]:
        for index, (name, kind) in enumerate(attributes, first):
            given = node.attrs.pop(name, (default or {}).get(name))
            values = None if given is None else _array(given, kind, node)
            if values is not None:
                put_input(node, index, place.constant(node, name, values))
        return [node]

    return how


def _array(given: Any, kind: As, node: gs.Node) -> NDArray[Any] | None:
    if kind is As.NUMBER:
        return np.asarray(given, np.float64).astype(element_type(node))
    if kind is As.FLOATS:
        return np.asarray(given, np.float32).reshape(-1)
    if kind is As.INT:
        return np.array(int(given), np.int64)
    values = np.asarray(given, np.int64).reshape(-1)
    return None if kind is As.SOME and not values.size else values


def split_evenly(node: gs.Node, place: Place) -> list[gs.Node]:
    """Split without sizes must say how many parts there are."""
    del place
    if len(node.inputs) < 2 or not node.inputs[1].name:
        shorten(node, inputs=1)
        node.attrs["num_outputs"] = len(node.outputs)
    return [node]
