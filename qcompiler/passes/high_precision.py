"""Everything that safely can computes in FP16 (or BF16), the rest stays FP32, with explicit Casts in between.

`qcompiler.half` judges each node for itself; here its verdicts spread to the neighbours where a lonely node in half
between FP32 ones would only cost Casts or lose what FP32 was kept for:

* `angle`: what a Sin or Cos of positions is computed from (rotary embeddings: position 2049 does not exist in FP16);
* `recurrent`: what computes the input of an LSTM, GRU or RNN (TensorRT-RTX cannot build one behind a Cast);
* `index`: floats computed from shapes and positions that end as integers (sizes of a Resize, window offsets);
* `island`: nodes that sit between nodes that stay FP32.

QuantizeLinear reads FP32 and all scales stay FP32: with half scales the compiler stores raw integer accumulators as
half, and they overflow. DequantizeLinear writes what its consumer computes in.

BF16 graphs are for engines: ONNX Runtime has no BF16 kernels for most operators on the CPU, so their numbers are
checked on the same graph typed FP32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import element_types, half, masks
from qcompiler import graph as graphs
from qcompiler.half import View
from qcompiler.pass_ import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.insert_casts import Casting
from qcompiler.plan import Decision
from qcompiler.ranges import Ranges
from qcompiler.spread import spread
from qcompiler.target import DType

_TYPELESS = ("QuantizeLinear", "DequantizeLinear", "Cast", "ConstantOfShape", "Shape", "Size")


@dataclass(frozen=True)
class HighPrecision(Pass):
    """Compute in FP16 or BF16 wherever the observed ranges allow it.

    Attributes:
        dtype: FP16, BF16, or FP32 for nothing to do.
        ranges: what was observed, by tensor name; a node around an unobserved tensor stays FP32 in FP16 graphs.
        typed_dequantize: the target takes `output_dtype` on DequantizeLinear (opset 23), which saves a Cast.
        keep: names of nodes that stay FP32 whatever the rules say.
        decisions: filled by the run: one for every node that holds FP32 data, in graph order.
    """

    dtype: DType = DType.FP16
    ranges: Ranges = field(default_factory=Ranges, repr=False)
    typed_dequantize: bool = True
    keep: tuple[str, ...] = field(default=(), repr=False)
    decisions: list[Decision] = field(default_factory=list, repr=False, compare=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Decides, clamps masks, then casts. A graph that is typed already stays as it is."""
        self.decisions.clear()
        if self.dtype is DType.FP32:
            return
        view = View(graph, self.dtype, self.ranges, element_types.infer(graph))
        found = masks.find(view)
        for mask in found:
            view.clamps[id(mask.node), mask.index] = (masks.LOWEST, view.format.largest)
        self.decisions.extend(decide(view, self.keep))
        stay = {one.node for one in self.decisions if one.precision is DType.FP32}
        low = {one.node for one in self.decisions} - stay
        yield from (Skipped(one.node, f"{one.rule}: {one.why}") for one in self.decisions if one.node in stay)
        yield from _clamp(view, [mask for mask in found if mask.deep and mask.node.name in low])
        slots = {id(node): view.slots(node) for node in graph.nodes if node.name in low}
        yield from Casting(graph, self.dtype, slots, view.types, view.clamps, self.typed_dequantize).apply()


def decide(view: View, keep: tuple[str, ...] = ()) -> list[Decision]:
    """A decision for every node of the main graph that holds FP32 data, in graph order."""
    verdicts: dict[str, half.Verdict] = {}
    judged: list[gs.Node] = []
    for node in view.graph.nodes:
        slots = view.slots(node)
        if graphs.is_op(node, *_TYPELESS) or not (slots.inputs or slots.outputs or graphs.subgraphs(node)):
            continue
        judged.append(node)
        verdict = half.Verdict("kept", "kept in FP32 by request") if node.name in keep else half.judge(node, view)
        if verdict is not None:
            verdicts[node.name] = verdict
    spread(view, judged, verdicts)
    return [_decision(node, view.dtype, verdicts.get(node.name)) for node in judged]


def _decision(node: gs.Node, dtype: DType, verdict: half.Verdict | None) -> Decision:
    if verdict is None:
        return Decision(node.name, node.op, dtype, "fits", f"constants and observed values fit {dtype}")
    return Decision(node.name, node.op, DType.FP32, verdict.rule, verdict.why, figures=verdict.figures)


def _clamp(view: View, found: list[masks.Mask]) -> Iterator[Note]:
    """Max(mask, -30000) in FP32 in front of each use of a computed mask; constant masks are clamped as they convert."""
    names = graphs.Names(view.graph)
    made: dict[int, gs.Variable] = {}
    for mask in found:
        tensor = mask.node.inputs[mask.index]
        if isinstance(tensor, gs.Constant):
            continue
        if id(tensor) not in made:
            bound = gs.Constant(names.fresh(f"{tensor.name}/lowest"), np.array(masks.LOWEST, np.float32))
            made[id(tensor)] = gs.Variable(names.fresh(f"{tensor.name}/clamped"), np.float32, tensor.shape)
            node = gs.Node("Max", names.fresh(f"{tensor.name}/clamp"), {}, [tensor, bound], [made[id(tensor)]])
            graphs.insert_before(view.graph, mask.node, node)
            view.types[id(bound)] = view.types[id(made[id(tensor)])] = element_types.FP32
            yield Changed(node.name, f"mask '{tensor.name}' clamped to {masks.LOWEST:g}: its softmax stays 0")
        graphs.set_input(mask.node, mask.index, made[id(tensor)])
