"""Quantizers of domain `trt`, as other tools write them for TensorRT, become QuantizeLinear and DequantizeLinear.

    trt::TRT_FP8QuantizeLinear(x, s)            ⇒  QuantizeLinear(x, s, 0 as float8e4m3fn)
    trt::TRT_FP8DequantizeLinear(q, s)          ⇒  DequantizeLinear(q, s)
    trt::TRT_INT4DequantizeLinear(w₄, s)        ⇒  DequantizeLinear(w₄, s){axis, block_size}
    trt::TRT_MXFP8DequantizeLinear(w₈, e₈)      ⇒  the weight in floats, which is exact: scales are powers of two
    trt::QuantizeLinear, trt::DequantizeLinear  ⇒  ONNX's own

They say the same as ONNX's since opset 19 (FP8) and 21 (INT4, blocks). Files of these tools carry FP8 as uint8, whose
bits are what is meant. What finds its scales at run time has no such form and is refused by name.

Sources: NVIDIA Model Optimizer 0.47, modelopt/torch/quantization/export_onnx.py; onnx-tensorrt 10.12,
onnxOpImporters.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import FP8, INT4
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


DOMAIN = "trt"
_STORED = {
    "TRT_FP8QuantizeLinear": FP8,
    "TRT_FP8DequantizeLinear": FP8,
    "TRT_INT4QuantizeLinear": INT4,
    "TRT_INT4DequantizeLinear": INT4,
    "QuantizeLinear": None,  # whatever its zero point or its data says
    "DequantizeLinear": None,
}
_EXPONENTS = "TRT_MXFP8DequantizeLinear"
_MX_BLOCK = 32
_NO_FORM = {
    "TRT_MXFP8DynamicQuantize": "finds the scales of its blocks at run time",
    "TRT_MXFP8QuantizeLinear": "has scales that are powers of two, a type that ONNX quantizers lack",
    "TRT_FP4DynamicQuantize": "finds the scales of its blocks at run time",
    "TRT_FP4QDQ": "rounds to FP4 with scales that are found at run time",
}
_KEPT = ("axis", "block_size", "output_dtype", "saturate")


def is_trt_quantizer(node: gs.Node) -> bool:
    """Whether a node is a quantizer of TensorRT's own, with a standard form or without."""
    own = node.op.startswith("TRT_") and (node.op in _STORED or node.op in _NO_FORM or node.op == _EXPONENTS)
    return own or (node.domain == DOMAIN and node.op in _STORED)


def opset_for(graph: gs.Graph) -> int:
    """The oldest opset whose quantizers say what those of `trt` in this graph do; 0 where there are none."""
    found = [node for node in graphs.walk(graph) if is_trt_quantizer(node)]
    fp8 = all("FP8" in node.op and "block_size" not in node.attrs for node in found)
    return 0 if not found else 19 if fp8 else 21


