"""Softmax, LogSoftmax and Hardmax of old opsets run over all axes from theirs on, those of new ones over one.

Softmax{axis=1}(x)  ⇒  Reshape(Softmax{axis=-1}(Flatten{axis=1}(x)), shape of x)      where rank(x) > 2
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import dtype_of, shape_of
from qcompiler.passes.opsets._place import Place, put_behind


def over_all_from(node: gs.Node, place: Place) -> list[gs.Node]:
    """One axis is enough where those behind it have size 1."""
    axis, x = int(node.attrs.get("axis", 1)), node.inputs[0]
    shape = shape_of(x)
    node.attrs["axis"] = axis
    if axis == -1 or (shape is not None and all(size == 1 for size in shape[axis % max(len(shape), 1) + 1 :])):
        return [node]
    node.attrs["axis"] = -1
    flat = place.node(node, "Flatten", [x], {"axis": axis})
    set_input(node, 0, flat.outputs[0])
    output = put_behind(node, 0, place.value(node, "rows", dtype_of(node.outputs[0])))
    if shape is not None and sum(not isinstance(size, int) for size in shape) <= 1 and 0 not in shape:
        known = [size if isinstance(size, int) else -1 for size in shape]
        to: list[gs.Node] = []
        wanted: gs.Tensor = place.constant(node, "shape", np.array(known, np.int64))
    else:
        to = [place.node(node, "Shape", [x], output=place.value(node, "shape", np.int64))]
        wanted = to[0].outputs[0]
    return [flat, node, *to, place.node(node, "Reshape", [node.outputs[0], wanted], output=output)]
