"""What came quantized and can be said in the target's terms with the same numbers, is: the repairs of `legalize`.

They run once more here, in front of everything that decides: a bias behind DQ then is a constant like any other, and
uint8 around 128 the INT8 that it stands for. What has no exact form is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Fact, Note, Pass
from qcompiler.passes.legalize.legalize import repaired
from qcompiler.target import Target


@dataclass(frozen=True)
class MendQuantized(Pass):
    """Say what came quantized in the target's terms, where that is exact."""

    target: Target = field(default_factory=lambda: Target("tensorrt-rtx"))

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 5e-2  # scales in half become FP32: a tie may then round the other way

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Applies the repairs to the graph and all nested ones; ONNX Runtime needs none."""
        if self.target.engine == "onnxruntime":
            return
        for one in list(graphs.graphs(graph)):
            yield from repaired(one, self.target)
            edit.sort(one)
