"""Names for what torch exported: nodes by the modules that they come from, dimensions as they were asked for.

`node_linear_6` becomes `model.layers.0.mlp.down_proj/MatMul`, so that --keep and reports speak of layers as the model's
own code does. What the exporter noted about its own work, such as the folders of Python files, is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.frontends.torch_onnx import Job
from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.ir.names import Names

_SCOPES = "pkg.torch.onnx.name_scopes"
_OWNER = "inner"  # the name of the module in the one that is traced


def tidy(model: Model, job: Job) -> None:
    """Renames nodes, weights, inner tensors and dimensions in place; inputs and outputs keep their names."""
    names = Names(model.graph)
    nested = any(graphs.subgraphs(node) for node in model.graph.nodes)  # bodies know tensors around them by name
    taken: dict[str, int] = {}
    for node in model.graph.nodes:
        scope = _scope(node)
        node.name = _unique(f"{scope}/{node.op}" if scope else node.op, taken)
        node.carried = None
        if nested:
            continue
        _name_weights(node, scope, names)
        for index, tensor in enumerate(node.outputs):
            if not graphs.is_output(model.graph, tensor):
                tensor.name = f"{node.name}:{index}"
    _name_dimensions(model.graph, job)
    model.graph.carried = None
    for tensor in graphs.tensors(model.graph):
        if getattr(tensor, "type", None) == "tensor_type":
            tensor.carried = None
    model.graph.name = job.label.rstrip("/").rpartition("/")[2]
    model.metadata.clear()


def shapes(tensors: Iterable[gs.Tensor]) -> dict[str, tuple[int | str | None, ...]]:
    """Shape of each tensor by name; () where none is known."""
    return {tensor.name: graphs.shape_of(tensor) or () for tensor in tensors}


def _scope(node: gs.Node) -> str:
    """The module that a node comes from, as the model's own code calls it; empty where it is none."""
    notes: dict[str, str] = {one.key: one.value for one in getattr(node.carried, "metadata_props", ())}
    try:
        scopes: list[Any] = ast.literal_eval(notes.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    inside = [str(one) for one in scopes[:-1] if str(one) == _OWNER or str(one).startswith(f"{_OWNER}.")]
    return inside[-1].removeprefix(_OWNER).removeprefix(".") if inside else ""


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, -1) + 1
    return f"{name}_{taken[name]}" if taken[name] else name


def _name_weights(node: gs.Node, scope: str, names: Names) -> None:
    """Weights keep the names of their parameters; a transposed one, which has lost its own, is named by its module."""
    for tensor in node.inputs:
        if not graphs.is_constant(tensor):
            continue
        if tensor.name.startswith(f"{_OWNER}."):
            tensor.name = names.fresh(tensor.name.removeprefix(f"{_OWNER}."))
        elif scope and node.op in ("MatMul", "Gemm", "Conv") and tensor.name.startswith("val_"):
            tensor.name = names.fresh(f"{scope}.weight")


def _name_dimensions(graph: gs.Graph, job: Job) -> None:
    """Dimensions that follow from others have names of torch's own, such as s53."""
    ours: dict[str, str] = {}
    for tensor in graph.inputs:
        for axis, name in job.axes.get(tensor.name, {}).items():
            if tensor.shape is not None and isinstance(tensor.shape[axis], str):
                ours[tensor.shape[axis]] = name
    sums = {name for axes in job.axes.values() for name in axes.values() if " + " in name}
    ours |= {" + ".join(reversed(name.split(" + "))): name for name in sums}
    for tensor in graphs.tensors(graph):
        if tensor.shape is not None and not graphs.is_constant(tensor):
            tensor.shape = [ours.get(size, size) if isinstance(size, str) else size for size in tensor.shape]
