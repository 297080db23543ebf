"""Which nodes are quantized: placement rules that look at one node and its neighbourhood, each with an id and a reason.

The rules are TensorRT's (developer guide, "Explicit Quantization"): quantize the inputs of weighted operators, leave
their outputs in high precision, leave alone what the compiler would run in float anyway or where a quantized kernel
cannot pay. What accuracy then demands is added by `qcompiler.planning.search.safety_net`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import linear
from qcompiler.ir.macs import Shapes, multiplies
from qcompiler.ir.operators import LINEAR, PRODUCTS, QUANTIZED_OPS, RECURRENT, VIEWS
from qcompiler.ir.qdq import (
    FP4,
    FP8,
    INT4,
    INT8,
    UINT8,
    block_size,
    dequantizer,
    is_dq,
    is_q,
    is_weight,
    scale_of,
    stored_type,
    zero_point_of,
)
from qcompiler.plan import Candidate, Decision, Plan, Refusal
from qcompiler.planning.placement import joint
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, Target

SMALLEST_GEMM = 16  # fewer input or output channels than one INT8 tensor-core tile: padding costs more than it saves


CAME = ("quantized-already", "weight-only", "half-quantized")  # rules about what came quantized
_STORED = {INT8: DType.INT8, UINT8: DType.INT8, FP8: DType.FP8, INT4: DType.INT4}
_BLOCKS = "MatMulNBits"  # of floats with a weight in few bits
_ALONE = {DType.INT8: DType.INT8_WEIGHT, DType.INT4: DType.INT4_WEIGHT}


class Candidates(NamedTuple):
    """What may be quantized in a model and what may not; the planner decides what of it is.

    Attributes:
        found: linear nodes, in graph order.
        refused: all other nodes that multiply; they stay in high precision.
    """

    found: tuple[Candidate, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def by_activation(self) -> Mapping[str, list[Candidate]]:
        """What was found, grouped by the activation it shares, in graph order."""
        return by_activation(self.found)

    def refusing(self, refusals: Iterable[Refusal]) -> Candidates:
        """The same with these nodes refused."""
        refused = (*self.refused, *refusals)
        left = {one.node for one in refused}
        return Candidates(tuple(one for one in self.found if one.node not in left), refused)


def find_candidates(graph: gs.Graph, target: Target, keep: Sequence[str] = ()) -> Candidates:
    """Linear nodes that the target can run quantized, and every other node that multiplies with its refusal.

    Args:
        graph: normalised graph (weights are constants, names unique).
        target: what is quantized differs between engines.
        keep: regular expressions; a node whose name one of them matches anywhere stays in high precision.
    """
    found: list[Candidate] = []
    refused: list[Refusal] = []
    patterns = [re.compile(text) for text in keep]
    outputs = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op in RECURRENT:
            refused.append(
                Refusal(node.name, node.op, "recurrent", f"{node.op} has no INT8 kernel that takes Q/DQ weights")
            )
        came = _came_quantized(node)
        if came is not None:
            refused.append(came)
            continue
        if node.domain not in (None, "", "ai.onnx") and not (is_q(node) or is_dq(node)):
            why = f"{node.op} of domain '{node.domain}' is not ONNX's own: no rule says how it could be quantized"
            refused.append(Refusal(node.name, node.op, "custom", why))
        elif node.op in LINEAR:
            verdict = _structural(node, target, patterns)
            if isinstance(verdict, Candidate) and verdict.scales is not None and verdict.weight in outputs:
                why = "its weight came quantized and stays as it is: the model gives its float values as an output"
                verdict = Refusal(node.name, node.op, "weight-only", why)
            if isinstance(verdict, Candidate):
                source = _source_of_pair(node) or node.inputs[0]
                found.append(replace(verdict, activation=source.name, amax=_range_of_pair(source)))
            else:
                refused.append(verdict)
        elif multiplies(node) and node.op not in RECURRENT:
            why = f"no rule quantizes {node.op}, so it computes in floats"
            refused.append(Refusal(node.name, node.op, "no-rule", why))
    refused.extend(
        Refusal(node.name, node.op, "subgraph", f"inside the body of '{owner.name}' ({owner.op}), which stays float")
        for owner, node in _nested(graph)
        if multiplies(node)
    )
    return Candidates(tuple(found), tuple(refused))


def _structural(node: gs.Node, target: Target, keep: Iterable[re.Pattern[str]]) -> Candidate | Refusal:
    def refuse(rule: str, why: str) -> Refusal:
        return Refusal(node.name, node.op, rule, why)

    matching = next((pattern.pattern for pattern in keep if pattern.search(node.name)), None)
    if matching is not None:
        return refuse("kept", f"its name matches --keep '{matching}'")
    activation, weight = node.inputs[0], linear.weight_of(node)
    stored = dequantizer(node.inputs[1]) if weight is None and len(node.inputs) > 1 else None
    if node.op == "ConvTranspose" and not target.conv_transpose:
        return refuse("no-kernel", f"{target.engine} runs ConvTranspose in float even between Q/DQ pairs")
    if node.op == "Gemm" and not _plain_gemm(node):
        return refuse(
            "gemm-alpha", "alpha is not 1: TensorRT multiplies between DQ and GEMM, and then runs it in float"
        )
    if stored is not None and is_weight(stored):
        return _stored(node, stored, target, refuse)
    if weight is None:
        if node.op == "MatMul":
            return refuse(
                "attention",
                "both inputs are activations: INT8 on part of an attention splits its fused kernel, and on all of it "
                "costs accuracy (recipe key attention)",
            )
        return refuse("dynamic-weight", "its weight is computed by the graph, so it cannot be stored quantized")
    if weight.index != 1 or isinstance(activation, gs.Constant):
        return refuse("weight-left", "its first input is the constant one; Q/DQ fuse only with a constant second input")
    if graphs.dtype_of(weight.tensor) != np.float32 or any(link.op == "Cast" for link in weight.chain):
        return refuse("not-float", f"its weight is stored as {graphs.dtype_of(weight.tensor)}, not as float32")
    if node.op == "MatMul" and len(weight.tensor.shape) < 2:
        return refuse("gemv", "its weight is a vector")
    chain = tuple(link.name for link in weight.chain)
    axis = None if target.engine == "tensorrt-rtx" and joint.is_joint(node) else weight.stored_axis
    return Candidate(node.name, node.op, activation.name, weight.tensor.name, axis, chain)


def _plain_gemm(node: gs.Node) -> bool:
    return float(node.attrs.get("alpha", 1.0)) == 1.0


def _came_quantized(node: gs.Node) -> Refusal | None:
    """The refusal of a node that computes with quantized operands already, or with one that nothing can join."""
    if node.op in QUANTIZED_OPS:
        return Refusal(node.name, node.op, "quantized-already", "came quantized; its own scales are kept")
    if node.op not in LINEAR or len(node.inputs) < 2:
        return None
    left, right = (dequantizer(tensor) for tensor in node.inputs[:2])
    blocked = next((one for one in (left, right) if one is not None and block_size(one)), None)
    if blocked is not None:
        why = (
            f"its weight came in {stored_type(blocked).name} blocks, which engines multiply with float activations only"
        )
        return Refusal(node.name, node.op, "weight-only", why)
    if left is not None and right is not None:
        return Refusal(node.name, node.op, "quantized-already", "came quantized; its own scales are kept")
    if left is not None and is_weight(left):
        return Refusal(node.name, node.op, "weight-only", "its first input is a weight that came quantized")
    one = left or (None if right is None or is_weight(right) else right)
    if one is not None and not (one is left and _source_of_pair(node) is not None and linear.weight_of(node)):
        why = f"only what '{one.name}' gives came quantized; the other operand is float"
        return Refusal(node.name, node.op, "half-quantized", why)
    return None


def _stored(
    node: gs.Node, dequantize: gs.Node, target: Target, refuse: Callable[[str, str], Refusal]
) -> Candidate | Refusal:
    """A node whose weight came stored: a candidate where pairs for its activation are all that is missing."""
    scales, zero = scale_of(dequantize), zero_point_of(dequantize)
    only = "its weight came quantized and stays as it is, with a float activation: "
    if stored_type(dequantize) != INT8 or not graphs.is_constant(dequantize.inputs[0]) or scales is None:
        return refuse("weight-only", only + f"it is {stored_type(dequantize).name}")
    if zero is not None and np.any(zero):
        return refuse("weight-only", only + "it is asymmetric")
    if isinstance(node.inputs[0], gs.Constant):
        return refuse("weight-only", only + "the activation is a constant")
    shape = tuple(int(dim) for dim in dequantize.inputs[0].shape)
    axis = None if scales.size == 1 else int(dequantize.attrs.get("axis", 1)) % len(shape)
    chain = _views(node.inputs[1])
    if axis is not None and (
        axis != linear.stored_axis(node, shape, chain) or (target.engine == "tensorrt-rtx" and joint.is_joint(node))
    ):
        return refuse("weight-only", only + "its scales do not run along the output channels alone")
    names = tuple(link.name for link in chain)
    kept = scales.astype(np.float32).reshape(() if axis is None else (-1,))
    return Candidate(node.name, node.op, node.inputs[0].name, dequantize.outputs[0].name, axis, names, scales=kept)


def _views(tensor: gs.Tensor) -> tuple[gs.Node, ...]:
    """The nodes between a DequantizeLinear and what its value arrives as, in data order."""
    chain: list[gs.Node] = []
    node = graphs.producer(tensor)
    while node is not None and graphs.is_op(node, *VIEWS):
        chain.append(node)
        node = graphs.producer(node.inputs[0])
    return tuple(reversed(chain))


def _source_of_pair(node: gs.Node) -> gs.Tensor | None:
    """The float tensor behind a legal INT8 pair that a node reads as its activation; None where it reads none."""
    back = graphs.producer(node.inputs[0])
    before = graphs.producer(back.inputs[0]) if back is not None and is_dq(back) else None
    if before is None or not is_q(before) or isinstance(before.inputs[0], gs.Constant):
        return None
    source: gs.Tensor = before.inputs[0]
    return source if _range_of_pair(source) is not None else None


def _range_of_pair(tensor: gs.Tensor) -> float | None:
    """The clipping range of a legal INT8 pair that stands behind a tensor already; None where there is none."""
    for node, index in graphs.consumers(tensor):
        scale = scale_of(node) if is_q(node) and index == 0 else None
        zero = None if scale is None else zero_point_of(node)
        if scale is None or scale.size != 1 or stored_type(node) != INT8 or (zero is not None and np.any(zero)):
            continue
        return float(scale.reshape(-1)[0]) * 127.0
    return None


def _nested(graph: gs.Graph) -> list[tuple[gs.Node, gs.Node]]:
    return [(owner, node) for owner in graph.nodes for inner in graphs.subgraphs(owner) for node in graphs.walk(inner)]


def too_small(candidate: Candidate, node: gs.Node, shapes: Shapes) -> Refusal | None:
    """Rules that need shapes: matrix-vector products and GEMMs smaller than one tensor-core tile.

    Args:
        candidate: what may be quantized.
        node: of the candidate.
        shapes: of the tensors at the usual size of the inputs, as the engine will see them: batch, rays, frames and
            tokens are all rows of a product.
    """
    weight = shapes.get(node.inputs[1].name) or tuple(node.inputs[1].shape or ())
    x = shapes.get(candidate.activation)
    if candidate.op in PRODUCTS and len(weight) > 1:
        depth, width = (weight[-2], weight[-1]) if not node.attrs.get("transB", 0) else (weight[-1], weight[-2])
        if min(depth, width) < SMALLEST_GEMM:
            return Refusal(
                candidate.node, candidate.op, "tiny", f"a {depth}x{width} weight is smaller than one INT8 tile"
            )
        rows = None if x is None else _rows(candidate, node, x, len(weight) > 2)
        if rows == 1:
            return Refusal(candidate.node, candidate.op, "gemv", "one row: a matrix-vector product is bound by memory")
        return None
    out = shapes.get(node.outputs[0].name)
    if out is not None and len(out) > 2 and out[0] * math.prod(out[2:]) == 1 and math.prod(weight[2:]) == 1:
        return Refusal(candidate.node, candidate.op, "gemv", "one pixel: a matrix-vector product is bound by memory")
    return None


def small(graph: gs.Graph, found: Iterable[Candidate], shapes: Shapes, target: Target) -> list[Refusal]:
    """The candidates that are too small to be worth it on a target, as `too_small` says."""
    nodes = {node.name: node for node in graph.nodes}
    refusals = [one for c in found if (one := too_small(c, nodes[c.node], shapes)) is not None]
    if target.engine != "onnxruntime":
        return refusals
    # on a CPU, what is bound by memory gains most from small weights
    return [one for one in refusals if one.rule != "gemv" or one.op not in PRODUCTS]


def not_numbers(found: Iterable[Candidate], histograms: Mapping[str, Histogram]) -> list[Refusal]:
    """The candidates whose activation held infinities or NaN, which a quantized layer would take for numbers."""
    odd = {name: one.nonfinite for name, one in histograms.items() if one.nonfinite}
    why = "{} values of its activation are infinite or no numbers; quantized, they would become numbers"
    return [Refusal(c.node, c.op, "not-finite", why.format(odd[c.activation])) for c in found if c.activation in odd]


def _rows(candidate: Candidate, node: gs.Node, x: tuple[int, ...], matrices: bool) -> int:
    """Rows that one matrix meets: all axes but the depth count, and with a stack of `matrices` those of each."""
    if candidate.op == "Gemm":
        return x[1 if node.attrs.get("transA", 0) else 0]
    return math.prod(x[-2:-1] if matrices else x[:-1])


def decision(refusal: Refusal, high: DType, macs: int) -> Decision:
    """The plan's line for a refusal."""
    return Decision(refusal.node, refusal.op, high, refusal.rule, refusal.why, macs)


