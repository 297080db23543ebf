"""Which products get a weight in few bits, and in which form: rules over one node, each with an id and a reason.

The rules of `qcompiler.planning.placement.candidates` about what a weight is come first. Matrix-vector products and
short rows, which INT8 activations leave alone, are what gains most here: they wait for their weights.

    int4   blocks of 128, 64 or 32 input channels, whichever of the asked size or below divides the depth
    int8   a scale per output channel; also what an int4-weight model stores where no block divides the depth

TensorRT-RTX 1.7 fuses both with MatMul and Gemm. Not so a convolution, a weight with an odd side, or one of a single
block: behind a kernel that dequantizes the whole weight on every run, these compute in float, which is slower than to
leave them alone. So convolutions and odd sides stay as they are, and there are always two blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import linear
from qcompiler.ir.operators import PRODUCTS
from qcompiler.numerics.blocks import SIZES, Format, fitting
from qcompiler.passes.quantize.store_tables import is_table
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement.candidates import SMALLEST_GEMM, find_candidates
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.target import DType, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray


WIDE = 4  # times as many outputs as inputs: a vocabulary
_BEHIND = ("Add", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Mul", "Div", "Tanh")
_FARTHEST = 8


@dataclass(frozen=True)
class WeightOnlyOptions:
    """What is asked for.

    Attributes:
        precision: `int8-weight` or `int4-weight`.
        table: the recipe's.
        target: engines differ in what they multiply, and in what everything else computes in.
        keep: regular expressions; a node whose name one of them matches anywhere keeps its weight.
    """

    precision: str
    table: WeightOnlyTable
    target: Target
    keep: tuple[str, ...] = ()

    @property
    def half(self) -> bool:
        """Whether scales have to be numbers that 16 bits hold."""
        return self.target.high_precision is not DType.FP32


@dataclass(frozen=True, slots=True)
class StorableLayer:
    """A product whose weight is stored in few bits.

    Attributes:
        node: its name.
        op: MatMul or Gemm.
        activation: what it reads, of which the last dimension are the input channels.
        depth: input channels K.
        width: outputs N.
        format: `int4` or `int8`.
        size: input channels that share a scale; None for one scale per output.
        why: what is special about it, as the end of a sentence; mostly empty.
        tied: name of the Gather whose table holds the same numbers; empty where there is none.
    """

    node: str
    op: str
    activation: str
    depth: int
    width: int
    format: Format
    size: int | None
    why: str = ""
    tied: str = ""

    @property
    def dtype(self) -> DType:
        """What the plan calls it."""
        return DType.INT4_WEIGHT if self.format == "int4" else DType.INT8_WEIGHT


def find_storable(graph: gs.Graph, options: WeightOnlyOptions) -> tuple[list[StorableLayer], list[Refusal]]:
    """The layers in graph order, and all other linear or recurrent nodes with the reason why they stay as they are.

    Args:
        graph: normalised float graph.
        options: what is asked for.
    """
    layers = find_candidates(graph, options.target, options.keep)
    refused = list(layers.refused)
    nodes = {node.name: node for node in graph.nodes}
    tables = [node for node in graph.nodes if graphs.is_op(node, "Gather") and graphs.is_constant(node.inputs[0])]
    found: list[StorableLayer] = []
    for one in layers.found:
        verdict = _judge(graph, nodes[one.node], one, options, tables)
        if isinstance(verdict, StorableLayer):
            found.append(verdict)
        else:
            refused.append(Refusal(one.node, one.op, *verdict))
    return found, refused


def find_tables(graph: gs.Graph, options: WeightOnlyOptions) -> tuple[str, ...]:
    """Names of the nodes that gather from an embedding that is worth storing in INT8.

    None for ONNX Runtime, which opens such a table whole when a session begins.

    Args:
        graph: normalised float graph.
        options: what is asked for.
    """
    if options.target.engine == "onnxruntime" or options.table.tables == "float":
        return ()
    patterns = [re.compile(text) for text in options.keep]
    found = (node for node in graph.nodes if is_table(node) and min(node.inputs[0].shape) >= SMALLEST_GEMM)
    return tuple(node.name for node in found if not any(one.search(node.name) for one in patterns))


def by_activation(layers: Iterable[StorableLayer]) -> Mapping[str, list[StorableLayer]]:
    """Layers grouped by what they read, in graph order."""
    groups: dict[str, list[StorableLayer]] = {}
    for one in layers:
        groups.setdefault(one.activation, []).append(one)
    return groups


def matrix(node: gs.Node) -> NDArray[np.float32]:
    """The weight of a layer's node, [K, N]."""
    found = linear.matrix(node)
    assert found is not None  # `find` has looked
    return found


