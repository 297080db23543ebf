"""Quantities of different size that one layer writes side by side: mean and variance, a box and how sure it is.

    y = Conv(x)   [1, 6, H, W], channels 0 to 3 in pixels, 4 and 5 in 0..1     two levels: 0:4 and 4:6

No join in the graph tells them apart, their size does. A channel a tenth as large as the loudest is a hundredth of its
power: where the whole has 20 dB, all of it may be lost. So channels that far apart are compared apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shapes
from qcompiler.ir.operators import LINEAR
from qcompiler.judge.cuts import followed, moved_axes

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_CHANNELS = 64  # more are classes, words or features, which are one quantity
SEEN = 16  # values of a channel in a sample, below which its size is chance
APART = 10.0  # in amplitude
NOTHING = 1e-6  # of the loudest channel: zero, for whoever reads it


def channel_axis(output: gs.Tensor, shapes: Shapes) -> int | None:
    """The axis of an output along which a layer has written its channels; None where no layer is behind it.

    Args:
        output: an output.
        shapes: of `cuts.tensors_for_cuts`, for one sample.
    """
    node, shape = graphs.producer(output), shapes.get(output.name)
    if node is None or shape is None:
        return None
    if graphs.is_op(node, *LINEAR):
        return 1 if node.op.startswith("Conv") else len(shape) - 1
    before = next(followed(node), None)
    if before is None or graphs.is_op(node, "Concat") or before.name not in shapes:
        return None
    inner = channel_axis(before, shapes)
    return None if inner is None else moved_axes(node, shapes[before.name], shape).get(inner)


def levels_of(value: NDArray[Any], axis: int) -> list[tuple[int, ...]]:
    """Channels in groups of about one size, the loudest group first; a single group where all are alike, or too small.

    Args:
        value: what the layer gives for a sample.
        axis: of its channels.
    """
    count = value.shape[axis]
    if not 1 < count <= MOST_CHANNELS or not value.size:
        return [tuple(range(count))]
    if value.size < SEEN * count:
        return [tuple(range(count))]
    flat = np.moveaxis(np.asarray(value, np.float64), axis, 0).reshape(count, -1)
    sizes = np.sqrt(np.mean(np.where(np.isfinite(flat), flat, 0) ** 2, axis=1))
    groups = list[list[int]]()
    top = 0.0
    for channel in np.argsort(-sizes, kind="stable").tolist():
        if sizes[channel] <= NOTHING * sizes.max():
            continue
        if not groups or sizes[channel] * APART < top:
            groups.append([])
            top = float(sizes[channel])
        groups[-1].append(channel)
    return [tuple(sorted(group)) for group in groups]
