"""A float model in the terms of a quantized one: a tensor of the same name means the same in both.

A compiler rewrites the float model before it quantizes it. Two kinds of rewrites leave a tensor its name and change
what it holds: what is folded into the node that computes it (a BatchNormalization, a bias), and channels divided by
factors that the weights behind them take back (SmoothQuant, AWQ, equalization). Where only the two files are there,
both are done to the float model too: by the same float passes, and by `follow-scales`, which reads the factors out of
the weights of the quantized graph. Both are exact, so the float model stays the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import QCompilerError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir import qdq
from qcompiler.ir.operators import LINEAR
from qcompiler.passes.channels.follow_scales import FollowScales
from qcompiler.passes.pipelines import clean_up
from qcompiler.runtime import shapes
from qcompiler.target import Target

Array = np.ndarray[Any, Any]

_AROUND = (
    "Add",
    "Mul",
    "Div",
    "Cast",
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "QuantizeLinear",
    "DequantizeLinear",
)
_NBITS = "MatMulNBits"
_FAR = 8  # nodes between a product and the tensor that the float graph knows


def aligned(reference: models.Model, quantized: models.Model, target: Target) -> tuple[models.Model, str]:
    """The float model as the quantized one was made of it, as far as that can be told.

    Args:
        reference: the float model; stays as it is.
        quantized: made of it.
        target: what the float passes must know of the machine.

    Returns:
        The model, and why it is the reference itself; empty where it is not.
    """
    model = models.copy(reference)
    try:
        clean_up(target)(model.graph)
        shapes.infer(model)
        FollowScales(QuantizedWeights(quantized.graph))(model.graph)
    except QCompilerError as error:
        return reference, f"inner tensors are compared as the float file has them, because of this: {error}"
    return model, ""


class QuantizedWeights(Mapping[tuple[str, int], Array]):
    """The constants of a quantized graph as floats, by the name of what a node computes and the index of its input.

    They are opened one at a time, when they are asked for, in the shape that the node reads. Of a product the name is
    the one that the float graph has for it, also where Casts, Reshapes or a bias stand behind it.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs and node.outputs[0].name}

    def __getitem__(self, key: tuple[str, int]) -> Array:
        found = self._opened(*key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[tuple[str, int]]:
        keys = ((name, index) for name, node in self._nodes.items() for index in range(len(node.inputs)))
        return (key for key in keys if self._opened(*key) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _opened(self, name: str, index: int) -> Array | None:
        node = self._nodes.get(name)
        if node is None:
            return None
        around = node if graphs.is_op(node, "Add", "Sub") else _product(node)
        if around is None or index >= len(around.inputs):
            return None
        if around.op == _NBITS:
            return _unpacked(around) if index == 1 else None
        tensor = around.inputs[index]
        return _opened(tensor) if _stored(tensor) else None


def _product(node: gs.Node) -> gs.Node | None:
    """The linear node that a tensor comes from, through what a compiler puts behind one."""
    found: gs.Node | None = node
    for _ in range(_FAR):
        if found is None or found.op == _NBITS or graphs.is_op(found, *LINEAR):
            return found
        if not graphs.is_op(found, *_AROUND):
            return None
        computed = [
            one
            for one in found.inputs[: 2 if graphs.is_op(found, "Add", "Mul", "Div") else 1]
            if not graphs.is_constant(one)
        ]
        found = graphs.producer(computed[0]) if len(computed) == 1 else None
    return None


def _stored(tensor: gs.Tensor) -> bool:
    maker = graphs.producer(tensor)
    if graphs.is_constant(tensor) or (maker is not None and qdq.is_dq(maker) and qdq.is_weight(maker)):
        return True
    return maker is not None and graphs.is_op(maker, "Cast", "Identity", "Transpose") and _stored(maker.inputs[0])


def _opened(tensor: gs.Tensor) -> Array:
    """The values of a stored tensor, float32."""
    maker = graphs.producer(tensor)
    if graphs.is_constant(tensor) or maker is None:
        return graphs.values_of(tensor).astype(np.float32)
    if graphs.is_op(maker, "Transpose"):
        values = _opened(maker.inputs[0])
        return values.transpose(graphs.permutation(maker, values.ndim))
    if qdq.is_dq(maker) and graphs.constant_value(maker.inputs[0]) is not None:
        return qdq.dequantized(maker, np.dtype(np.float32))
    before = graphs.producer(maker.inputs[0])
    return _opened(before.inputs[0] if qdq.is_q(before) and before is not None else maker.inputs[0])


def _unpacked(node: gs.Node) -> Array | None:
    """The weight of a MatMulNBits [K, N], float32; see `qcompiler.passes.quantize.matmul_nbits` for the layout."""
    packed, scale = (graphs.constant_value(one) for one in node.inputs[1:3])
    if packed is None or scale is None or node.attrs.get("bits", 4) != 4:
        return None
    zeros = graphs.constant_value(node.inputs[3]) if graphs.is_present(node, 3) else None
    if zeros is not None:
        return None
    depth, width = int(node.attrs["K"]), int(node.attrs["N"])
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(width, -1, int(node.attrs["block_size"]))
    wide = (values.astype(np.float32) - 8) * scale.reshape(width, -1, 1).astype(np.float32)
    return wide.reshape(width, -1)[:, :depth].T
