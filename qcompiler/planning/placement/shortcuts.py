"""Which shortcuts of residual connections belong between Q/DQ pairs, beside the inputs of weighted layers.

`placement.candidates` looks at one layer. Here is the rule of TensorRT's developer guide that looks at what joins two,
as pure functions of a graph and a target: "quantize the residual input in skip connections".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import ACTIVATIONS
from qcompiler.plan import Candidate, Refusal
from qcompiler.target import Target


@dataclass(frozen=True, slots=True)
class Shortcut:
    """An Add that joins what a convolution writes with a shortcut around it.

    Attributes:
        add: name of the Add.
        conv: name of the Conv that the Add fuses with.
        tensor: name of the tensor that comes the other way.
        index: which input of the Add the shortcut is.
    """

    add: str
    conv: str
    tensor: str
    index: int


def find_shortcuts(graph: gs.Graph) -> tuple[list[Shortcut], list[Refusal]]:
    """The residual Adds of a normalised graph, and those in which no convolution can fuse with the Add.

    The convolution that fuses is the one which alone the Add reads. Where that holds for both inputs (a downsampling
    convolution on the shortcut), it is the one on the longer way from where the two ways part.
    """
    found: list[Shortcut] = []
    refused: list[Refusal] = []
    for node in graph.nodes:
        if not graphs.is_op(node, "Add") or any(map(graphs.is_constant, node.inputs)) or _broadcasts(node):
            continue
        fused = [_fusing(graph, tensor) for tensor in node.inputs]
        if fused[0] is not None and fused[1] is not None:
            left, right = _ways(node)
            fused[0 if left < right else 1] = None
        if fused[0] is None and fused[1] is None:
            why = next((why for why in map(_why_not, node.inputs) if why), None)
            if why is not None:
                refused.append(Refusal(node.name, node.op, "residual-float", why))
            continue
        conv, index = (fused[0], 1) if fused[0] is not None else (fused[1], 0)
        shortcut = node.inputs[index]
        if graphs.is_op(graphs.producer(shortcut), "DequantizeLinear"):
            refused.append(Refusal(node.name, node.op, "quantized-already", "its shortcut came quantized"))
        elif conv is not None:
            found.append(Shortcut(node.name, conv.name, shortcut.name, index))
    return found, refused


def tensors_for_shortcuts(graph: gs.Graph, target: Target, found: Sequence[Candidate]) -> list[str]:
    """Names of the tensors whose ranges `shortcuts` needs if all candidates are quantized; none where nothing gains."""
    if not target.quantize_residual:
        return []
    nodes = {candidate.node for candidate in found}
    return list(dict.fromkeys(one.tensor for one in find_shortcuts(graph)[0] if one.conv in nodes))


def shortcuts(graph: gs.Graph, target: Target, quantized: Collection[str]) -> tuple[list[Shortcut], list[Refusal]]:
    """The residual Adds whose shortcuts are to be quantized, and why the other ones are not.

    Args:
        graph: normalised float graph.
        target: only TensorRT fuses the Add with quantized operands.
        quantized: names of the nodes that compute in INT8.
    """
    found, refused = find_shortcuts(graph)
    chosen: list[Shortcut] = []
    for one in found:
        why = None
        if one.conv not in quantized:
            why = f"its convolution '{one.conv}' stays float, so the Add does too"
        elif not target.quantize_residual:
            why = (
                f"{target.engine} writes '{one.conv}' as floats whether its shortcut is quantized or not: "
                "a pair would cost accuracy and gain nothing"
            )
        if why is None:
            chosen.append(one)
        else:
            refused.append(Refusal(one.add, "Add", "residual-float", why))
    return chosen, refused


def _fusing(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The Conv behind a tensor that only one node reads, also through a BatchNormalization that was left."""
    if graphs.only_consumer(graph, tensor) is None:
        return None
    node = graphs.producer(tensor)
    if graphs.is_op(node, "BatchNormalization") and node is not None:
        return _fusing(graph, node.inputs[0])
    return node if graphs.is_op(node, "Conv") else None


def _why_not(tensor: gs.Tensor) -> str | None:
    """Why the convolution that an input of an Add comes from does not fuse with it; None if it comes from none."""
    through = None
    node = graphs.producer(tensor)
    while node is not None and graphs.is_op(node, *ACTIVATIONS):
        through = through or node
        node = graphs.producer(next((x for x in node.inputs if not graphs.is_constant(x)), node.inputs[0]))
    if node is None or not graphs.is_op(node, "Conv"):
        return None
    if through is not None:
        return f"{through.op} '{through.name}' stands between '{node.name}' and the Add, so they do not fuse"
    return f"what '{node.name}' writes is read elsewhere too, so it does not fuse with the Add"


def _broadcasts(node: gs.Node) -> bool:
    """Whether the two inputs are known to have different shapes."""
    left, right = (graphs.shape_of(tensor) for tensor in node.inputs)
    if left is None or right is None:
        return False
    fixed = [(a, b) for a, b in zip(left, right, strict=False) if isinstance(a, int) and isinstance(b, int)]
    return len(left) != len(right) or any(a != b for a, b in fixed)


def _ways(node: gs.Node) -> tuple[int, int]:
    """Number of nodes on the two ways from where they part to the Add; 0 where they never meet."""
    left, right = (dict(_ancestors(tensor)) for tensor in node.inputs)
    shared = left.keys() & right.keys()
    if not shared:
        return 0, 0
    nearest = min(shared, key=lambda key: left[key] + right[key])
    return left[nearest], right[nearest]


def _ancestors(tensor: gs.Tensor) -> Iterator[tuple[int, int]]:
    """id and smallest distance of everything that a tensor is computed from, nearest first."""
    seen = {id(tensor)}
    level, distance = [tensor], 0
    while level:
        yield from ((id(one), distance) for one in level)
        above = [x for one in level if (node := graphs.producer(one)) is not None for x in node.inputs]
        level = [x for x in {id(x): x for x in above}.values() if id(x) not in seen and not graphs.is_constant(x)]
        seen.update(map(id, level))
        distance += 1
