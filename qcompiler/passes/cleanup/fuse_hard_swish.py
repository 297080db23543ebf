"""x · clip(x + 3, 0, 6) / 6 written out as four nodes becomes HardSwish.

Div(Mul(x, Clip(Add(x, 3), 0, 6)), 6)  ⇒  HardSwish(x)

Paddle exports it so. ONNX Runtime then reads and writes the tensor four times instead of twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import detach, remove_nodes, set_input
from qcompiler.ir.graph import constant_value, graphs, is_op, is_present, only_consumer, producer
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class FuseHardSwish(Pass):
    """Join the four nodes of a written-out HardSwish."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per division by 6 that ends one, or that would if nobody else read what it is made of."""
        if graph.opset < 14:
            return
        for inner in graphs(graph):
            idle: list[gs.Node] = []
            for node in list(inner.nodes):
                found = _match(node)
                if found is None:
                    continue
                x, parts = found
                if any(only_consumer(inner, part.outputs[0]) is None for part in parts):
                    yield Skipped(node.name, "other nodes read the steps in between")
                    continue
                node.op, node.attrs = "HardSwish", {}
                set_input(node, 0, x)
                node.inputs.pop()
                for part in parts:
                    detach(part)
                idle.extend(parts)
                yield Changed(node.name, f"HardSwish of '{x.name}'")
            remove_nodes(inner, idle)


def _match(last: gs.Node) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The tensor x and the nodes before `last`, last first, if `last` ends x · clip(x + 3, 0, 6) / 6."""
    if not (_times(last, 1 / 6, "Mul") or _times(last, 6, "Div")):
        return None
    product = producer(last.inputs[0])
    if product is None or not is_op(product, "Mul"):
        return None
    for x, other in (product.inputs[:2], product.inputs[1::-1]):
        clip = producer(other)
        shifted = producer(clip.inputs[0]) if clip is not None and _is_clip(clip) else None
        if shifted is not None and _times(shifted, 3, "Add") and shifted.inputs[0] is x:
            return x, [product, clip, shifted]
    return None


def _times(node: gs.Node, value: float, op: str) -> bool:
    """Whether a node is `op` with this scalar as its second input."""
    if not is_op(node, op):
        return False
    constant = constant_value(node.inputs[1])
    return constant is not None and constant.size == 1 and abs(float(constant.ravel()[0]) - value) < 1e-6 * value


def _is_clip(node: gs.Node) -> bool:
    """Whether a node clips to 0..6."""
    if not is_op(node, "Clip"):
        return False
    bounds = [constant_value(node.inputs[i]) if is_present(node, i) else None for i in (1, 2)]
    found = [float(bound.ravel()[0]) if bound is not None and bound.size == 1 else None for bound in bounds]
    return found == [0.0, 6.0]
