"""x / Sqrt(v + 0) ⇒ x / Sqrt(v + 6e-8): what was rounded to 0 in FP16 guards the division again.

Guards of 1e-12, 1e-9 or 1e-8 are below the smallest number of FP16: a converter that only rounds leaves 0. It shows
where the rest of the divisor is 0, too, as on rows of zeros that pad a batch: 0 / 0 is NaN. A 0 that is added to a
divisor, or that it is kept above, means nothing else, so it becomes the smallest number of FP16, which careful
converters write. BF16 holds such guards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.operators import REARRANGES
from qcompiler.passes.base import Changed, Note, Pass
from qcompiler.passes.types._values import FP16

_SMALLEST = np.finfo(np.float16).smallest_subnormal
_GUARDED = {"Add": (0, 1), "Max": (0, 1), "Clip": (1,)}  # where the guard may stand
_STILL_SMALL = (*REARRANGES, "Cast", "Expand", "Sqrt")  # of a divisor, 0 for 0


@dataclass(frozen=True)
class KeepGuards(Pass):
    """Make the smallest number of FP16 of a 0 in FP16 that guards a division: 0 divided by 0 is NaN."""

    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note for each guard that is not 0 now, by the name of its tensor."""
        names = Names(graph)
        for inner in graphs.graphs(graph):
            for node in inner.nodes:
                for index in _GUARDED.get(node.op, ()) if graphs.is_standard(node) else ():
                    if _is_zero(node, index) and _divides(node.outputs[0]):
                        yield _kept(node, index, names)


def _is_zero(node: gs.Node, index: int) -> bool:
    if len(node.inputs) <= index or (node.op != "Clip" and len(node.inputs) != 2):
        return False
    value = graphs.constant_value(node.inputs[index])
    return value is not None and value.dtype == FP16 and value.size == 1 and not value.any()


def _divides(tensor: gs.Tensor) -> bool:
    """Whether something is divided by a tensor, or by its root."""
    for node, index in graphs.consumers(tensor):
        if graphs.is_op(node, "Reciprocal") or (graphs.is_op(node, "Div") and index == 1):
            return True
        if index == 0 and graphs.is_op(node, *_STILL_SMALL) and _divides(node.outputs[0]):
            return True
    return False


def _kept(node: gs.Node, index: int, names: Names) -> Note:
    zero = node.inputs[index]
    value = graphs.constant_value(zero)
    assert value is not None
    guard = edit.add_constant(names.fresh(f"{zero.name}/guard"), np.full_like(value, _SMALLEST))
    edit.set_input(node, index, guard)
    return Changed(zero.name, f"the 0 that guards the divisor '{node.outputs[0].name}' is the smallest number of FP16")
