"""How each operator passes a division of its output on to its inputs: y/s from x/s, or from a constant over s."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import axes_of, constant_value, is_op, is_present, shape_of
from qcompiler.ir.operators import CHANNEL_NORMS, HOMOGENEOUS, NORMS, POOLS, VIEWS
from qcompiler.passes.absorb.index import NONE, Index, before_view, compact
from qcompiler.passes.absorb.search import Rule, Search, is_constant_behind, no_way, positions

_ALL_INPUTS = ("Add", "Sub", "Sum", "Max", "Min", "Mean")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")


def _same(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    search.into(node, 0, index)


def _all_inputs(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    for i in range(len(node.inputs)):
        search.into(node, i, index, grow=True)


def _mul(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """One factor takes it: a constant rather than another tensor."""
    order = sorted(range(2), key=lambda i: not is_constant_behind(node, i))
    ways = [partial(search.into, node, i, index, grow=True) for i in order]
    search.first(ways, f"no factor of '{node.name}' takes it")


def _div(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    ways = [partial(search.into, node, 0, index, grow=True)]
    if is_constant_behind(node, 1):
        ways.insert(0, partial(search.constant, node, 1, index, grow=True, multiply=True))
    search.first(ways, f"neither side of '{node.name}' takes it")


def _where(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    for i in (1, 2):
        search.into(node, i, index, grow=True)


def _clip(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """max(x, 0) is homogeneous, ReLU6 is not: its bound would have to differ from channel to channel."""
    lowest = constant_value(node.inputs[1]) if is_present(node, 1) else None
    if lowest is None or lowest.any() or is_present(node, 2) or "max" in node.attrs:
        no_way(f"'{node.name}' (Clip) has one bound for all channels")
    search.into(node, 0, index)


def _matmul(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Columns come from the second operand, rows from the first, batches (heads) from either; not both at once."""
    if any(len(operand.shape or ()) < 2 for operand in node.inputs):
        no_way(f"'{node.name}' (MatMul) multiplies vectors")
    rows, columns = (length > 1 for length in index.shape[-2:])
    if rows and columns:
        index = search.narrow(index, [*[None] * (index.ndim - 2), 1, None], tensor)
    order = (1,) if columns else (0,) if rows else (1, 0)
    search.first([partial(search.into, node, i, index) for i in order], f"'{node.name}' (MatMul) cannot take it")


