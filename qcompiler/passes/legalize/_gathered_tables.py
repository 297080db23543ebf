"""Tables of integers that are gathered from are dequantized first.

    DequantizeLinear(Gather(T₈, ids), s)     ⇒  Gather(DequantizeLinear(T₈, s), ids)
    Cast(Gather(T₈, ids))                    ⇒  Gather(DequantizeLinear(T₈, 1), ids)

The numbers are the same. TensorRT takes a stored integer in front of a DequantizeLinear only, and refuses the other
order after minutes of work. It keeps the table stored as it is: TensorRT-RTX 1.7 makes a plan of 2.7 MB of a table of
2.6 MB in int8, with a scale for all or for each row, where the same table in half makes 5.3 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import INT8, UINT8, block_size, is_dq, scale_of, zero_point_of
from qcompiler.passes.base import Changed, Note
from qcompiler.target import Target

_FP32 = np.dtype(np.float32)
_FLOATS = (_FP32, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def gathered_tables(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """Each Gather of a stored table whose integers all readers turn into floats."""
    names = Names(graph)
    for node in tables(graph):
        readers = graphs.consumers(node.outputs[0])
        for reader, _ in readers:
            _reorder(graph, names, node, reader)
        table = node.inputs[0].name
        edit.remove_node(graph, node)
        yield Changed(node.name, f"table '{table}' is dequantized before it is gathered from")


def tables(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that gather integers out of a constant, which become floats behind them and nowhere else."""
    gathers = (node for node in graph.nodes if graphs.is_op(node, "Gather") and graphs.is_constant(node.inputs[0]))
    stored = (node for node in gathers if graphs.dtype_of(node.inputs[0]) in (INT8, UINT8))
    return [node for node in stored if not graphs.is_output(graph, node.outputs[0]) and _opened_by_all(node)]


def _opened_by_all(gather: gs.Node) -> bool:
    readers = graphs.consumers(gather.outputs[0])
    return bool(readers) and all(index == 0 and _opens(gather, reader) for reader, index in readers)


def _opens(gather: gs.Node, node: gs.Node) -> bool:
    """Whether a node makes floats of gathered integers, by what is known when the engine is built."""
    if is_dq(node):
        known = scale_of(node) is not None and (not graphs.is_present(node, 2) or zero_point_of(node) is not None)
        return known and not block_size(node) and _along(gather, node) is not None
    signed = graphs.dtype_of(gather.inputs[0]) == INT8  # the library takes uint8 in front of a Cast, and int8 not
    return signed and graphs.is_op(node, "Cast") and graphs.np_dtype(node.attrs["to"]) in _FLOATS


def _along(gather: gs.Node, reader: gs.Node) -> int | None:
    """The axis of the table along which the scales of a DQ run, 0 where there is one; None where that is not known."""
    scale = scale_of(reader) if is_dq(reader) else None
    if scale is None or scale.size == 1:
        return 0
    rank, ids = len(gather.inputs[0].shape), graphs.shape_of(gather.inputs[1])
    if ids is None:
        return None
    picked, wide = int(gather.attrs.get("axis", 0)) % rank, rank - 1 + len(ids)
    axis = int(reader.attrs.get("axis", 1)) % wide
    if picked <= axis < picked + len(ids):
        return None  # a scale for each position of the text, and not of the table
    return axis if axis < picked else axis - len(ids) + 1


def _reorder(graph: gs.Graph, names: Names, gather: gs.Node, reader: gs.Node) -> None:
    """Puts a DequantizeLinear and a Gather in the place of a DequantizeLinear, or in front of a Cast."""
    table, ids = gather.inputs[0], gather.inputs[1]
    if is_dq(reader):
        attrs = {**reader.attrs, "axis": _along(gather, reader)} if "axis" in reader.attrs else dict(reader.attrs)
        parameters, out = list(reader.inputs[1:]), reader.outputs[0]
    else:
        ones = (("one", np.ones((), _FP32)), ("zero", np.zeros((), INT8)))
        attrs, parameters = {}, [gs.Constant(names.fresh(f"{table.name}/{kind}"), value) for kind, value in ones]
        out = gs.Variable(names.fresh(f"{gather.outputs[0].name}/float"), _FP32, gather.outputs[0].shape)
    place = edit.index_of(graph, reader)
    if is_dq(reader):
        edit.remove_node(graph, reader)
    else:
        edit.set_input(reader, 0, out)
    floats = gs.Variable(names.fresh(f"{table.name}/float"), graphs.dtype_of(out) or _FP32, table.shape)
    opened = names.fresh(f"{table.name}/DequantizeLinear")
    made = [
        gs.Node("DequantizeLinear", opened, attrs, [table, *parameters], [floats]),
        gs.Node("Gather", names.fresh(f"{gather.name}/float"), dict(gather.attrs), [floats, ids], [out]),
    ]
    edit.insert_at(graph, place, made)