@dataclass(frozen=True)
class ReadTrtQuantizers(Pass):
    """Write the quantizers that other tools made for TensorRT as ONNX's own.

    Attributes:
        strict: one that has no form in ONNX is refused; else it stays, for TensorRT itself.

    Raises:
        ModelError: strict, and a quantizer has no form in ONNX; the message names the node.
    """

    strict: bool = True

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None  # nothing runs what stood there before

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per quantizer."""
        names = Names(graph)
        for inner in list(graphs.graphs(graph)):
            for node in list(inner.nodes):
                if not is_trt_quantizer(node):
                    continue
                if node.op in _NO_FORM and not self.strict:
                    yield Skipped(node.name, f"{node.op} {_NO_FORM[node.op]}")
                    continue
                if node.op in _NO_FORM:
                    raise ModelError(
                        f"node '{node.name}' ({node.op} of domain '{node.domain}') {_NO_FORM[node.op]}: it has no form "
                        "in ONNX, so nothing can be measured behind it. Export the float model, or with INT8, FP8 or "
                        "INT4 weights of fixed scales."
                    )
                yield _powers(inner, names, node) if node.op == _EXPONENTS else _standard(names, node)


def _standard(names: Names, node: gs.Node) -> Note:
    old, stored = node.op, _STORED[node.op]
    node.op, node.domain = ("QuantizeLinear" if "Dequantize" not in old else "DequantizeLinear"), None
    node.attrs = {name: value for name, value in node.attrs.items() if name in _KEPT}
    if node.op == "QuantizeLinear":
        stored = stored or graphs.np_dtype(node.attrs.get("output_dtype"))
        if stored is not None and not graphs.is_present(node, 2):
            _give_zero_point(names, node, stored)
        if stored is not None:
            node.outputs[0].dtype = stored
    else:
        _hold(names, node, stored)
    _size_blocks(node)
    return Changed(node.name, f"{old} is {node.op}")


def _give_zero_point(names: Names, node: gs.Node, stored: np.dtype[Any]) -> None:
    scale = graphs.constant_value(node.inputs[1])
    shape = () if scale is None else scale.shape
    while len(node.inputs) > 2:
        edit.set_input(node, len(node.inputs) - 1, gs.Variable(""))
        list.pop(node.inputs)
    node.inputs.append(edit.add_constant(names.fresh(f"{node.name}/zero_point"), np.zeros(shape, stored)))


def _hold(names: Names, node: gs.Node, stored: np.dtype[Any] | None) -> None:
    """Gives what a DequantizeLinear reads the type that is meant."""
    source = node.inputs[0]
    value = graphs.constant_value(source)
    if stored is None or value is None:
        if stored is not None and isinstance(source, gs.Variable):
            source.dtype = stored
        return
    if value.dtype == stored:
        return
    made = _meant(node, value, stored)
    edit.set_input(node, 0, edit.add_constant(names.fresh(f"{source.name}/{stored.name}"), made))


def _meant(node: gs.Node, value: Array, stored: np.dtype[Any]) -> Array:
    """Bytes that stand for FP8, and bytes that hold an INT4 each.

    Raises:
        ModelError: they are neither.
    """
    if stored == FP8 and value.dtype.itemsize == 1:
        return value.view(FP8)
    whole = value.dtype.kind in "iu" and value.size and value.min() >= -8 and value.max() <= 7
    if stored == INT4 and whole:
        return value.astype(INT4)
    raise ModelError(
        f"node '{node.name}' ({node.op}) reads '{node.inputs[0].name}', {value.dtype.name} values that are no "
        f"{stored.name}. Export the model again, or give the weight that type."
    )


def _size_blocks(node: gs.Node) -> None:
    """TensorRT tells the size of blocks from the shapes; ONNX wants it said."""
    scale, data = node.inputs[1].shape, node.inputs[0].shape
    if "block_size" in node.attrs or not scale or not data or len(scale) != len(data) or len(data) < 2:
        return
    axis = int(node.attrs.get("axis", 1))
    whole, parts = data[axis], scale[axis]
    if isinstance(whole, int) and isinstance(parts, int) and parts and whole % parts == 0:
        node.attrs |= {"axis": axis, "block_size": whole // parts}


def _powers(graph: gs.Graph, names: Names, node: gs.Node) -> Note:
    """FP8 times 2^(e - 127), with an exponent for each block."""
    values, exponents = (graphs.constant_value(node.inputs[index]) for index in (0, 1))
    if values is None or exponents is None:
        raise ModelError(
            f"node '{node.name}' ({node.op}) reads values or scales that are computed, which no quantizer of ONNX "
            "does. Export the float model, or with quantizers of fixed scales."
        )
    axis, size = int(node.attrs.get("axis", -1)) % values.ndim, int(node.attrs.get("block_size", _MX_BLOCK))
    steps = np.exp2(exponents.view(np.uint8).astype(np.float32) - 127).repeat(size, axis)
    spread = steps[tuple(slice(length) for length in values.shape)]
    dtype = graphs.np_dtype(node.attrs.get("output_dtype")) or np.dtype(np.float32)
    made = np.asarray(values.view(FP8).astype(np.float32) * spread).astype(dtype)
    out, name = node.outputs[0], node.name
    constant = edit.add_constant(names.fresh(f"{node.inputs[0].name}/float"), made)
    if graphs.is_output(graph, out):
        node.op, node.domain, node.attrs = "Identity", None, {}
        edit.set_input(node, 0, constant)
        edit.set_input(node, 1, gs.Variable(""))
        list.pop(node.inputs)
        return Changed(name, f"{_EXPONENTS} is its float values")
    for reader, index in graphs.consumers(out):
        edit.set_input(reader, index, constant)
    edit.remove_node(graph, node)
    return Changed(name, f"{_EXPONENTS} became its float values; where it pays they are stored anew")
