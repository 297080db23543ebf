"""Gather(T, ids)  ⇒  Gather(DQ(T₈), ids): embeddings in INT8, a scale per row, once where they are a weight, too.

    Gather(T), MatMul(x, DQ(W₈))   where W = Tᵀ   ⇒   DQ(T₈) → Gather,  DQ(T₈) → Transpose → MatMul

In small language models the vocabulary is most of the weights, and it stands there twice: as the table of the first
node and as the weight of the last one. TensorRT-RTX 1.7 gathers from integers in a fused kernel, and multiplies a
stored weight behind a Transpose as it does without one (found by building both and reading the plan).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import INT8, dequantizer, scale_of, stored_type
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LARGEST = 127


@dataclass(frozen=True)
class StoreTables(Pass):
    """Store the tables of embeddings in INT8 with a scale per row.

    Attributes:
        tables: names of Gather nodes that read a float matrix along axis 0, and for each the product whose stored
            weight is the same matrix, transposed; empty where there is none.
    """

    tables: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node of `tables`, in graph order."""
        names = Names(graph)
        nodes = {node.name: node for node in graph.nodes}
        stored: dict[int, gs.Variable] = {}
        for name, product in self.tables.items():
            node = nodes.get(name)
            if node is None or not is_table(node):
                yield Skipped(name, "it gathers no rows of a float matrix")
                continue
            table = node.inputs[0]
            shared = _shared(nodes.get(product))
            if id(table) not in stored:
                stored[id(table)] = _dequantized(graph, names, table, shared)
            edit.set_input(node, 0, stored[id(table)])
            if shared is not None:
                _read_transposed(graph, names, nodes[product], stored[id(table)])
            told = f", which '{product}' multiplies with" if shared is not None else ""
            yield Changed(name, f"table {list(table.shape)} stored as INT8, a scale per row{told}")
        edit.sort(graph)


def is_table(node: gs.Node) -> bool:
    """Whether a node gathers rows of a float matrix that is constant."""
    if not graphs.is_op(node, "Gather") or int(node.attrs.get("axis", 0)) not in (0, -2):
        return False
    table = node.inputs[0]
    return graphs.is_constant(table) and len(table.shape) == 2 and graphs.dtype_of(table) == np.float32


def _shared(product: gs.Node | None) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Integers [rows, depth] and scales [rows] of a product's stored weight; None where it is not stored so."""
    back = None if product is None else dequantizer(product.inputs[1])
    scales = None if back is None else scale_of(back)
    values = None if back is None else graphs.constant_value(back.inputs[0])
    if back is None or scales is None or values is None or stored_type(back) != INT8 or values.ndim != 2:
        return None
    if scales.shape != (values.shape[1],) or int(back.attrs.get("axis", 1)) != 1:
        return None
    return np.ascontiguousarray(values.T), scales.astype(np.float32)


def rounded(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and scales [rows] of a table [rows, width]; a row of zeros has scale 1."""
    amax = np.abs(table).max(axis=1, initial=0.0)
    scales = np.where(amax > 0, amax / _LARGEST, 1).astype(np.float32)
    values = np.clip(np.rint(table / scales[:, None]), -_LARGEST, _LARGEST)
    return values.astype(np.int8), scales


def _dequantized(
    graph: gs.Graph,
    names: Names,
    table: gs.Constant,
    shared: tuple[NDArray[np.int8], NDArray[np.float32]] | None,
) -> gs.Variable:
    values, scales = rounded(graphs.values_of(table)) if shared is None else shared
    parts = (("int8", values), ("scale", scales), ("zero_point", np.zeros(scales.shape, np.int8)))
    inputs = [gs.Constant(names.fresh(f"{table.name}/{kind}"), array) for kind, array in parts]
    out = gs.Variable(names.fresh(f"{table.name}/dequantized"), np.float32, list(values.shape))
    graph.nodes.insert(
        0, gs.Node("DequantizeLinear", names.fresh(f"{table.name}/DequantizeLinear"), {"axis": 0}, inputs, [out])
    )
    return out


def _read_transposed(graph: gs.Graph, names: Names, product: gs.Node, table: gs.Variable) -> None:
    """Makes a product multiply with the table, and takes out the copy that it had."""
    old = graphs.producer(product.inputs[1])
    turned = gs.Variable(names.fresh(f"{table.name}/transposed"), np.float32, list(reversed(table.shape)))
    turn = gs.Node("Transpose", names.fresh(f"{table.name}/Transpose"), {"perm": [1, 0]}, [table], [turned])
    edit.insert_before(graph, product, turn)
    edit.set_input(product, 1, turned)
    if old is not None and not graphs.consumers(old.outputs[0]):
        edit.remove_node(graph, old)
