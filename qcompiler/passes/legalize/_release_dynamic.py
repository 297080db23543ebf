"""Dynamic quantization, whose scales exist at run time only, becomes float products that can be quantized statically.

    DynamicQuantizeLinear(x) → q, s, z;  Mul(Cast(MatMulInteger(q, w₈, z)), s · s_w)  ⇒  MatMul(x, DQ(w₈, s_w))

The weight keeps its integers and scales. Rules over a graph for `release_quantizers`, with a note for every float
tensor that lost its quantizer; no pass of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.base import Changed, Note, Released
from qcompiler.passes.legalize.convert_qoperator import FP32

_WHY = "its scale is found at run time"
_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def integer_products(graph: gs.Graph) -> Iterator[Note]:
    """MatMulInteger and ConvInteger as `quantize_dynamic` of ONNX Runtime writes them."""
    if not any(graphs.is_op(node, *_PRODUCTS) for node in graph.nodes):
        return
    names = Names(graph)
    for node in list(graph.nodes):
        if not graphs.is_op(node, *_PRODUCTS):
            continue
        quantizer, zero = graphs.producer(node.inputs[0]), node.inputs[2] if graphs.is_present(node, 2) else None
        if quantizer is None or not graphs.is_op(quantizer, "DynamicQuantizeLinear", "Gather"):
            continue
        if graphs.is_op(quantizer, "Gather"):
            yield from _of_table(graph, names, node, quantizer, zero)
            continue
        if zero is not quantizer.outputs[2]:
            continue
        found = _scaled(graph, node, quantizer.outputs[1])
        if found is None:
            continue
        last, step = found
        weight = _weight(graph, names, node, step)
        if weight is None:
            continue
        op, name, attrs = _PRODUCTS[node.op], node.name, dict(node.attrs)
        source, out, old = quantizer.inputs[0], last.outputs[0], node.op
        at = edit.index_of(graph, last)
        edit.remove_nodes(graph, [last])
        made = gs.Node(op, names.fresh(f"{name}/{op}"), attrs, [source, weight])
        _write(made, out)
        edit.insert_at(graph, at, [made])
        yield Changed(made.name, f"{old} with scales found at run time became a float {op}")
        yield Released(source.name, _WHY)


def _of_table(graph: gs.Graph, names: Names, node: gs.Node, gather: gs.Node, zero: gs.Tensor | None) -> Iterator[Note]:
    """MatMulInteger of rows of a stored table: float(rows - zero) @ DQ(w₈, s), with s the scale of both."""
    cast = graphs.only_consumer(graph, node.outputs[0])
    last = graphs.only_consumer(graph, cast.outputs[0]) if cast is not None and graphs.is_op(cast, "Cast") else None
    if cast is None or last is None or not graphs.is_op(last, "Mul"):
        return
    scale = _constant_product(last.inputs[1] if last.inputs[0] is cast.outputs[0] else last.inputs[0])
    table, offset = gather.inputs[0], None if zero is None else graphs.constant_value(zero)
    if scale is None or not graphs.is_constant(table) or (zero is not None and (offset is None or offset.size != 1)):
        return
    weight = _weight(graph, names, node, gs.Constant(names.fresh(f"{node.name}/scale"), scale))
    if weight is None:
        return
    rows = gs.Variable(names.fresh(f"{gather.outputs[0].name}/float"), FP32, gather.outputs[0].shape)
    dtype = graphs.dtype_of(table) or np.dtype(np.uint8)
    opened = [
        gs.Constant(names.fresh(f"{table.name}/one"), np.ones((), np.float32)),
        gs.Constant(names.fresh(f"{table.name}/zero"), np.zeros((), dtype) if offset is None else offset.reshape(())),
    ]
    at, out, name, old = edit.index_of(graph, last), last.outputs[0], node.name, node.op
    edit.remove_nodes(graph, [last])
    back = gs.Node(
        "DequantizeLinear", names.fresh(f"{name}/DequantizeLinear"), {}, [gather.outputs[0], *opened], [rows]
    )
    made = gs.Node(_PRODUCTS[old], names.fresh(f"{name}/{_PRODUCTS[old]}"), {}, [rows, weight])
    _write(made, out)
    edit.insert_at(graph, at, [back, made])
    edit.remove_nodes(graph, [cast, node])
    yield Changed(made.name, f"{old} of a stored table became a float {made.op}")


def _constant_product(tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
    """A constant, or the product of two."""
    value, node = graphs.constant_value(tensor), graphs.producer(tensor)
    if value is not None or node is None or not graphs.is_op(node, "Mul"):
        return value
    parts = [graphs.constant_value(one) for one in node.inputs]
    return None if parts[0] is None or parts[1] is None else parts[0] * parts[1]


def float_inputs(graph: gs.Graph) -> Iterator[Note]:
    """DynamicQuantizeMatMul, and MatMulIntegerToFloat behind DynamicQuantizeLinear, of ONNX Runtime's own domain."""
    if not any(node.domain == MICROSOFT for node in graph.nodes):
        return
    names = Names(graph)
    for node in list(graph.nodes):
        if node.domain != MICROSOFT or node.op not in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
            continue
        source, scale, zero, bias = node.inputs[0], 2, 3, 4
        if node.op == "MatMulIntegerToFloat":
            quantizer = graphs.producer(source)
            if quantizer is None or not graphs.is_op(quantizer, "DynamicQuantizeLinear"):
                continue
            source, scale, zero, bias = quantizer.inputs[0], 3, 5, 6
        constants = [node.inputs[1], node.inputs[scale]]
        if any(graphs.constant_value(one) is None for one in constants):
            continue
        offset = node.inputs[zero] if graphs.is_present(node, zero) else None
        weight = _dequantize(graph, names, node.inputs[1], node.inputs[scale], offset, "MatMul")
        extra = node.inputs[bias] if graphs.is_present(node, bias) else None
        out, name, op, at = node.outputs[0], node.name, node.op, edit.index_of(graph, node)
        edit.remove_node(graph, node)
        product = out if extra is None else gs.Variable(names.fresh(f"{out.name}/product"), FP32, out.shape)
        made = [gs.Node("MatMul", name, {}, [source, weight])]
        _write(made[0], product)
        if extra is not None:
            made.append(gs.Node("Add", names.fresh(f"{name}/Add"), {}, [product, extra]))
            _write(made[1], out)
        edit.insert_at(graph, at, made)
        yield Changed(name, f"{op} with scales found at run time became a float MatMul")
        yield Released(source.name, _WHY)


