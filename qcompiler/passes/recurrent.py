"""Recurrent layers behind an input, which TensorRT-RTX 1.7 cannot build behind a Cast: two phases ask for them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import MOVES, RECURRENT

_ROUNDS = 64  # nodes between an input and a recurrent layer, at most


def recurrent_reader(tensor: gs.Tensor) -> str:
    """Name of a recurrent layer that reads a tensor, also where it is only moved on the way; else empty."""
    waiting = [tensor]
    for _ in range(_ROUNDS):
        if not waiting:
            return ""
        for node, _ in graphs.consumers(waiting.pop()):
            if graphs.is_op(node, *RECURRENT):
                return str(node.name)
            if graphs.is_op(node, *MOVES):
                waiting += node.outputs
    return ""