def by_activation(found: Iterable[Candidate]) -> Mapping[str, list[Candidate]]:
    """Candidates grouped by the activation they share (q, k and v; gate and up), in graph order."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in found:
        groups.setdefault(candidate.activation, []).append(candidate)
    return groups


def existing(graph: gs.Graph) -> Plan:
    """The plan that a graph with Q/DQ pairs or quantized operators already embodies, of the nodes that multiply."""
    decisions: list[Decision] = []
    for node in graph.nodes:
        if node.op in QUANTIZED_OPS and multiplies(node):
            own = _ALONE[DType.INT8 if node.attrs.get("bits", 4) == 8 else DType.INT4] if node.op == _BLOCKS else None
            rule = "weight-only" if own else "quantized-already"
            decisions.append(Decision(node.name, node.op, own or DType.INT8, rule, "came quantized"))
        if node.op not in LINEAR:
            continue
        types = [_stored_type(tensor) for tensor in node.inputs[:2]]
        precision = types[0] if types[0] is not None and types[0] is types[1] else None
        alone = _alone(node) if types[0] is None and types[1:] and node.op in PRODUCTS else None
        if alone is not None:
            why = "its weight came stored in few bits; its activation is float"
            decisions.append(Decision(node.name, node.op, alone, "weight-only", why))
            continue
        if precision is None:
            why = "not both of its inputs are dequantized"
            decisions.append(Decision(node.name, node.op, DType.FP32, "float", why))
            continue
        decisions.append(Decision(node.name, node.op, precision, "quantized-already", "came quantized"))
    return Plan.of(decisions)


def _alone(node: gs.Node) -> DType | None:
    """What a product with a float activation has its weight stored in; None where that is not few bits."""
    dequantize = dequantizer(node.inputs[1])
    if dequantize is not None and stored_type(dequantize) == FP4:
        return DType.FP4_WEIGHT
    stored = _stored_type(node.inputs[1])
    return None if stored is None else _ALONE.get(stored)


def _stored_type(tensor: gs.Tensor) -> DType | None:
    """What a tensor is dequantized from, seen through operators that only change its view."""
    node = dequantizer(tensor)
    return None if node is None else _STORED.get(stored_type(node))


def smoothable(groups: Mapping[str, Sequence[Candidate]]) -> dict[str, Sequence[Candidate]]:
    """The groups in which no scale came or was given: one that is kept would not fit what smoothing makes."""
    return {
        name: members
        for name, members in groups.items()
        if all(one.scales is None and one.amax is None and one.known is None for one in members)
    }
