"""softmax(q · kᵀ) · v: where the two products of an attention may be quantized, as pure functions of a graph.

TensorRT computes them, and what stands between, in one kernel. INT8 and FP8 survive that only as a whole. Found by
building with TensorRT-RTX 1.7, the fused kernel takes

* INT8 where q, k, v, the probabilities and the result are all quantized, heads are 16, 32 or 64 wide and no sequence is
  longer than 512;
* FP8 where q, k, v and the probabilities are quantized (in a graph whose other half is FP32, the result too), heads are
  up to 256 wide and no sequence is shorter than 32, at the smallest shapes of the optimization profile.

Anything less splits it into two products and a softmax, which cost more than 8 bits save.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shapes
from qcompiler.ir.operators import REARRANGES
from qcompiler.target import DType

HEADS = (16, 32, 64)  # of the INT8 kernel
LONGEST = 512
WIDEST = 256  # of the FP8 kernel
SHORTEST = 32
Shape = tuple[int, ...]
_BETWEEN = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity")  # scale and mask


@dataclass(frozen=True, slots=True)
class Attention:
    """The products of one attention.

    Attributes:
        scores: name of the MatMul of q and k.
        context: name of the MatMul of the probabilities and v.
        reads: names of the tensors q, k (as the MatMul reads it), probabilities and v.
        result: name of the tensor that `context` writes, after all nodes behind it that only move values: a pair there
            moves back, and ONNX Runtime 1.31 does not take one in front of a Transpose.
    """

    scores: str
    context: str
    reads: tuple[str, str, str, str]
    result: str


@dataclass(frozen=True, slots=True)
class AttentionAsked:
    """What is asked of the attentions of a model.

    Attributes:
        dtype: INT8 or FP8.
        smallest: shapes of the tensors of attentions at the smallest input that the engine is to take.
        largest: the same at the largest input.
        high: what the rest of the graph computes in.
    """

    dtype: DType
    smallest: Shapes
    largest: Shapes
    high: DType = DType.FP16

    @property
    def result(self) -> bool:
        """Whether the fused kernel is one only if its result is quantized."""
        return self.dtype is DType.INT8 or self.high is DType.FP32


def find_attentions(graph: gs.Graph) -> list[Attention]:
    """The attentions of a normalised graph whose softmax stands between two products of activations, and nothing else.

    Between the first product and the softmax there may be scaling and masking. Every tensor on the way has one reader.
    """
    return [one for node in graph.nodes if graphs.is_op(node, "Softmax") and (one := _around(graph, node)) is not None]


def _around(graph: gs.Graph, softmax: gs.Node) -> Attention | None:
    context = graphs.only_consumer(graph, softmax.outputs[0])
    scores = _scores(graph, softmax.inputs[0])
    if scores is None or not _is_product(context) or context is None or context.inputs[0] is not softmax.outputs[0]:
        return None
    (q, k), (p, v) = scores.inputs, context.inputs
    return Attention(scores.name, context.name, (q.name, k.name, p.name, v.name), _moved(graph, context).name)


def _moved(graph: gs.Graph, node: gs.Node) -> gs.Tensor:
    """What a node writes, after everything that only moves it."""
    tensor = node.outputs[0]
    while (reader := graphs.only_consumer(graph, tensor)) is not None and graphs.is_op(reader, *REARRANGES):
        tensor = reader.outputs[0]
    return tensor


def _scores(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The product behind scaling and masking."""
    waiting = [tensor]
    while waiting:
        tensor = waiting.pop()
        node = graphs.producer(tensor)
        if node is None or graphs.only_consumer(graph, tensor) is None:
            continue
        if _is_product(node):
            return node
        if graphs.is_op(node, *_BETWEEN):
            waiting += [x for x in node.inputs if x.name and not graphs.is_constant(x)]
    return None


def _is_product(node: gs.Node | None) -> bool:
    return graphs.is_op(node, "MatMul") and node is not None and not any(map(graphs.is_constant, node.inputs))


def tensors_for_attention(graph: gs.Graph) -> list[str]:
    """Names of the tensors whose ranges and shapes a quantized attention needs."""
    return list(dict.fromkeys(name for one in find_attentions(graph) for name in (*one.reads, one.result)))


def why_not(one: Attention, asked: AttentionAsked) -> str | None:
    """Which part of the rule an attention misses; None where it can be quantized as a whole."""
    q, _, p, v = (asked.largest.get(name) for name in one.reads)
    least = asked.smallest.get(one.reads[2])
    if q is None or p is None or v is None or least is None or min(map(len, (q, p, v, least))) < 2:
        return "the shapes of its operands are not known"
    if len(q) != 4:
        return f"its operands have {len(q)} axes, not batch, heads, sequence and width"
    return (_why_not_fp8 if asked.dtype is DType.FP8 else _why_not_int8)(q, p, v, least)


def _why_not_int8(q: Shape, p: Shape, v: Shape, least: Shape) -> str | None:
    for width in (q[-1], v[-1]):
        if width not in HEADS:
            return f"its heads are {width} wide, and the fused INT8 kernel takes {', '.join(map(str, HEADS))}"
    if max(p[-2:]) > LONGEST:
        return f"its sequences are up to {max(p[-2:])} long, and the fused INT8 kernel takes {LONGEST}"
    return None


def _why_not_fp8(q: Shape, p: Shape, v: Shape, least: Shape) -> str | None:
    width = max(q[-1], v[-1])
    if width > WIDEST:
        return f"its heads are {width} wide, and the fused FP8 kernel takes up to {WIDEST}"
    if min(least[-2:]) < SHORTEST:
        return (
            f"its sequences may be as short as {min(least[-2:])}, and the fused FP8 kernel takes {SHORTEST} and more: "
            "give a longer smallest shape with --shapes"
        )
    return None


def reads(
    graph: gs.Graph, one: Attention, quantized: Collection[str], *, result: bool = True
) -> dict[str, tuple[int, ...]]:
    """Which inputs of which nodes are to be read through pairs, for all that the fused kernel touches to be quantized.

    What only quantized layers read needs no other pair than theirs.

    Args:
        graph: normalised float graph.
        one: the attention.
        quantized: names of the layers that compute in the same format.
        result: the result must be quantized as well.

    Returns:
        Input indices by node name. Empty if the result is an output of the graph, which no pair can stand in front of.
    """
    found: dict[str, tuple[int, ...]] = {one.scores: (0, 1), one.context: (0, 1)}
    if not result:
        return found
    written = next(tensor for tensor in graphs.tensors(graph) if tensor.name == one.result)
    if graphs.is_output(graph, written):
        return {}
    for node, index in graphs.consumers(written):
        if node.name not in quantized:
            found[node.name] = (*found.get(node.name, ()), index)
    return found
