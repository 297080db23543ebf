"""Element types as ONNX's own operator schemas give them: what each tensor holds, and which inputs may change type.

A schema names the type of each input and output either outright (`tensor(float)`) or by a variable (`T`) with a list
of types that it may stand for. A node can move to another float type only where each variable that stands for FP32
allows that type; inputs that are `tensor(float)` outright, such as the scales of Resize, stay FP32 forever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.target import DType

FP32 = np.dtype(np.float32)
Types = dict[int, "np.dtype[Any]"]  # by id(tensor)

_ONNX_NAMES = {DType.FP16: "tensor(float16)", DType.BF16: "tensor(bfloat16)"}
# Their results have the type that an attribute states, or FP32 where it is left out.
_STATED = frozenset(
    {"RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"}
)
# Variables that stand for something else than the data: regions, statistics, indices, ratios.
_FIXED = {
    ("Resize", "T2"),
    ("LayerNormalization", "U"),
    ("OneHot", "T1"),
    ("OneHot", "T2"),
    ("Dropout", "T1"),
    ("Dropout", "T2"),
}


@dataclass(frozen=True, slots=True)
class Slots:
    """Which inputs and outputs of a node hold the FP32 data that would change type, by index.

    `obstacle` says why the node cannot change at all; it is empty where it can.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    obstacle: str = ""


def slots(node: gs.Node, opset: int, types: Types, dtype: DType) -> Slots:
    """What of `node` moves when it computes in `dtype`; no slots at all where it holds no FP32 data."""
    inputs = [i for i, tensor in enumerate(node.inputs) if types.get(id(tensor)) == FP32]
    outputs = [i for i, tensor in enumerate(node.outputs) if types.get(id(tensor)) == FP32]
    if not inputs and not outputs:
        return Slots()
    schema = _schema(node, opset)
    if node.op in _STATED or "dtype" in node.attrs:
        return Slots(tuple(inputs), tuple(outputs), f"{node.op} states its type in an attribute")
    if schema is None:
        return Slots(tuple(inputs), tuple(outputs), f"ONNX knows no {node.op} in '{node.domain or 'ai.onnx'}'")
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    moved = {
        variable
        for formal, indices in ((schema.inputs, inputs), (schema.outputs, outputs))
        for i in indices
        if (variable := _type_name(formal, i)) in allowed and (node.op, variable) not in _FIXED
    }
    kept = sorted(variable for variable in moved if _ONNX_NAMES[dtype] not in allowed[variable])
    return Slots(
        tuple(i for i in inputs if _type_name(schema.inputs, i) in moved),
        tuple(i for i in outputs if _type_name(schema.outputs, i) in moved),
        f"{node.op} has no {dtype} form in ONNX opset {opset}" if kept or not moved else "",
    )


def infer_all(graph: gs.Graph) -> Types:
    """`infer` for the graph and all nested ones, which know the types of what they read from around them."""
    found: Types = {}
    for inner in graphs.graphs(graph):
        _infer(inner, found)
    return found


def infer(graph: gs.Graph) -> Types:
    """Element types of the tensors of one graph, by `id(tensor)`; tensors of unknown type are left out.

    Types that tensors carry are believed; the others follow from the schemas, in graph order.
    """
    found: Types = {}
    _infer(graph, found)
    return found


def _infer(graph: gs.Graph, found: Types) -> None:
    for tensor in graphs.tensors(graph):
        dtype = graphs.dtype_of(tensor)
        if dtype is not None:
            found[id(tensor)] = dtype
    for node in graph.nodes:
        for i, tensor in enumerate(node.outputs):
            dtype = None if id(tensor) in found else _output_type(node, i, graph.opset, found)
            if dtype is not None:
                found[id(tensor)] = dtype


def _output_type(node: gs.Node, index: int, opset: int, found: Types) -> np.dtype[Any] | None:
    if not graphs.is_standard(node):
        return None
    stated = node.attrs.get("to", node.attrs.get("output_dtype", node.attrs.get("dtype")))
    if stated and not isinstance(stated, str):
        return graphs.np_dtype(stated)
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return FP32 if value is None else graphs.dtype_of(value)
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        like = 2 if node.op == "QuantizeLinear" else 1
        return found.get(id(node.inputs[like])) if graphs.is_present(node, like) else np.dtype(np.uint8)
    schema = _schema(node, opset)
    if schema is None or not schema.outputs:
        return None
    name = _type_name(schema.outputs, index)
    if name.startswith("tensor("):
        return graphs.np_dtype(getattr(onnx.TensorProto, name[7:-1].upper()))
    for i, tensor in enumerate(node.inputs):
        if _type_name(schema.inputs, i) == name and id(tensor) in found:
            return found[id(tensor)]
    return None


def _schema(node: gs.Node, opset: int) -> Any:
    if not graphs.is_standard(node):
        return None
    try:
        return onnx.defs.get_schema(node.op, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None


def _type_name(formal: Sequence[Any], index: int) -> str:
    """Type or type variable of a parameter; the last one may stand for many."""
    return str(formal[min(index, len(formal) - 1)].type_str) if formal else ""
