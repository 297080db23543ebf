"""x · W  ⇒  (x/s) · (s·W): channels of activations that are too large hand a part of their range to the weights.

    LN(x; g, b) · W   ⇒   LN(x; g/s, b/s) · (diag(s)·W)

After Xiao et al. 2023, "SmoothQuant", §4. There, only the norms before q/k/v and the first FFN layer are folded; here
the division goes into whatever constants can take it, also those before a GLU's product, a GELU or an attention's
values (see `qcompiler.passes.absorb.absorb`), and every layer behind them that reads the divided tensor is made up for.
The factors are chosen elsewhere: this is the float rewrite alone, and the equivalence check proves that it changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import tensors
from qcompiler.ir.names import Names
from qcompiler.passes.absorb import absorb
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide activations by factors per channel and multiply the weights that read them.

    Attributes:
        scales: factors by name of the activation, float32 [C], positive: that tensor is divided by them. Every run
            divides once, so a second run with the same factors divides again.
        insert: put a Mul in front of the layers where no constant before the tensor can take the division.
        split: double a normalisation whose result something else needs as it is.
    """

    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)
    insert: bool = False
    split: bool = False

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 1e-4  # as other folds; large values that cancel round otherwise in FP32

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor of `scales`, in graph order."""
        names = Names(graph)
        found = [tensor for tensor in tensors(graph) if tensor.name in self.scales]
        for tensor in found:
            yield self._smooth(graph, tensor, names)
        for name in self.scales.keys() - {tensor.name for tensor in found}:
            yield Skipped(name, "there is no such tensor")

    def _smooth(self, graph: gs.Graph, tensor: gs.Tensor, names: Names) -> Note:
        scale = np.asarray(self.scales[tensor.name], np.float32)
        axis = absorb.channel_axis(tensor)
        if axis is None:
            return Skipped(tensor.name, "no linear node with a constant weight reads it")
        plan = absorb.find_moves(graph, tensor, axis)
        if plan.why and self.split:
            plan = absorb.find_moves(graph, tensor, axis, split=True)
        if plan.why and self.insert:
            plan = absorb.find_insertion(graph, tensor, axis)
        why = absorb.apply(graph, plan, scale, names)
        return Skipped(tensor.name, why) if why else Changed(tensor.name, _spell(plan))


def _spell(plan: absorb.Absorption) -> str:
    readers = ", ".join(f"'{node.name}'" for node in plan.readers)
    if plan.inserted:
        return f"inserted Mul divides it in front of {readers}"
    takers = ", ".join(f"'{node.name}' ({node.op})" for node in plan.takers)
    doubled = f"; doubled {', '.join(repr(node.name) for node in plan.copies)}" if plan.copies else ""
    return f"divided in {takers}, multiplied in {readers}{doubled}"
