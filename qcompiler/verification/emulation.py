"""BF16 and FP16 graphs for ONNX Runtime's CPU: every such value is computed in FP32 and rounded.

y = MatMul(a: bf16, b: bf16)  ⇒  y' = MatMul(a, b);  y = Cast(Cast(y', bf16), fp32)

That is how the GPU computes it too: products are summed in FP32 and the result is stored in the lower type.

The CPU has no BF16 kernels. For FP16 it has few, and puts Casts around all other operators. Casts that meet, it
removes, so that chains of operators run in FP32 and hand on values that FP16 would round or that overflow it: 3000.7
stays 3000.7 and 900000 stays finite (measured with 1.31). What is to be judged as the engine computes it must be
emulated.

Weights that are stored quantized are dequantized and rounded once, not in every run: ONNX Runtime folds neither their
DequantizeLinear nor what stands behind it. The values are the same, and products then read a constant, which it packs
once. For a small encoder a run takes half the time; it costs the memory of the weights in FP32. And what only moves or
picks values that are rounded already is not rounded again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit, element_types, qdq
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.made import Made, solid
from qcompiler.ir.names import Names
from qcompiler.ir.operators import PICKS

_BF16 = np.dtype(ml_dtypes.bfloat16)
_FP16 = np.dtype(np.float16)
_FP32 = np.dtype(np.float32)
_FP64 = np.dtype(np.float64)
_STATES_TYPE = ("to", "output_dtype", "dtype")
# Whatever these give stands in their inputs, but for a sign
_MAKES_NONE = PICKS | {"Concat", "Tile", "Relu", "Clip", "Max", "Min", "Abs", "Neg", "Where", "ReduceMax", "ReduceMin"}


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
    if emulates & set(types.values()):
        for inner in graphs.graphs(emulated.graph):
            _dequantize(inner, types)
    for inner in list(graphs.graphs(emulated.graph)):
        _widen(inner, names, types, {key for key, dtype in types.items() if dtype in emulates})
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


def _dequantize(graph: gs.Graph, types: dict[int, np.dtype[Any]]) -> None:
    """Weights that are stored quantized become what their DequantizeLinear gives, rounded to its type.

    Those that are outputs of the graph stay, and those that are not finite: their node is to be named.

    Args:
        graph: is edited.
        types: of all tensors, by id; learns those of the new weights.
    """
    done: list[gs.Node] = []
    for node in graph.nodes:
        if not qdq.is_dq(node) or graphs.constant_value(node.inputs[0]) is None or qdq.scale_of(node) is None:
            continue
        output = node.outputs[0]
        dtype = types.get(id(output), _FP32)
        values = qdq.held_dequantized(node, dtype)
        if graphs.is_output(graph, output) or not np.isfinite(solid(values).astype(_FP32)).all():
            continue
        weight = edit.add_constant(output.name, values)
        types[id(weight)] = dtype
        for reader, index in graphs.consumers(output):
            edit.set_input(reader, index, weight)
        done.append(node)
    edit.remove_nodes(graph, done)


def _widen(graph: gs.Graph, names: Names, types: element_types.Types, emulated: Collection[int]) -> None:
    """Computes one graph in FP32 and rounds; `types` are those of all tensors, `emulated` has the ids of some."""
    lower = {_BF16, *(types[key] for key in emulated)}
    for tensor in graphs.tensors(graph):
        if id(tensor) in emulated:
            _retype(tensor)
    for node in list(graph.nodes):
        rounded = [(index, types[id(tensor)]) for index, tensor in enumerate(node.outputs) if id(tensor) in emulated]
        again = not all(_repeats(node, types, dtype) for _, dtype in rounded)
        for attribute in _STATES_TYPE:
            if graphs.np_dtype(_number(node.attrs.get(attribute))) in lower:
                node.attrs[attribute] = graphs.onnx_type(_FP32)
        value = node.attrs.get("value")
        if isinstance(value, gs.Constant) and graphs.dtype_of(value) in lower:
            node.attrs["value"] = gs.Constant(value.name, graphs.values_of(value).astype(np.float32))
        for index, dtype in rounded if again else ():
            _round(graph, names, node, index, dtype)


def _repeats(node: gs.Node, types: element_types.Types, dtype: np.dtype[Any]) -> bool:
    """Whether all that a node gives are values that it is given, and these are rounded to a type already."""
    if not graphs.is_op(node, *_MAKES_NONE):
        return False
    read = [types.get(id(tensor)) for tensor in node.inputs if tensor.name]
    return all(one is not None and (one == dtype or one.kind in "biu") for one in read)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _retype(tensor: gs.Tensor) -> None:
    if isinstance(tensor, gs.Constant):
        if isinstance(tensor._values, Made):  # as float32 already
            return
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
