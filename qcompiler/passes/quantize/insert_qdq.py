"""x, W ⇒ DQ(Q(x)), DQ(W₈): the inputs of every planned linear node become quantized, its output stays as it is.

One Q/DQ pair per activation tensor, shared by all its quantized consumers (q, k and v read one pair); the weight is
stored as INT8 or FP8 E4M3, as the plan says, with a scale per output channel or one for all, and its float copy
disappears. Scales are FP32 scalars or vectors (amax / 127 or amax / 448) and zero points are zeros of the stored type,
always written out: an omitted one means uint8.

FP8 weights that read one activation and have one scale each (q, k and v; gate and up) share the largest of them:
TensorRT-RTX multiplies them side by side, and if their scales differ it stores what it has summed as half, in which
FP8 sums overflow, and scales it afterwards. E4M3 is as precise at half its range, so that costs nothing.

A node that the plan gives an axis but no quantized precision keeps its activation: only its weight is stored as INT8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, linear
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.numerics import rounding
from qcompiler.numerics.rounding import LARGEST, STORED, format_of, quantize_weight, weight_scales
from qcompiler.passes import shifts
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.plan import FittedWeight, Plan, Quantizer
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


_STORED = (DType.INT8, DType.FP8)


@dataclass(frozen=True)
class InsertQDQ(Pass):
    """Put Q/DQ pairs where the plan says INT8 or FP8 and store those weights quantized.

    Attributes:
        plan: precisions, ranges of activations and axes of weights.
        corrections: by node name, what is added to the output channels of a Conv.
        scales: by node name, the scales of its weight where they are not amax / 127 or amax / 448: [channels] or [].
        fitted: by node name, its INT8 weight where that is not the nearest integers; used where it has that axis.
        shift: an unsigned grid is written as a symmetric one behind an Add, for engines that know no zero point; what
            that adds to the outputs is taken off the bias behind each reader.
    """

    plan: Plan = field(default_factory=Plan, repr=False)
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)
    fitted: Mapping[str, FittedWeight] = field(default_factory=dict, repr=False, compare=False)
    shift: bool = False

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Edits the nodes that the plan quantizes, in graph order."""
        names = Names(graph)
        pairs: dict[str, gs.Variable] = {}
        given = {**self.scales, **common_scales(graph, self.plan, self.scales)}
        for node in list(graph.nodes):
            precision = self.plan.precision(node.name)
            quantized = precision in _STORED
            if node.name in self.plan.reads or not (quantized or node.name in self.plan.axes):
                continue
            weight = linear.weight_of(node)
            if weight is None or weight.index != 1:
                yield Skipped(node.name, "its weight is not a constant second input any more")
                continue
            activation = node.inputs[0]
            stored = precision if precision is not None and quantized else DType.INT8
            if quantized:
                quantizer = self.plan.quantizers[activation.name]
                moved = shifts.shift_of(quantizer) if self.shift else 0.0
                if activation.name not in pairs:
                    pairs[activation.name] = pair(graph, names, activation, quantizer, moved)
                edit.set_input(node, 0, pairs[activation.name])
                done = f"{stored.upper()} x {stored.upper()}, activation scale {step(quantizer):.4g}"
            else:
                done, moved = "weight stored as INT8", 0.0
            # DequantizeLinear commutes with Transpose and Reshape, so it stands at the initializer
            reader, index = (weight.chain[0], 0) if weight.chain else (node, 1)
            axis = self.plan.axes[node.name]
            used = given.get(node.name)
            if used is None and not quantized:
                used = _half(weight_scales(weight.tensor.values, axis))
            known = self.fitted.get(node.name) if precision is DType.INT8 and axis is not None else None
            if known is None:
                known = FittedWeight(*quantize_weight(weight.tensor.values, axis, format_of(stored), used))
            edit.set_input(reader, index, _weight(graph, names, weight.tensor, axis, stored, known))
            if moved:
                shifts.take_off(graph, names, node, moved, _sums(known, axis, weight.stored_axis))
            shift = self.corrections.get(node.name)
            if shift is not None and np.any(shift):
                _add_bias(names, node, shift)
            yield Changed(node.name, done)
        edit.sort(graph)


