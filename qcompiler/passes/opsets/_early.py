"""Opsets 1 to 6, which ONNX Runtime runs in part at best.

Add{broadcast=1, axis=1}(x: n×c×h×w, b: c)  ⇒  Add(x, b: c×1×1)
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import constant_value, shape_of
from qcompiler.passes.opsets._place import CannotRaiseError, How, Place


def without(*names: str) -> How:
    """How attributes go that said nothing of the result."""

    def how(node: gs.Node, place: Place) -> list[gs.Node]:
        del place
        for name in names:
            node.attrs.pop(name, None)
        return [node]

    return how


def older_selu(node: gs.Node, place: Place) -> list[gs.Node]:
    """Its constants had fewer digits."""
    del place
    node.attrs.pop("consumed_inputs", None)
    node.attrs.setdefault("alpha", 1.6732)
    node.attrs.setdefault("gamma", 1.0507)
    return [node]


def tested(node: gs.Node, place: Place) -> list[gs.Node]:
    """BatchNormalization and Dropout said by `is_test` whether they train."""
    del place
    if not node.attrs.pop("is_test", 0):
        raise CannotRaiseError("it trains (is_test is 0); export the model for inference")
    return [node]


def broadcast(node: gs.Node, place: Place) -> list[gs.Node]:
    """The second operand stood at an axis of the first; now the last axes meet."""
    spread, axis = node.attrs.pop("broadcast", 0), node.attrs.pop("axis", None)
    return _stand_at(node, int(axis), place) if spread and axis is not None else [node]


def slope_of_channels(node: gs.Node, place: Place) -> list[gs.Node]:
    """The slopes of PRelu were those of the channels, or one for all."""
    slope = shape_of(node.inputs[1])
    return [node] if slope in ((), (1,)) else _stand_at(node, 1, place)


def _stand_at(node: gs.Node, axis: int, place: Place) -> list[gs.Node]:
    first, second = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if first is None or second is None:
        raise CannotRaiseError("the ranks of what it joins are not known")
    behind = len(first) - axis % max(len(first), 1) - len(second)
    if behind < 0:
        raise CannotRaiseError(f"what stands at axis {axis} has more axes than there are")
    if not behind:
        return [node]
    values = constant_value(node.inputs[1])
    if values is not None:
        set_input(node, 1, place.constant(node, "operand", values.reshape(values.shape + (1,) * behind)))
        return [node]
    axes = list(range(len(second), len(second) + behind))
    wider = place.node(node, "Unsqueeze", [node.inputs[1]], {"axes": axes})
    set_input(node, 1, wider.outputs[0])
    return [wider, node]


def renamed_pads(node: gs.Node, place: Place) -> list[gs.Node]:
    """Pad called its widths `paddings`."""
    del place
    node.attrs["pads"] = node.attrs.pop("paddings")
    return [node]


def typed_by_number(node: gs.Node, place: Place) -> list[gs.Node]:
    """Cast named the type in words."""
    del place
    node.attrs["to"] = onnx.TensorProto.DataType.Value(str(node.attrs["to"]))
    return [node]


def scales_of_axes(node: gs.Node, place: Place) -> list[gs.Node]:
    """Upsample knew height and width only."""
    del place
    height, width = node.attrs.pop("height_scale"), node.attrs.pop("width_scale")
    node.attrs["scales"] = [1.0, 1.0, float(np.float32(height)), float(np.float32(width))]
    return [node]