def _judge(
    graph: gs.Graph, node: gs.Node, one: Candidate, options: WeightOnlyOptions, tables: Iterable[gs.Node]
) -> StorableLayer | tuple[str, str]:
    """The layer, or rule and reason."""
    if one.scales is not None:
        return "weight-only", "its weight came stored as INT8 and stays so"
    if one.amax is not None:
        return "quantized-activation", (
            "its activation came quantized, and engines multiply weights in few bits with float activations only"
        )
    if one.op not in PRODUCTS:
        return "no-kernel", (
            f"engines run a {one.op} in float and would dequantize its whole weight in a kernel of its own every time"
        )
    if node.attrs.get("transA", 0):
        return (
            "no-kernel",
            "its activation is transposed (transA), so its rows are not what a weight's depth multiplies",
        )
    shape = linear.matrix_shape(node)
    if shape is None:
        return "not-matrix", "its weight has more than two dimensions, or is reshaped on the way in a form not followed"
    depth, width = shape
    if min(depth, width) < SMALLEST_GEMM:
        return "tiny", f"a {depth}x{width} weight is smaller than one tensor-core tile, and takes next to no memory"
    if (width % 2 or depth % 2) and options.target.engine == "tensorrt-rtx":
        return "odd-size", (
            f"its weight is {depth}x{width}, and TensorRT-RTX dequantizes the whole weight on every run where a side "
            "is odd"
        )
    tied = next((table.name for table in tables if _same(table, node, shape)), "")
    head = bool(tied) or (width >= WIDE * depth and _ends(graph, node))
    wanted = options.table
    if head and wanted.head == "float":
        return "head", "it gives the logits, and weight_only.head = 'float' leaves them alone"
    layer = StorableLayer(one.node, one.op, node.inputs[0].name, depth, width, "int8", None, tied=tied)
    if options.precision == "int8-weight":
        return layer
    if head and wanted.head == "int8":
        return _with(layer, "int8", None, "INT8, because it gives the logits (weight_only.head)")
    size = fitting(depth, wanted.block_size)
    if size is None:
        why = f"INT8, because its depth of {depth} is not made of two or more blocks of {_listed(wanted.block_size)}"
        return _with(layer, "int8", None, why)
    why = (
        ""
        if size == wanted.block_size
        else f"because its depth of {depth} is not made of blocks of {wanted.block_size}"
    )
    return _with(layer, "int4", size, why)


def _with(layer: StorableLayer, format: Format, size: int | None, why: str) -> StorableLayer:
    return replace(layer, format=format, size=size, why=why)


def _listed(most: int) -> str:
    return " or ".join(str(size) for size in SIZES if size <= most)


def _same(table: gs.Node, node: gs.Node, matrix_shape: tuple[int, int]) -> bool:
    """Whether an embedding holds the numbers of a node's weight [K, N], as [N, K] or [K, N]."""
    held = table.inputs[0]
    shape = tuple(int(dim) for dim in held.shape)
    if shape not in (matrix_shape, matrix_shape[::-1]) or graphs.dtype_of(held) != np.float32:
        return False
    values = graphs.values_of(held)
    return np.array_equal(values if shape == matrix_shape and shape[0] != shape[1] else values.T, matrix(node))


def _ends(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether what a node computes leaves the graph, perhaps with a bias or a scale on the way."""
    tensor = node.outputs[0]
    for _ in range(_FARTHEST):
        if graphs.is_output(graph, tensor):
            return True
        readers = [reader for reader, _ in graphs.consumers(tensor)]
        if len(readers) != 1 or not graphs.is_op(readers[0], *_BEHIND):
            return False
        tensor = readers[0].outputs[0]
    return False