def dynamic_pairs(graph: gs.Graph) -> Iterator[Note]:
    """DynamicQuantizeLinear → DequantizeLinear passes its input on."""
    for node in list(graph.nodes):
        before = graphs.producer(node.inputs[0]) if graphs.is_op(node, "DequantizeLinear") else None
        if before is None or not graphs.is_op(before, "DynamicQuantizeLinear"):
            continue
        edit.set_input(node, 0, before.inputs[0])
        become_identity(node)
        yield Changed(node.name, "pair with a scale found at run time dropped: its input is passed on in float")
        yield Released(node.inputs[0].name, _WHY)


def become_identity(node: gs.Node) -> None:
    """Turns a Q or DQ into an Identity, which the clean-up removes where the graph's interface allows."""
    node.op, node.domain = "Identity", None
    node.attrs.clear()
    drop_inputs(node, 1)


def drop_inputs(node: gs.Node, kept: int) -> None:
    """Takes all inputs from index `kept` off a node."""
    while len(node.inputs) > kept:
        spare = gs.Variable("")
        edit.set_input(node, len(node.inputs) - 1, spare)
        list.pop(node.inputs)


def _scaled(graph: gs.Graph, node: gs.Node, scale: gs.Tensor) -> tuple[gs.Node, gs.Tensor] | None:
    """The Mul that gives an integer product its scale, and the weight's share of that scale."""
    cast = graphs.only_consumer(graph, node.outputs[0])
    last = graphs.only_consumer(graph, cast.outputs[0]) if cast is not None and graphs.is_op(cast, "Cast") else None
    if cast is None or last is None or not graphs.is_op(last, "Mul"):
        return None
    other = last.inputs[1] if last.inputs[0] is cast.outputs[0] else last.inputs[0]
    if other is scale:  # the weight's own scale is 1, or multiplied later
        return last, gs.Constant("one", np.ones((), np.float32))
    both = graphs.producer(other)
    if both is None or not graphs.is_op(both, "Mul"):
        return None
    for mine, rest in ((0, 1), (1, 0)):
        if both.inputs[mine] is scale:
            return last, both.inputs[rest]
    return None


def _weight(graph: gs.Graph, names: Names, node: gs.Node, step: gs.Tensor) -> gs.Tensor | None:
    """The weight in floats: behind a DQ, or what it was before it was quantized at run time as well."""
    tensor = node.inputs[1]
    before = graphs.producer(tensor)
    if graphs.is_op(before, "DynamicQuantizeLinear") and before is not None and step is before.outputs[1]:
        source: gs.Tensor = before.inputs[0]
        return source
    if graphs.constant_value(tensor) is None or graphs.constant_value(step) is None:
        return None
    zero = node.inputs[3] if graphs.is_present(node, 3) else None
    return _dequantize(graph, names, tensor, step, zero, _PRODUCTS[node.op])


def _dequantize(
    graph: gs.Graph, names: Names, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, op: str
) -> gs.Tensor:
    values, steps = graphs.constant_value(tensor), graphs.constant_value(scale)
    rank = 2 if values is None else values.ndim
    steps = np.ones(1, np.float32) if steps is None else steps.reshape(-1)
    offset = None if zero is None else graphs.constant_value(zero)
    dtype = graphs.dtype_of(tensor) or np.dtype(np.uint8)
    offsets = np.zeros(steps.shape, dtype) if offset is None else np.broadcast_to(offset.reshape(-1), steps.shape)
    one = steps.size == 1
    parts = [
        gs.Constant(names.fresh(f"{tensor.name}/{kind}"), np.array(array.reshape(() if one else (-1,))))
        for kind, array in (("scale", steps.astype(np.float32)), ("zero_point", offsets.astype(dtype)))
    ]
    out = gs.Variable(names.fresh(f"{tensor.name}/dequantized"), FP32, tensor.shape)
    attrs = {} if one else {"axis": 0 if op == "Conv" else rank - 1}
    name = names.fresh(f"{tensor.name}/DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", name, attrs, [tensor, *parts], [out]))
    return out


def _write(node: gs.Node, tensor: gs.Tensor) -> None:
    list.append(node.outputs, tensor)
    list.append(tensor.inputs, node)
