"""A per-channel scale and shift behind a linear node, absorbed by its weight and bias.

    s · (W ∘ x + b) + t  =  (s·W) ∘ x + (s·b + t)

computed in float64 and rounded once. A weight that came stored as INT8 keeps its integers: s goes into its scales.
Channels are the output channels of Conv, ConvTranspose (grouped too) and Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import add_constant, set_input
from qcompiler.ir.graph import (
    consumers,
    dtype_of,
    is_constant,
    is_float,
    is_op,
    is_output,
    is_present,
    output_axis,
    producer,
    values_of,
)
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import INT8, block_size, is_dq, scale_of, stored_type, zero_point_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Affine:
    """`scale` and `shift`, float64 [M], or None for 1 and 0."""

    scale: Array | None = None
    shift: Array | None = None


def channels(node: gs.Node) -> int:
    """Number of output channels of a Conv, ConvTranspose or Gemm with a constant weight, or one stored as integers."""
    stored = stored_weight(node)
    shape = (node.inputs[1] if stored is None else stored.inputs[0]).shape
    if is_op(node, "Conv"):
        return int(shape[0])
    if is_op(node, "ConvTranspose"):
        return int(shape[1]) * int(node.attrs.get("group", 1))
    return int(shape[0 if node.attrs.get("transB", 0) else 1])


def why_not_absorb(graph: gs.Graph, node: gs.Node, follower: gs.Node) -> str:
    """Why `follower`, which reads the output of `node`, cannot be folded into it; empty where it can."""
    output = node.outputs[0]
    if stored_weight(node) is None and (not is_constant(node.inputs[1]) or not is_float(node.inputs[1])):
        return f"the weight of '{node.name}' is not a float constant"
    if is_present(node, 2) and not is_constant(node.inputs[2]):
        return f"the bias of '{node.name}' is not constant"
    if is_output(graph, output):
        return f"'{output.name}' between them is a graph output"
    if any(user is not follower for user, _ in consumers(output)):
        return f"'{output.name}' between them is also read by other nodes"
    if is_present(node, 2) and not _is_row(values_of(node.inputs[2])):
        return f"the bias of '{node.name}' has not one value per channel"
    return ""


def absorb(node: gs.Node, affine: Affine, names: Names) -> str:
    """Multiplies weight and bias by the scale and adds the shift to the bias, which is made where there is none.

    New initializers take the old names where nothing else reads the old ones. Nothing is changed on failure.

    Returns:
        Why it was not done (a result beyond the range of the weight's type); empty where it was.
    """
    stored = stored_weight(node)
    if stored is not None:
        return _absorb_stored(node, stored, affine, names)
    dtype = dtype_of(node.inputs[1])
    weight, bias = _weight(node, affine.scale), _bias(node, affine)
    with np.errstate(over="ignore"):
        new_weight = None if weight is None else weight.astype(dtype)
        new_bias = bias.astype(dtype)
    for what, values in (("weight", new_weight), ("bias", new_bias)):
        if values is not None and not np.isfinite(values.astype(np.float64)).all():
            return f"the folded {what} of '{node.name}' would leave the range of {dtype}"
    if new_weight is not None:
        _put(node, 1, new_weight, names)
    if is_present(node, 2) or new_bias.any():
        _put(node, 2, new_bias, names)
    if is_op(node, "Gemm"):
        node.attrs["beta"] = 1.0
    return ""


def stored_weight(node: gs.Node) -> gs.Node | None:
    """The DequantizeLinear of an INT8 weight that only this Conv or Gemm reads and that scales can be folded into."""
    found = producer(node.inputs[1]) if is_op(node, "Conv", "Gemm") else None
    if found is None or not is_dq(found) or not is_constant(found.inputs[0]) or block_size(found):
        return None
    scale, zero = scale_of(found), zero_point_of(found)
    if scale is None or stored_type(found) != INT8 or (zero is not None and zero.any()):
        return None
    if scale.size > 1 and int(found.attrs.get("axis", 1)) % len(found.inputs[0].shape) != output_axis(node):
        return None
    return found if len(consumers(found.outputs[0])) == 1 and scale.dtype == np.float32 else None


def _absorb_stored(node: gs.Node, stored: gs.Node, affine: Affine, names: Names) -> str:
    """The scale goes into those of DequantizeLinear, its sign into the integers: the weight keeps what it holds."""
    bias = _bias(node, affine).astype(np.float32)
    if not np.isfinite(bias).all():
        return f"the folded bias of '{node.name}' would leave the range of float32"
    if affine.scale is not None:
        why = _rescale(node, stored, affine.scale, names)
        if why:
            return why
    if is_present(node, 2) or bias.any():
        _put(node, 2, bias, names)
    if is_op(node, "Gemm"):
        node.attrs["beta"] = 1.0
    return ""


def _rescale(node: gs.Node, stored: gs.Node, scale: Array, names: Names) -> str:
    axis, values, steps = output_axis(node), values_of(stored.inputs[0]), scale_of(stored)
    if steps is None:
        return f"the scale of '{stored.name}' is not constant"
    wide = np.broadcast_to(steps.reshape(-1).astype(np.float64), (values.shape[axis],)) * np.abs(scale)
    dead = wide < np.finfo(np.float32).tiny
    shape = [1] * values.ndim
    shape[axis] = -1
    signs = np.where(dead, 0, np.where(scale < 0, -1, 1)).astype(np.int16)
    turned = values.astype(np.int16) * signs.reshape(shape)
    if turned.max(initial=0) > 127 or not np.isfinite(wide.astype(np.float32)).all():
        return f"the weight of '{node.name}' holds -128 where the sign changes, or would leave the range of float32"
    used = np.where(dead, 1.0, wide).astype(np.float32)
    set_input(stored, 0, add_constant(names.fresh(f"{stored.inputs[0].name}/turned"), turned.astype(np.int8)))
    set_input(stored, 1, add_constant(names.fresh(f"{stored.inputs[1].name}/folded"), used))
    zero = add_constant(names.fresh(f"{stored.name}/zero_point"), np.zeros(used.shape, np.int8))
    if is_present(stored, 2):
        set_input(stored, 2, zero)
    else:
        stored.inputs.append(zero)
    stored.attrs["axis"] = axis
    return ""


def _weight(node: gs.Node, scale: Array | None) -> Array | None:
    if scale is None:
        return None
    weight = values_of(node.inputs[1]).astype(np.float64)
    if is_op(node, "Conv"):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if is_op(node, "Gemm"):
        return weight * (scale[:, None] if node.attrs.get("transB", 0) else scale)
    # Channel m of group k is row m of the k-th block of input channels.
    groups = int(node.attrs.get("group", 1))
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    per_block = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (blocks * per_block).reshape(weight.shape)


def _bias(node: gs.Node, affine: Affine) -> Array:
    count = channels(node)
    bias = np.zeros(count)
    if is_present(node, 2):
        bias = bias + _row(node)
    if affine.scale is not None:
        bias = bias * affine.scale
    return bias if affine.shift is None else bias + affine.shift


def _is_row(values: Array) -> bool:
    """Whether a bias has one value per channel, or one for all: C of a Gemm may differ from row to row."""
    return bool(values.size == (values.shape[-1] if values.ndim else 1))


def _row(node: gs.Node) -> Array:
    """The bias, times beta for a Gemm, as float64 [M] or [1]."""
    row: Array = values_of(node.inputs[2]).reshape(-1).astype(np.float64)
    return row * float(node.attrs.get("beta", 1.0)) if is_op(node, "Gemm") else row


def _put(node: gs.Node, index: int, values: Array, names: Names) -> None:
    if not is_present(node, index):
        base = f"{node.name}.bias"
        constant = add_constant(names.fresh(base), values)
        if index < len(node.inputs):
            set_input(node, index, constant)
        else:
            node.inputs.append(constant)
        return
    old = node.inputs[index]
    shared = len(consumers(old)) > 1
    set_input(node, index, add_constant(names.fresh(old.name) if shared else old.name, values))
