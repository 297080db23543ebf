"""Shapes and element types of all tensors: by ONNX's inference, and where that cannot tell or is wrong, by running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import model as models
from qcompiler.ir.graph import dtype_of, graphs, is_constant, np_dtype, shape_of, static_shape, tensors
from qcompiler.ir.model import Model, to_proto
from qcompiler.runtime import chain

if TYPE_CHECKING:
    from numpy.typing import NDArray


Shape = tuple[int, ...]
_TAP = "measured shape of "


def infer(source: Model | gs.Graph) -> list[str]:
    """Sets shape and dtype of every tensor, nested graphs included, by ONNX shape inference.

    What the file said is forgotten first, but for the graph's inputs and the types of its outputs: stale or wrong
    value_info is common. Weights take no part, so it is cheap for models of any size.

    Returns:
        Names of the tensors whose dtype is still unknown, in graph order: behind operators that ONNX does not know, or
        values that are no tensors.
    """
    graph = source.graph if isinstance(source, Model) else source
    for inner in graphs(graph):
        _forget(inner, keep_types=inner is graph)
    proto, _ = to_proto(graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:
        inferred = proto
    _fill(graph, inferred.graph)
    return [t.name for inner in graphs(graph) for t in tensors(inner) if not is_constant(t) and dtype_of(t) is None]


def _forget(graph: gs.Graph, *, keep_types: bool) -> None:
    inputs = {id(tensor) for tensor in graph.inputs}
    outputs = {id(tensor) for tensor in graph.outputs} if keep_types else set()
    for node in graph.nodes:
        for tensor in node.outputs:
            if id(tensor) in inputs or is_constant(tensor) or tensor.type not in (None, "tensor_type"):
                continue
            tensor.shape = None
            if id(tensor) not in outputs:
                tensor.dtype = None


def _fill(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    known = {
        value.name: value.type.tensor_type
        for value in (*proto.value_info, *proto.output, *proto.input)
        if value.type.HasField("tensor_type")
    }
    for tensor in tensors(graph):
        found = known.get(tensor.name)
        if found is None or is_constant(tensor):
            continue
        if tensor.dtype is None:
            tensor.dtype = np_dtype(found.elem_type)
        if tensor.shape is None and found.HasField("shape"):
            tensor.shape = [_dim(dim) for dim in found.shape.dim]
    for node, written in zip(graph.nodes, proto.node, strict=True):
        for attribute in written.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _fill(node.attrs[attribute.name], attribute.g)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def run_once(source: Model | gs.Graph, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Shape]:
    """Runs the model once on `feeds` and returns the shape of every tensor of the main graph by name.

    Corrects the graph on the way: a tensor of unknown rank gets its rank, a fixed dimension that the run contradicts
    becomes open, a tensor of unknown dtype gets what the run gave. Shapes are taken inside the run, so no intermediate
    result is kept; only tensors of unknown dtype are made outputs, in a second run.

    Raises:
        DataError: the feeds do not fit.
        ModelError: ONNX Runtime refuses the model or a node fails.
    """
    graph = source.graph if isinstance(source, Model) else source
    _find_types(graph, feeds)
    computed = [t for t in tensors(graph) if _is_tensor(t) and not is_constant(t)]
    proto, weights = to_proto(graph)
    _insert(proto, [(tensor.name, _TAP + tensor.name) for tensor in computed])
    del proto.graph.output[:]
    for tensor in computed:
        value = proto.graph.output.add(name=_TAP + tensor.name)
        value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    results = chain.opened(proto, weights).run(feeds)
    shapes = {t.name: tuple(int(dim) for dim in t.shape) for t in tensors(graph) if is_constant(t)}
    for tensor in computed:
        shapes[tensor.name] = tuple(int(dim) for dim in results[_TAP + tensor.name])
        _correct(tensor, shapes[tensor.name])
    return shapes


def _find_types(graph: gs.Graph, feeds: Mapping[str, NDArray[Any]]) -> None:
    unknown = [t for t in tensors(graph) if not is_constant(t) and t.dtype is None and t.type in (None, "tensor_type")]
    if not unknown:
        return
    results = chain.opened(*to_proto(graph), outputs=[t.name for t in unknown]).run(feeds)
    for tensor in unknown:
        value = results[tensor.name]
        if isinstance(value, np.ndarray):
            tensor.dtype = value.dtype if value.dtype.kind != "O" else np.dtype(object)


def _insert(proto: onnx.ModelProto, wanted: Sequence[tuple[str, str]]) -> None:
    """Puts a node that tells the shape of a tensor right behind what computes it, so that nothing is held for it."""
    taps = {name: onnx.NodeProto(op_type="Shape", name=tap, input=[name], output=[tap]) for name, tap in wanted}
    made = {name for node in proto.graph.node for name in node.output}
    nodes = [tap for name, tap in taps.items() if name not in made]
    for node in proto.graph.node:
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        nodes += (taps[name] for name in node.output if name in taps)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _is_tensor(tensor: gs.Tensor) -> bool:
    return dtype_of(tensor) is not None


def _correct(tensor: gs.Variable, measured: Shape) -> None:
    shape = shape_of(tensor)
    if shape is None or len(shape) != len(measured):
        tensor.shape = [None] * len(measured)
        return
    tensor.shape = [
        None if isinstance(dim, int) and dim != seen else dim for dim, seen in zip(shape, measured, strict=True)
    ]


SHAPE_OF = "shape_of/"


def concrete_shapes(
    graph: gs.Graph, feeds: Mapping[str, NDArray[Any]], wanted: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of `wanted` tensors for one sample: by inference from the sample's own shapes, else by running it.

    Inference costs milliseconds and no weights; what it cannot tell (data-dependent shapes) is read off one run with
    a Shape node behind each such tensor. Tensors that the run does not reach are left out.
    """
    found = inferred_shapes(models.to_proto(graph)[0], feeds)
    result = {name: found[name] for name in wanted if name in found}
    missing = [name for name in dict.fromkeys(wanted) if name not in result]
    if missing:
        result.update(_measured(graph, feeds, missing))
    return result