def common_scales(
    graph: gs.Graph, plan: Plan, scales: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The scale of each FP8 weight that shares it with the other readers of its activation, by node name.

    Args:
        graph: float graph.
        plan: only FP8 nodes whose weight has a single scale are looked at.
        scales: by node name, the scales of weights where they are not amax / 448.
    """
    siblings: dict[str, dict[str, NDArray[np.float32]]] = {}
    for node in graph.nodes:
        if plan.precision(node.name) is not DType.FP8 or plan.axes.get(node.name, 0) is not None:
            continue
        weight = linear.weight_of(node)
        if weight is not None and weight.index == 1:
            own = scales.get(node.name)
            own = weight_scales(weight.tensor.values, None, "fp8") if own is None else own
            siblings.setdefault(node.inputs[0].name, {})[node.name] = own
    found: dict[str, NDArray[np.float32]] = {}
    for group in siblings.values():
        found.update(dict.fromkeys(group, np.max(list(group.values()))))
    return found


def step(quantizer: Quantizer) -> float:
    """The scale of a symmetric quantizer."""
    return quantizer.amax / LARGEST[format_of(quantizer.dtype)]


def _sums(weight: FittedWeight, axis: int | None, outputs: int | None) -> NDArray[np.float32]:
    """The sum of the weights of each output channel, as they are stored."""
    if outputs is None:
        raise ValueError("the activation of a layer whose output channels are mixed cannot be shifted")
    over = tuple(one for one in range(weight.values.ndim) if one != outputs % weight.values.ndim)
    return np.asarray(weight.values.sum(over, dtype=np.int64) * weight.scales, np.float32)


def pair(graph: gs.Graph, names: Names, tensor: gs.Variable, quantizer: Quantizer, moved: float = 0.0) -> gs.Variable:
    """Q and DQ behind `tensor`, or behind an Add that moves it; returns the dequantized one."""
    steps, shift = np.array(step(quantizer), np.float32), np.zeros((), STORED[format_of(quantizer.dtype)])
    if quantizer.span is not None:
        width, offset = rounding.grid(*quantizer.span)
        steps, shift = np.array(width, np.float32), shift if moved else np.array(offset, np.uint8)
    if moved:
        tensor = shifts.add(graph, names, tensor, moved)
    scale = gs.Constant(names.fresh(f"{tensor.name}/scale"), steps)
    zero = gs.Constant(names.fresh(f"{tensor.name}/zero_point"), shift)
    stored = gs.Variable(names.fresh(f"{tensor.name}/quantized"), shift.dtype, tensor.shape)
    back = gs.Variable(names.fresh(f"{tensor.name}/dequantized"), np.float32, tensor.shape)
    graph.nodes.append(
        gs.Node("QuantizeLinear", names.fresh(f"{tensor.name}/QuantizeLinear"), {}, [tensor, scale, zero], [stored])
    )
    graph.nodes.append(
        gs.Node("DequantizeLinear", names.fresh(f"{tensor.name}/DequantizeLinear"), {}, [stored, scale, zero], [back])
    )
    return back


def _half(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of a weight beside a float activation: numbers that FP16 holds, so that a graph in half can store them."""
    with np.errstate(over="ignore"):
        stored = scales.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(stored) & (stored > 0), stored, scales)


def _weight(
    graph: gs.Graph,
    names: Names,
    weight: gs.Constant,
    axis: int | None,
    dtype: DType,
    known: FittedWeight,
) -> gs.Variable:
    """The INT8 or FP8 copy of a float weight behind a DQ; nothing reads the float one any more."""
    values, used = known.values, known.scales
    stored = edit.add_constant(names.fresh(f"{weight.name}/{dtype}"), values)
    scale = gs.Constant(names.fresh(f"{weight.name}/scale"), used)
    zero = gs.Constant(names.fresh(f"{weight.name}/zero_point"), np.zeros(used.shape, values.dtype))
    back = gs.Variable(names.fresh(f"{weight.name}/dequantized"), np.float32, weight.shape)
    attrs = {} if axis is None else {"axis": axis}
    name = names.fresh(f"{weight.name}/DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", name, attrs, [stored, scale, zero], [back]))
    return back


def _add_bias(names: Names, node: gs.Node, shift: NDArray[np.float32]) -> None:
    """Adds `shift` [channels] to what a Conv writes."""
    bias = graphs.constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    total = gs.Constant(names.fresh(f"{node.name}/bias"), shift if bias is None else bias + shift)
    if len(node.inputs) > 2:
        edit.set_input(node, 2, total)
    else:
        node.inputs.append(total)
