"""Normalisations, Dropout, and a few operators whose defaults or words changed."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import detach, set_input
from qcompiler.ir.graph import constant_value, onnx_type, shape_of
from qcompiler.passes.opsets._place import CannotRaiseError, How, Place, element_type, put_behind, shorten


def spatial(node: gs.Node, place: Place) -> list[gs.Node]:
    """BatchNormalization with `spatial` 0 has a mean for each element of a sample: it is written out."""
    if node.attrs.pop("spatial", 1):
        return [node]
    _refuse_training(node, place)
    x, scale, bias, mean, var = list(node.inputs)
    output = node.outputs[0]
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5)).astype(element_type(node))
    detach(node)
    padded = place.node(node, "Add", [var, place.constant(node, "epsilon", epsilon)])
    deviation = place.node(node, "Sqrt", [padded.outputs[0]])
    factor = place.node(node, "Div", [scale, deviation.outputs[0]])
    scaled = place.node(node, "Mul", [mean, factor.outputs[0]])
    shift = place.node(node, "Sub", [bias, scaled.outputs[0]])
    product = place.node(node, "Mul", [x, factor.outputs[0]])
    total = gs.Node("Add", node.name, {}, [product.outputs[0], shift.outputs[0]], [output])
    return [padded, deviation, factor, scaled, shift, product, total]


def inference_only(node: gs.Node, place: Place) -> list[gs.Node]:
    """Statistics of a training step are other outputs now; a model that does not train has none."""
    _refuse_training(node, place)
    return [node]


def _refuse_training(node: gs.Node, place: Place) -> None:
    if any(place.read(node, index) for index in range(1, len(node.outputs))):
        raise CannotRaiseError("it gives the statistics of a training step; export the model for inference")
    shorten(node, outputs=1)


def mask_as_bool(node: gs.Node, place: Place) -> list[gs.Node]:
    """The mask of Dropout was of the type of the data."""
    if not place.read(node, 1):
        return [node]
    old = put_behind(node, 1, place.value(node, "mask", np.bool_))
    return [node, place.node(node, "Cast", [node.outputs[1]], {"to": onnx_type(element_type(node))}, old)]


def without_ratio(node: gs.Node, place: Place) -> list[gs.Node]:
    """Outside of training the ratio means nothing, and the mask, which was all false, is all true now."""
    node.attrs.pop("ratio", None)
    if not place.read(node, 1):
        return [node]
    old = put_behind(node, 1, place.value(node, "kept", np.bool_))
    return [node, place.node(node, "Not", [node.outputs[1]], {}, old)]


def factors_for_channels(node: gs.Node, place: Place) -> list[gs.Node]:
    """GroupNormalization had a scale and a bias for each group: each channel of the group gets them."""
    groups, shape = int(node.attrs["num_groups"]), shape_of(node.inputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int):
        raise CannotRaiseError("the number of its channels is not known; export it with a fixed one")
    before: list[gs.Node] = []
    for index in (1, 2):
        values = constant_value(node.inputs[index])
        if values is not None:
            wide = place.constant(node, f"channels_{index}", np.repeat(values, channels // groups))
            set_input(node, index, wide)
            continue
        before += _repeated(node, index, groups, channels, place)
    return [*before, node]


def _repeated(node: gs.Node, index: int, groups: int, channels: int, place: Place) -> list[gs.Node]:
    column = place.constant(node, "column", np.array([groups, 1], np.int64))
    wide = place.constant(node, "wide", np.array([groups, channels // groups], np.int64))
    row = place.constant(node, "row", np.array([channels], np.int64))
    first = place.node(node, "Reshape", [node.inputs[index], column])
    second = place.node(node, "Expand", [first.outputs[0], wide])
    third = place.node(node, "Reshape", [second.outputs[0], row])
    set_input(node, index, third.outputs[0])
    return [first, second, third]


def told(name: str, value: str | int) -> How:
    """How what was the default is told, where the new opset has another one."""

    def how(node: gs.Node, place: Place) -> list[gs.Node]:
        del place
        node.attrs.setdefault(name, value)
        return [node]

    return how


def renamed_mode(node: gs.Node, place: Place) -> list[gs.Node]:
    """GridSample says `linear` and `cubic`, in any number of dimensions."""
    del place
    mode = str(node.attrs.get("mode", "bilinear"))
    node.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return [node]


def renamed(op: str) -> How:
    """How an operator got another name."""

    def how(node: gs.Node, place: Place) -> list[gs.Node]:
        del place
        node.op = op
        return [node]

    return how
