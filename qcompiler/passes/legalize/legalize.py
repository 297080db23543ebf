"""What the target refuses, takes and runs in float, or takes and computes wrongly, never leaves the compiler.

First what can be mended exactly is mended (`REPAIRS`), then what is left is refused (`_refuse_quantized`),
each by small rules over (graph, target). Graphs of our own making pass untouched: this is for models that come with
Q/DQ pairs or quantized operators in them, and the last guard before an engine is built.

ONNX Runtime takes nearly everything that ONNX allows; for it only impossible scales are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import pairs
from qcompiler.passes.base import Fact, Note, Pass
from qcompiler.passes.legalize import _fold_scales as fold_scales
from qcompiler.passes.legalize import _gathered_tables as gathered_tables
from qcompiler.passes.legalize import _refuse_quantized as refuse_quantized
from qcompiler.passes.legalize import _repair_operators as repair_operators
from qcompiler.passes.legalize import _repair_quantized as repair_quantized
from qcompiler.passes.legalize import _repair_scales as repair_scales
from qcompiler.passes.legalize import convert_qoperator
from qcompiler.target import Target

Repair = Callable[[gs.Graph, Target], Iterator[Note]]

REPAIRS: tuple[Repair, ...] = (
    repair_quantized.standard_domain,
    fold_scales.folded_scales,
    gathered_tables.gathered_tables,
    convert_qoperator.quantized_operators,
    repair_quantized.written_zero_points,
    repair_quantized.stored_constants,
    repair_quantized.signed_constants,
    repair_quantized.signed_activations,
    repair_operators.float_biases,
    repair_scales.wide_scales,
    repair_scales.typed_weights,
    repair_scales.typed_dequantize,
    repair_scales.single_scales,
    repair_scales.dead_channels,
    repair_operators.float_without_kernel,
    repair_operators.float_operands,
    repair_quantized.bare_constants,
    repair_quantized.typed_fp8,
)


def repaired(graph: gs.Graph, target: Target) -> Iterator[Note]:
    """All repairs of one graph. They are about what is stored in integers: a graph without any is left at once."""
    if next(pairs(graph), None) is None and not gathered_tables.tables(graph):
        return
    for repair in REPAIRS:
        yield from repair(graph, target)


@dataclass(frozen=True)
class Legalize(Pass):
    """Mend or refuse quantized parts that the target cannot compute."""

    target: Target = field(default_factory=lambda: Target("tensorrt-rtx"))

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LEGAL})
    exact_to: ClassVar[float | None] = 1e-3  # a tie of a written-out QLinearConv may round the other way

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Applies the rules to the graph and all nested ones.

        Raises:
            EngineError: the target cannot take the graph; names node, tensor and remedy.
        """
        for one in list(graphs.graphs(graph)):
            if self.target.engine != "onnxruntime":
                yield from repaired(one, self.target)
                edit.sort(one)
            rules = refuse_quantized.ANY if self.target.engine == "onnxruntime" else refuse_quantized.RULES
            for rule in rules:
                rule(one, self.target)
