"""Weights that several branches of an If read are stored once, and those of FP32 branches in half.

If{MatMul(x, W: fp16), MatMul(x, W': fp32)}  ⇒  If{MatMul(x, W: fp16), MatMul(x, Cast(W))}

Each branch is typed, and perhaps quantized, by itself: one that no data reached stays in FP32. Written as they are, the
weights that both read would stand in the file twice and make it larger than the float model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGE = 1024  # bytes; less is not worth a node
_EXACT = 1e-6  # noise of rounding to half over signal, as power: 60 dB


@dataclass(frozen=True)
class StoreOnce(Pass):
    """Store weights of branches once, and in half where a branch computes in FP32 with what is narrower elsewhere.

    Attributes:
        dtype: type of all that is not quantized.
    """

    dtype: DType = DType.FP16

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per weight that is stored in half, and per copy that is gone."""
        branches = list(graphs.branches(graph))
        if not branches:
            return
        if self.dtype is not DType.FP32 or any(_is_stored(node) for one in branches for node in one.nodes):
            yield from _narrowed(branches, Names(graph))
        yield from _shared(graph, branches)


def _is_stored(node: gs.Node) -> bool:
    return graphs.is_op(node, "DequantizeLinear") and graphs.is_constant(node.inputs[0])


def _narrowed(branches: list[gs.Graph], names: Names) -> Iterator[Note]:
    """FP32 weights of layers in branches become halves behind a Cast, where that rounds off next to nothing."""
    halves: dict[int, gs.Constant | None] = {}
    for branch in branches:
        for node in list(branch.nodes):
            if not graphs.is_linear(node):
                continue
            for index, tensor in enumerate(list(node.inputs)):
                if not isinstance(tensor, gs.Constant) or graphs.dtype_of(tensor) != np.float32:
                    continue
                if id(tensor) not in halves:
                    halves[id(tensor)] = _half(tensor, names)
                half = halves[id(tensor)]
                if half is None:
                    continue
                wide = gs.Variable(names.fresh(f"{tensor.name}/wide"), np.dtype(np.float32), tensor.shape)
                attrs = {"to": graphs.onnx_type(np.float32)}
                edit.insert_before(
                    branch, node, gs.Node("Cast", names.fresh(f"{tensor.name}/Cast"), attrs, [half], [wide])
                )
                edit.set_input(node, index, wide)
                yield Changed(node.name, f"weight '{tensor.name}' stored in fp16")


def _half(tensor: gs.Constant, names: Names) -> gs.Constant | None:
    """The same in half; None where it is small, or would not be the same."""
    values = graphs.values_of(tensor)
    if values.nbytes < _LARGE or not np.abs(values).max() < np.finfo(np.float16).max:
        return None
    half = values.astype(np.float16)
    wide = values.astype(np.float64)
    if np.square(half - wide).sum() > _EXACT * np.square(wide).sum():
        return None
    return edit.add_constant(names.fresh(f"{tensor.name}/half"), half)


def _shared(graph: gs.Graph, branches: list[gs.Graph]) -> Iterator[Note]:
    """Constants with one content become one; it is written into the graph that they have in common."""
    known: dict[tuple[object, ...], gs.Constant] = {}
    for home in (graph, *branches):
        for node in home.nodes:
            for index, tensor in enumerate(list(node.inputs)):
                values = graphs.values_of(tensor) if isinstance(tensor, gs.Constant) else None
                if values is None or values.nbytes < _LARGE or values.dtype.kind == "O":
                    continue
                first = known.setdefault(_content(values), tensor)
                if first is not tensor and home is not graph:
                    edit.set_input(node, index, first)
                    yield Changed(node.name, f"'{tensor.name}' is '{first.name}'")


def _content(values: NDArray[Any]) -> tuple[object, ...]:
    whole = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    return values.dtype.name, values.shape, blake2b(whole, digest_size=16).digest()
