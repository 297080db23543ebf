"""x → Q → DQ  ⇒  x,  DQ(W)  ⇒  W in float: the model before it was quantized, but for the rounding of weights.

That is what an engine of quantized layers is compared with. Integers that travel through other operators between a Q
and a DQ stay as they are, and so do scales that are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import dequantized, is_dq, is_q, scale_of
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class RemoveQDQ(Pass):
    """Take out Q/DQ pairs and store their weights in float: what a quantized model is compared with."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per DequantizeLinear."""
        names = Names(graph)
        for inner in list(graphs.graphs(graph)):
            for node in [one for one in inner.nodes if is_dq(one)]:
                old, plain = node.outputs[0], _plain(inner, names, node)
                why = "its integers are made by another operator" if plain is None else ""
                why = why or edit.why_not_replace(inner, old, plain)
                if why:
                    yield Skipped(node.name, why)
                    continue
                edit.replace_uses(inner, old, plain)
                edit.remove_node(inner, node)
                yield Changed(node.name, f"'{old.name}' is float")
            unread = [one for one in inner.nodes if is_q(one) and not _read(inner, one.outputs[0])]
            edit.remove_nodes(inner, unread)
        edit.sort(graph)


def _plain(graph: gs.Graph, names: Names, node: gs.Node) -> gs.Tensor | None:
    """The float tensor that a DQ stands for; None where it has none."""
    dtype, before = _float_type(node), graphs.producer(node.inputs[0])
    if graphs.constant_value(node.inputs[0]) is not None:
        if scale_of(node) is None:
            return None
        return edit.add_constant(names.fresh(f"{node.outputs[0].name}/float"), dequantized(node, dtype))
    if before is None or not is_q(before):
        return None
    source = before.inputs[0]
    if graphs.dtype_of(source) in (None, dtype):
        return source
    cast = gs.Variable(names.fresh(f"{source.name}/cast"), dtype, source.shape)
    made = gs.Node("Cast", names.fresh(cast.name), {"to": graphs.onnx_type(dtype)}, [source], [cast])
    edit.insert_before(graph, node, made)
    return cast


def _float_type(node: gs.Node) -> np.dtype[Any]:
    """The type that a DQ writes."""
    return graphs.dtype_of(node.outputs[0]) or graphs.dtype_of(node.inputs[1]) or np.dtype(np.float32)


def _read(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return bool(tensor.outputs) or graphs.is_output(graph, tensor)
