"""Upsample and Resize of opsets 7 to 12, which say less about where their samples lie.

    Upsample{scales}(x)                ⇒  Resize{floor}(x, scales)
    Resize{linear}(x, scales)          ⇒  Resize{linear, asymmetric}(x, [], scales)
    Resize{nearest}(x, scales ≥ 1)     ⇒  Resize{nearest, asymmetric, floor}(x, [], scales)
    Resize{nearest}(x, scales ≤ 1)     ⇒  Resize{nearest, asymmetric, ceil}(x, [], scales)
    Resize{nearest}(x, s)              ⇒  Resize{ceil}(Resize{floor}(x, [], max(s, 1)), [], min(s, 1))

ONNX Runtime takes the sample below where an axis grows, and the one above where it shrinks.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import constant_value, dtype_of
from qcompiler.passes.opsets._place import Place, put_behind, put_input


def upsample(node: gs.Node, place: Place) -> list[gs.Node]:
    """Resize with the one thing said for which Resize of opset 10 has no word yet: scales are never below 1."""
    del place
    node.op = "Resize"
    if node.attrs.get("mode", "nearest") == "nearest":
        node.attrs["nearest_mode"] = "floor"
    return [node]


def asymmetric(node: gs.Node, place: Place) -> list[gs.Node]:
    """The input `roi` is new and stays empty; where samples lie is told."""
    scales = node.inputs[1]
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    set_input(node, 1, place.constant(node, "roi", np.empty(0, np.float32)))
    put_input(node, 2, scales)
    if node.attrs.get("mode", "nearest") != "nearest" or "nearest_mode" in node.attrs:
        return [node]
    known = constant_value(scales)
    if known is not None and not ((known > 1).any() and (known < 1).any()):
        node.attrs["nearest_mode"] = "ceil" if (known < 1).any() else "floor"
        return [node]
    return _both_ways(node, scales, place)


def _both_ways(node: gs.Node, scales: gs.Tensor, place: Place) -> list[gs.Node]:
    one = place.constant(node, "one", np.ones((), np.float32))
    up = place.node(node, "Max", [scales, one])
    down = place.node(node, "Min", [scales, one])
    node.attrs["nearest_mode"] = "floor"
    set_input(node, 2, up.outputs[0])
    output = put_behind(node, 0, place.value(node, "larger", dtype_of(node.outputs[0])))
    smaller = place.node(
        node,
        "Resize",
        [node.outputs[0], node.inputs[1], down.outputs[0]],
        {**node.attrs, "nearest_mode": "ceil"},
        output,
    )
    return [up, down, node, smaller]


def half_pixel_for_nearest(node: gs.Node, place: Place) -> list[gs.Node]:
    """The rule `tf_half_pixel_for_nn` is gone: floor((x + 0.5) / s) is (x + 0.5) / s - 0.5, rounded with halves up."""
    del place
    rule = node.attrs.get("coordinate_transformation_mode")
    nearest = node.attrs.get("mode", "nearest") == "nearest"
    if rule == "tf_half_pixel_for_nn" and nearest and node.attrs.get("nearest_mode") == "floor":
        node.attrs["coordinate_transformation_mode"] = "half_pixel"
        node.attrs["nearest_mode"] = "round_prefer_ceil"
    return [node]
