"""Quantized parts that no exact repair makes legal for TensorRT, each rule with the remedy it names.

Every rule is a function of (graph, target) that raises EngineError or does nothing. What TensorRT(-RTX) 1.7 does with
each pattern was found by building it and reading the plan: some are refused by its parser, some run in float without
a word, and some, worst, compile and compute something else.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import (
    FP4,
    FP8,
    INT4,
    INT8,
    block_size,
    dequantizer,
    is_dq,
    is_weight,
    pairs,
    readers,
    refusal,
    scale_of,
    stored_type,
    zero_point_of,
)
from qcompiler.passes.legalize._fold_scales import two_levels
from qcompiler.target import FIRST_FP4_SM, Target, lacking_fp4, lacking_fp8

Rule = Callable[[gs.Graph, Target], None]

DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger")
_WHY = {
    np.dtype(np.uint8): " (it would be read as int8 and clamped at 127)",
    np.dtype(ml_dtypes.float8_e5m2): ": of the FP8 formats it has E4M3 only",
}
_REMEDY = "compile the float model with --data instead, or quantize it symmetrically to int8"


def scales(graph: gs.Graph, target: Target) -> None:
    """A scale of 0, below 0, NaN, infinite or subnormal: refused by the parser, or worse, taken."""
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None:
            continue
        values = scale.astype(np.float64).reshape(-1)
        tiny = float(np.finfo(np.float32).tiny)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= tiny)))
        if bad.size:
            raise refusal(
                node,
                f"has the scale {values[bad[0]]:g} at index {bad[0]}, which is not a positive normal number",
                "calibrate that tensor again; a channel of zeros needs any positive scale",
            )


def constant_scales(graph: gs.Graph, target: Target) -> None:
    """A scale computed at run time: the parser refuses it per token and runs it in float per tensor."""
    for node in pairs(graph):
        if scale_of(node) is None and not two_levels(node):
            raise refusal(
                node,
                f"has a scale computed at run time; {target.engine} needs it when it builds and would run in float",
                _REMEDY,
            )


def operators(graph: gs.Graph, target: Target) -> None:
    """Quantized operators that are no Q/DQ pairs and cannot be written as such."""
    for node in graph.nodes:
        known = node.op in DYNAMIC or node.op.startswith(
            ("QLinear", "MatMulNBits", "MatMulBnb4", "QAttention", "QGemm")
        )
        if known:
            raise refusal(node, f"is a quantized operator that {target.engine} does not have", _REMEDY)


def types(graph: gs.Graph, target: Target) -> None:
    """Integer and float types that the parser does not import."""
    takes = (INT8, INT4, FP8, FP4)
    for node in pairs(graph):
        found = stored_type(node)
        if found not in takes:
            why = _WHY.get(found, "")
            raise refusal(node, f"stores {found.name}, which {target.engine} does not take{why}", _REMEDY)


def zero_points(graph: gs.Graph, target: Target) -> None:
    """Asymmetric quantization."""
    for node in pairs(graph):
        zero = zero_point_of(node)
        if graphs.is_present(node, 2) and zero is None:
            raise refusal(node, "has a zero point computed at run time", _REMEDY)
        values = np.zeros(1) if zero is None else zero.astype(np.float32).reshape(-1)
        if np.any(values != 0):
            first = float(values[np.flatnonzero(values)[0]])
            raise refusal(node, f"has the zero point {first:g}; {target.engine} is symmetric only", _REMEDY)


def activation_scales(graph: gs.Graph, target: Target) -> None:
    """Several scales on an activation: runs in float without a word; in blocks it is miscompiled."""
    for node in pairs(graph):
        scale = scale_of(node)
        if scale is None or scale.size == 1 or is_weight(node):
            continue
        raise refusal(
            node,
            f"gives an activation {scale.size} scales; {target.engine} runs that in float without a word, "
            "or, where they are blocked, computes something else",
            "give activations one scale per tensor",
        )


def weight_axis(graph: gs.Graph, target: Target) -> None:
    """Weight scales along another axis than the output channels: runs in float without a word."""
    for node in pairs(graph):
        found = wrong_axis(node)
        if found is not None:
            reader, axis, wanted = found
            raise refusal(
                node,
                f"scales axis {axis} of the weight of '{reader.name}' ({reader.op}), whose output channels are on "
                f"axis {wanted}; {target.engine} runs that in float without a word",
                "quantize the weight per output channel or per tensor",
            )


def wrong_axis(node: gs.Node) -> tuple[gs.Node, int, int] | None:
    """The reader of a quantized weight with a quantized activation whose output channels are not what is scaled.

    With it the axis that the scales run along and the one that they should, both as the reader sees them.
    """
    scale = scale_of(node)
    if not is_dq(node) or scale is None or scale.size == 1 or not is_weight(node) or block_size(node):
        return None
    rank = len(node.inputs[0].shape or ()) or 2
    for reader, index, chain in readers(node.outputs[0]):
        axis = _axis_after(int(node.attrs.get("axis", 1)) % rank, rank, chain)
        if axis is None or not graphs.is_linear(reader) or index > 1 or not _other_quantized(reader, index):
            continue
        wanted = _output_axis(reader, index, rank)
        if axis != wanted:
            return reader, axis, wanted
    return None


def _axis_after(axis: int, rank: int, chain: tuple[gs.Node, ...]) -> int | None:
    for node in chain:
        if graphs.is_op(node, "Transpose"):
            axis = graphs.permutation(node, rank).index(axis)
        elif not graphs.is_op(node, "Cast", "Identity"):
            return None
    return axis


def _output_axis(node: gs.Node, index: int, rank: int) -> int:
    return graphs.output_axis(node, index) if not graphs.is_op(node, "MatMul") else rank - (2 - index)


def _other_quantized(node: gs.Node, index: int) -> bool:
    other = dequantizer(node.inputs[1 - index])
    return other is not None and not is_weight(other)


def blocks(graph: gs.Graph, target: Target) -> None:
    """Blocked weights against quantized activations: compiles without a word into wrong results."""
    for node in pairs(graph):
        if not block_size(node) or not is_dq(node):
            continue
        for reader, index, _ in readers(node.outputs[0]):
            if graphs.is_linear(reader) and index < 2 and _other_quantized(reader, index):
                raise refusal(
                    node,
                    f"has blocked scales and meets a quantized activation in '{reader.name}' ({reader.op}), which "
                    f"{target.engine} compiles into wrong results",
                    "leave the activation in float, or scale the weight per output channel",
                )


def operand_types(graph: gs.Graph, target: Target) -> None:
    """INT8 times FP8, or INT4 times either: one kernel has one operand type."""
    for node in graph.nodes:
        if not graphs.is_linear(node) or len(node.inputs) < 2:
            continue
        found = [dequantizer(tensor) for tensor in node.inputs[:2]]
        names = [stored_type(one).name for one in found if one is not None]
        if len(set(names)) > 1:
            raise refusal(node, f"multiplies {names[0]} by {names[1]}", "quantize both operands to the same type")


def generations(graph: gs.Graph, target: Target) -> None:
    """FP8 and FP4 on GPUs without them."""
    without, older = lacking_fp8(target), lacking_fp4(target)
    for node in pairs(graph):
        if without and stored_type(node) == FP8 and not _scales_fp4(node):
            raise refusal(node, f"is FP8, which {', '.join(without)} lacks", "use int8, or leave these GPUs out")
        if older and stored_type(node) == FP4:
            remedy = f"build it for {target.engine}:sm{FIRST_FP4_SM}, or quantize the float model to int8 or fp8"
            raise refusal(node, f"is FP4 (float4_e2m1fn), which {', '.join(older)} lacks", remedy)


def _scales_fp4(node: gs.Node) -> bool:
    """Whether a DQ only makes the scales of FP4 weights, so that the weights are what a GPU may lack."""
    users = graphs.consumers(node.outputs[0])
    return bool(users) and all(index == 1 and is_dq(user) and stored_type(user) == FP4 for user, index in users)


def turing(graph: gs.Graph, target: Target) -> None:
    """SM75 multiplies matrices, quantized ones included, in FP16 only, and has no BF16; convolutions may be FP32."""
    if "sm75" not in target.sms:
        return
    found = element_types.infer(graph)
    remedy = "type the model fp16, or leave sm75 out"
    for node in graph.nodes:
        written = [found.get(id(tensor)) for tensor in node.outputs]
        if np.dtype(ml_dtypes.bfloat16) in written:
            raise refusal(node, "writes BF16, which sm75 lacks", remedy)
        if graphs.is_op(node, "MatMul", "Gemm") and np.dtype(np.float32) in written:
            raise refusal(node, "is an FP32 matrix product, which TensorRT-RTX does not compile for sm75", remedy)


ANY: tuple[Rule, ...] = (scales,)
RULES: tuple[Rule, ...] = (
    operators,
    constant_scales,
    scales,
    types,
    zero_points,
    activation_scales,
    blocks,
    weight_axis,
    operand_types,
    generations,
    turing,
)