def _gemm(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    rows, columns = (length > 1 for length in index.shape)
    if rows and columns:
        index = search.narrow(index, [1, None], tensor)
    i, transposed = (0, "transA") if rows and not columns else (1, "transB")
    search.into(node, i, index.T if node.attrs.get(transposed, 0) else index)
    if is_present(node, 2):
        search.into(node, 2, index, grow=True)


def _conv(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    shape = shape_of(node.inputs[1]) or ()
    rank = index.ndim
    channels = search.narrow(index, [1, None, *[1] * (rank - 2)], tensor).reshape(-1)
    if is_op(node, "Conv"):
        placed = channels.reshape(-1, *[1] * (rank - 1))
    else:  # channel m of group k is row m of the k-th block of input channels
        group = int(node.attrs.get("group", 1))
        if len(shape) != rank or not all(isinstance(dim, int) for dim in shape[:2]):
            no_way(f"input 1 of '{node.name}' ({node.op}) is not constant")
        rows, per_group = (int(dim) for dim in shape[:2] if isinstance(dim, int))
        if channels.size not in (1, group * per_group):
            no_way(f"'{node.name}' (ConvTranspose) has {group * per_group} channels, not {channels.size}")
        blocks = np.broadcast_to(channels, (group * per_group,)).reshape(group, per_group)
        placed = np.repeat(blocks, rows // group, axis=0).reshape(rows, per_group, *[1] * (rank - 2))
    search.constant(node, 1, placed)
    if is_present(node, 2):
        search.constant(node, 2, channels)


def _norm(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Scale and bias over the last axes, from `axis` on."""
    axis = int(node.attrs.get("axis", -1)) % index.ndim
    index = search.narrow(index, [1] * axis + [None] * (index.ndim - axis), tensor)
    for i in (1, 2):
        if is_present(node, i):
            search.constant(node, i, index)


def _skip_norm(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """The fused residual sum and norm of ONNX Runtime: gamma is input 2, beta input 3 of the one that has it."""
    index = search.narrow(index, [1] * (index.ndim - 1) + [None], tensor)
    search.constant(node, 2, index)
    if node.op == "SkipLayerNormalization" and is_present(node, 3):
        search.constant(node, 3, index)


def _channel_norm(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    if len(node.outputs) > 1 or node.attrs.get("training_mode", 0):
        no_way(f"'{node.name}' ({node.op}) is in training mode")
    channels = search.narrow(index, [1, None, *[1] * (index.ndim - 2)], tensor).reshape(-1)
    for i in (1, 2):
        search.constant(node, i, channels)


def _pool(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    search.into(node, 0, search.narrow(index, [None, None, *[1] * (index.ndim - 2)], tensor))


def _reduce(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    rank = len(node.inputs[0].shape or ())
    axes = axes_of(node)
    if axes is None or not rank:
        no_way(f"'{node.name}' ({node.op}) does not name its axes")
    if not node.attrs.get("keepdims", 1):
        index = np.expand_dims(index, tuple(axis % rank for axis in axes))
    search.into(node, 0, index)


def _view(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    before = before_view(node, index, shape_of(node.inputs[0]), shape_of(tensor))
    if before is None:
        no_way(f"'{node.name}' ({node.op}) mixes channels with other axes, or their number is not known")
    search.into(node, 0, before)


def _tile(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Repeats need one factor, like the heads of grouped keys and values."""
    repeats = constant_value(node.inputs[1])
    if repeats is None:
        no_way(f"'{node.name}' (Tile) computes how often it repeats")
    for axis, count in enumerate(repeats.tolist()):
        if count > 1 and index.shape[axis] > 1:
            length = index.shape[axis] // count
            split = index.reshape(*index.shape[:axis], count, length, *index.shape[axis + 1 :])
            ones = [1 if k == axis else None for k in range(split.ndim)]
            index = search.narrow(split, ones, tensor).squeeze(axis)
    search.into(node, 0, index)


def _concat(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    axis = int(node.attrs["axis"]) % index.ndim
    start = 0
    for i, part in enumerate(node.inputs):
        if index.shape[axis] == 1:
            search.into(node, i, index)
            continue
        length = (shape_of(part) or [None] * index.ndim)[axis]
        if not isinstance(length, int):
            no_way(f"'{part.name}', a part of '{node.name}' (Concat), has an open number of channels")
        search.into(node, i, compact(index.take(range(start, start + length), axis)))
        start += length


def _part(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Either all of the input is divided, where nothing tells its elements apart, or only the part that is kept."""
    kept = positions(node, tensor)
    if is_op(node, "Gather"):
        index = _one_axis(node, index)
    ways = []
    if all(index.shape[axis] == 1 for axis in kept) and not is_op(node, "Split"):
        ways.append(partial(search.into, node, 0, index))
    only = _only_part(node, kept, index)
    if only is not None:
        ways.append(partial(search.into, node, 0, only))
    if not ways:
        no_way(f"which elements '{node.name}' ({node.op}) takes is not known")
    search.first(ways, f"the part that '{node.name}' ({node.op}) takes cannot be divided")


def _one_axis(node: gs.Node, index: Index) -> Index:
    """The index with one axis in place of those of the indices of a Gather."""
    before, picked = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if before is None or picked is None:
        no_way(f"the ranks of the inputs of '{node.name}' (Gather) are not known")
    axis, count = int(node.attrs.get("axis", 0)) % len(before), len(picked)
    if count == 1:
        return index
    if any(length > 1 for length in index.shape[axis : axis + count]):
        no_way(f"'{node.name}' (Gather) gathers channels along several axes")
    return index.reshape(*index.shape[:axis], 1, *index.shape[axis + count :])


def _only_part(node: gs.Node, kept: Mapping[int, Index | None], index: Index) -> Index | None:
    shape = shape_of(node.inputs[0]) or ()
    for axis, where in kept.items():
        length = shape[axis]
        if where is None or not isinstance(length, int) or np.unique(where).size != where.size:
            return None
        whole = np.full([length if k == axis else n for k, n in enumerate(index.shape)], NONE, np.int64)
        np.moveaxis(whole, axis, 0)[where] = np.moveaxis(index, axis, 0)
        index = whole
    return index


def _pad(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Zeros stay zeros; padding along the channels is something else."""
    pads = constant_value(node.inputs[1]) if is_present(node, 1) else None
    value = constant_value(node.inputs[2]) if is_present(node, 2) else np.zeros(1)
    mode = node.attrs.get("mode", "constant")
    if pads is None or is_present(node, 3) or (mode == "constant" and (value is None or value.any())):
        no_way(f"'{node.name}' (Pad) does not pad with zeros by fixed amounts")
    if any(pads.reshape(2, -1)[:, axis].any() for axis in range(index.ndim) if index.shape[axis] > 1):
        no_way(f"'{node.name}' (Pad) pads along the channels")
    search.into(node, 0, index)


def _resize(search: Search, node: gs.Node, tensor: gs.Tensor, index: Index) -> None:
    """Interpolation is linear; it may not go across channels."""
    before, after = shape_of(node.inputs[0]), shape_of(tensor)
    across = before is None or after is None or before[1:2] != after[1:2] or index.size != index.shape[1]
    if across or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        no_way(f"'{node.name}' (Resize) may resize the channels")
    search.into(node, 0, index)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(HOMOGENEOUS, _same),
    **dict.fromkeys(_ALL_INPUTS, _all_inputs),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(CHANNEL_NORMS, _channel_norm),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Slice", "Split", "Gather"), _part),
    "Clip": _clip,
    "Concat": _concat,
    "Div": _div,
    "Expand": _same,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mul": _mul,
    "Pad": _pad,
    "Resize": _resize,
    "Tile": _tile,
    "Where": _where,
}
