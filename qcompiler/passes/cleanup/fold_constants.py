"""What can be computed now is computed now.

Concat([1], [-1]) → Reshape     ⇒  Reshape([1, -1])
Shape(x: 4×8)                   ⇒  [4, 8]
Gather(Shape(x: batch×8), 1)    ⇒  8
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import QCompilerError
from qcompiler.ir.edit import add_constant, remove_nodes, set_input
from qcompiler.ir.graph import (
    constant_value,
    consumers,
    dtype_of,
    graphs,
    is_constant,
    is_linear,
    is_op,
    is_output,
    is_standard,
    permutation,
    producer,
    shape_of,
    subgraphs,
    values_of,
)
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.runtime.one_node import inferred_bytes, run_node
from qcompiler.runtime.randomness import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray


_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant, and shapes that are fixed, by their values.

    ONNX Runtime computes the values. A result stays a node where it would let the model grow by more than `max_bytes`
    (initializers that die with the node count against it); a Transpose between a weight and its reader is a view and
    costs nothing. Random operators, Q/DQ of weights, nodes with nested graphs
    and foreign domains are left alone.
    """

    max_bytes: int = 1 << 20

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node, in graph order, so that a folded node makes the next one foldable."""
        for inner in graphs(graph):
            yield from self._one(inner, int(graph.opset))

    def _one(self, graph: gs.Graph, opset: int) -> Iterator[Note]:
        folded: list[gs.Node] = []
        for node in graph.nodes:
            known = fixed_shape(node)
            if known is None:
                known = _transposed_weight(node)
            if known is None and not _computable(node):
                continue
            refusal = _refusal(graph, node)
            if refusal:
                yield Skipped(node.name, refusal)
                continue
            result = [known] if known is not None else self._compute(node, opset)
            if isinstance(result, str):
                yield Skipped(node.name, result)
                continue
            for output, values in zip(node.outputs, result, strict=True):
                _replace(output, values)
            folded.append(node)
            yield Changed(node.name, f"{node.op} computed: {', '.join(map(_describe, result))}")
        remove_nodes(graph, folded)

    def _compute(self, node: gs.Node, opset: int) -> list[NDArray[Any]] | str:
        """The values of all outputs, or why they are not wanted."""
        dying = _dying_bytes(node)
        limit = self.max_bytes + dying
        expected = inferred_bytes(node, opset)
        if expected is not None and expected > limit:
            return _too_large(expected, dying, self.max_bytes)
        try:
            values = run_node(node, opset)
        except QCompilerError as error:
            return f"ONNX Runtime cannot compute it: {error}"
        size = sum(value.nbytes for value in values)
        return values if size <= limit else _too_large(size, dying, self.max_bytes)


def fixed_shape(node: gs.Node) -> NDArray[Any] | None:
    """What Shape, Size, or a Gather from a Shape gives where the dimensions in question are fixed; else None."""
    if is_op(node, "Shape"):
        return _static(_dims(node))
    if is_op(node, "Size"):
        whole = _static(shape_of(node.inputs[0]))
        return None if whole is None else np.asarray(math.prod(whole.tolist()), np.int64)
    if not is_op(node, "Gather") or not is_op(producer(node.inputs[0]), "Shape"):
        return None
    dims = _dims(node.inputs[0].inputs[0])
    picks = constant_value(node.inputs[1])
    if dims is None or picks is None or not all(-len(dims) <= pick < len(dims) for pick in picks.reshape(-1)):
        return None
    chosen = _static(tuple(dims[int(pick)] for pick in picks.reshape(-1)))
    return None if chosen is None else chosen.reshape(picks.shape)


def _transposed_weight(node: gs.Node) -> NDArray[Any] | None:
    """A weight read through a Transpose, as a view: no copy is made, so it does not matter who else reads it."""
    if not is_op(node, "Transpose") or not is_constant(node.inputs[0]):
        return None
    readers = consumers(node.outputs[0])
    if not readers or not all(is_linear(user) and index == 1 for user, index in readers):
        return None
    values = values_of(node.inputs[0])
    return values.transpose(permutation(node, values.ndim))


def _dims(node: gs.Node) -> tuple[int | str | None, ...] | None:
    shape = shape_of(node.inputs[0])
    return None if shape is None else shape[int(node.attrs.get("start", 0)) : node.attrs.get("end")]


def _static(dims: tuple[int | str | None, ...] | None) -> NDArray[Any] | None:
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return np.asarray(dims, np.int64)


def _computable(node: gs.Node) -> bool:
    given = [tensor for tensor in node.inputs if tensor.name]
    return bool(given) and all(is_constant(tensor) for tensor in given)


def _refusal(graph: gs.Graph, node: gs.Node) -> str:
    if not is_standard(node):
        return f"operator of domain '{node.domain}'"
    if subgraphs(node):
        return "it carries nested graphs"
    if draws(node):
        return "its result is random"
    if node.op in _QUANTIZED:
        return "quantized weights stay quantized"
    kept = next((output.name for output in node.outputs if is_output(graph, output)), None)
    if kept is not None:
        return f"its result '{kept}' is a graph output"
    strange = next((t.name for t in node.inputs if t.name and not _runnable(dtype_of(t))), None)
    return f"'{strange}' has a type that is not computed here" if strange is not None else ""


def _runnable(dtype: np.dtype[Any] | None) -> bool:
    return dtype is None or (
        dtype.kind in "biuf" and dtype.isnative and dtype.itemsize <= 8 and dtype.type.__module__ == "numpy"
    )


def _dying_bytes(node: gs.Node) -> int:
    own = {id(t): t for t in node.inputs if is_constant(t) and all(user is node for user, _ in consumers(t))}
    return sum(math.prod(t.shape) * (dtype_of(t) or np.dtype(np.int8)).itemsize for t in own.values())


def _too_large(size: int, dying: int, limit: int) -> str:
    return f"its result of {size} bytes would replace {dying} bytes: more than max_bytes={limit} larger"


def _replace(output: gs.Tensor, values: NDArray[Any]) -> None:
    if not output.name:
        return
    constant = add_constant(output.name, values)
    for user, index in consumers(output):
        set_input(user, index, constant)


def _describe(values: NDArray[Any]) -> str:
    return str(values.tolist()) if values.size <= 8 else f"{values.dtype}{list(values.shape)}"
