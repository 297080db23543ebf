"""BF16 and FP16 graphs for ONNX Runtime's CPU: every such value is computed in FP32 and rounded.

y = MatMul(a: bf16, b: bf16)  ⇒  y' = MatMul(a, b);  y = Cast(Cast(y', bf16), fp32)

That is how the GPU computes it too: products are summed in FP32 and the result is stored in the lower type.

The CPU has no BF16 kernels. For FP16 it has few, and puts Casts around all other operators. Casts that meet, it
removes, so that chains of operators run in FP32 and hand on values that FP16 would round or that overflow it: 3000.7
stays 3000.7 and 900000 stays finite (measured with 1.31). What is to be judged as the engine computes it must be
emulated.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.names import Names

_BF16 = np.dtype(ml_dtypes.bfloat16)
_FP16 = np.dtype(np.float16)
_FP32 = np.dtype(np.float32)
_FP64 = np.dtype(np.float64)
_STATES_TYPE = ("to", "output_dtype", "dtype")


def runnable(model: models.Model, *, half: bool = False) -> models.Model:
    """A model that ONNX Runtime's CPU can run: the model itself where nothing in it is BF16, else an emulation of it.

    Names of tensors stay, and so does what they hold; inputs and outputs that were emulated become FP32, and so do
    those in double that stand before or behind a Cast from or to FP32.

    Args:
        model: stays as it is.
        half: emulate FP16 as well, so that its rounding and its overflows show.
    """
    emulates = {_BF16, _FP16} if half else {_BF16}
    doubles = _double_ends(model.graph)
    if not doubles and not emulates & set(element_types.infer_all(model.graph).values()):
        return model
    emulated = models.copy(model)
    for tensor in _double_ends(emulated.graph):
        _open_end(emulated.graph, tensor)
    names = Names(emulated.graph)
    types = element_types.infer_all(emulated.graph)  # before anything changes: nested graphs read from around them
    for inner in list(graphs.graphs(emulated.graph)):
        _widen(inner, names, {key: dtype for key, dtype in types.items() if dtype in emulates})
    return emulated


def _double_ends(graph: gs.Graph) -> list[gs.Tensor]:
    """Inputs and outputs in double that nothing computes with: a Cast alone stands at them."""
    entering = [
        tensor
        for tensor in graph.inputs
        if graphs.dtype_of(tensor) == _FP64 and all(_casts(node, _FP32) for node, _ in graphs.consumers(tensor))
    ]
    leaving = [
        tensor
        for tensor in graph.outputs
        if graphs.dtype_of(tensor) == _FP64 and not tensor.outputs and _casts(graphs.producer(tensor), _FP64)
    ]
    return [*entering, *leaving]


def _casts(node: gs.Node | None, to: np.dtype[Any]) -> bool:
    return node is not None and graphs.is_op(node, "Cast") and graphs.np_dtype(node.attrs["to"]) == to


def _open_end(graph: gs.Graph, tensor: gs.Tensor) -> None:
    """Makes an end FP32; the Cast at it does nothing then."""
    tensor.dtype = _FP32
    node = graphs.producer(tensor)
    if node is not None:
        node.attrs["to"] = graphs.onnx_type(_FP32)


def _widen(graph: gs.Graph, names: Names, types: element_types.Types) -> None:
    """`types` has the tensors that are emulated."""
    emulated = {_BF16, *types.values()}
    for tensor in graphs.tensors(graph):
        if id(tensor) in types:
            _retype(tensor)
    for node in list(graph.nodes):
        for attribute in _STATES_TYPE:
            if graphs.np_dtype(_number(node.attrs.get(attribute))) in emulated:
                node.attrs[attribute] = graphs.onnx_type(_FP32)
        value = node.attrs.get("value")
        if isinstance(value, gs.Constant) and graphs.dtype_of(value) in emulated:
            node.attrs["value"] = gs.Constant(value.name, graphs.values_of(value).astype(np.float32))
        for index, tensor in enumerate(node.outputs):
            if id(tensor) in types:
                _round(graph, names, node, index, types[id(tensor)])


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _retype(tensor: gs.Tensor) -> None:
    if isinstance(tensor, gs.Constant):
        tensor.values = graphs.values_of(tensor).astype(np.float32)
        return
    tensor.dtype = _FP32


def _round(graph: gs.Graph, names: Names, node: gs.Node, index: int, dtype: np.dtype[Any]) -> None:
    """Puts a round trip through the lower type between a node and its output."""
    tensor = node.outputs[index]
    exact = gs.Variable(names.fresh(f"{tensor.name}/exact"), _FP32)  # shapes that a file states may be wrong
    stored = gs.Variable(names.fresh(f"{tensor.name}/stored"), dtype)
    edit.set_output(node, index, exact)
    down = {"to": graphs.onnx_type(dtype)}
    up = {"to": graphs.onnx_type(_FP32)}
    narrow = gs.Node("Cast", names.fresh(f"{tensor.name}/narrow"), down, [exact], [stored])
    wide = gs.Node("Cast", names.fresh(f"{tensor.name}/wide"), up, [stored], [tensor])
    edit.insert_after(graph, node, narrow)
    edit.insert_after(graph, narrow, wide)