def assumed_shapes(
    graph: gs.Graph, usual: Mapping[str, Sequence[int]] | None = None, *, rest: int | None = None
) -> dict[str, Shape]:
    """Shapes of tensors where there is no sample: of all that inference can tell, those of nested graphs included.

    Args:
        graph: it is not changed.
        usual: shapes of inputs that are known.
        rest: what the open axes of other inputs are taken for; None: the first for 1, and the others stay open.
    """
    assumed = graph.copy()
    for tensor in assumed.inputs:
        shape = shape_of(tensor)
        if usual is not None and tensor.name in usual:
            tensor.shape = list(usual[tensor.name])
        elif shape and rest is not None:
            tensor.shape = [dim if isinstance(dim, int) else rest for dim in shape]
        elif shape and not isinstance(shape[0], int):
            tensor.shape = [1, *shape[1:]]
    infer(assumed)
    fixed = ((t.name, static_shape(t)) for inner in graphs(assumed) for t in tensors(inner))
    return {name: shape for name, shape in fixed if shape is not None}


def inferred_shapes(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors for one sample as ONNX's inference tells them from the sample's own; others are left out.

    What `proto` says of shapes is taken out of it.
    """
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name not in feeds or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in feeds[value.name].shape:
            shape.dim.add(dim_value=size)
    for value in proto.graph.output:  # their declared shapes are symbolic at best, and some exporters' are wrong
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer})
    return shapes


def _measured(graph: gs.Graph, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    proto, weights = models.to_proto(graph)
    present = {name for node in proto.graph.node for name in node.output} | {value.name for value in proto.graph.input}
    kinds = {value.name: value.type.WhichOneof("value") for value in (*proto.graph.input, *proto.graph.output)}
    present -= {
        name for name, kind in kinds.items() if kind not in (None, "tensor_type")
    }  # sequences and maps have none
    asked = [name for name in names if name in present]
    if not asked:
        return {}
    _insert(proto, [(name, SHAPE_OF + name) for name in asked])
    session = chain.opened(proto, weights, outputs=[SHAPE_OF + name for name in asked])
    return {name: tuple(map(int, shape)) for name, shape in zip(asked, session.run(feeds).values(), strict=True)}
