"""Everything that safely can computes in FP16 (or BF16), the rest stays FP32, with explicit Casts in between.

`qcompiler.passes.high_precision._rules` judges each node for itself; here its verdicts spread to the neighbours where a
lonely node in half between FP32 ones would only cost Casts or lose what FP32 was kept for:

* `angle`: what a Sin or Cos of positions is computed from (rotary embeddings: position 2049 does not exist in FP16);
* `recurrent`: what computes the input of an LSTM, GRU or RNN (TensorRT-RTX cannot build one behind a Cast);
* `index`: floats computed from shapes and positions that end as integers (sizes of a Resize, window offsets);
* `state`: what is added to the state of a Loop or Scan from step to step;
* `island`: nodes that sit between nodes that stay FP32.

Branches of If and bodies of Loop and Scan are typed by the same rules, with the ranges observed inside them; a branch
that the data never took stays FP32 for FP16. `qcompiler.passes.high_precision._borders` says which values cross between
graphs as half.

QuantizeLinear reads FP32 and all scales stay FP32: with half scales the compiler stores raw integer accumulators as
half, and they overflow. DequantizeLinear writes what its consumer computes in.

BF16 graphs are for engines: ONNX Runtime has no BF16 kernels for most operators on the CPU, so their numbers are
checked on the same graph typed FP32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import UsageError
from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Decided, Fact, Kept, Note, Pass, Skipped
from qcompiler.passes.high_precision import _borders as borders
from qcompiler.passes.high_precision import _masks as masks
from qcompiler.passes.high_precision import _rules as rules
from qcompiler.passes.high_precision._casts import Casting
from qcompiler.passes.high_precision._spread import spread
from qcompiler.passes.high_precision._view import TypingView, Verdict
from qcompiler.plan import Decision
from qcompiler.statistics.ranges import Ranges
from qcompiler.target import DType

HIGH_PRECISION = "high-precision"
_TYPED_DEQUANTIZE = 23  # the opset in which DequantizeLinear has `output_dtype`
_TYPELESS = ("QuantizeLinear", "DequantizeLinear", "Cast", "ConstantOfShape", "Shape", "Size")


@dataclass(frozen=True)
class HighPrecision(Pass):
    """Compute in FP16 or BF16 wherever the observed ranges allow it.

    Attributes:
        dtype: FP16, BF16, or FP32 for nothing to do.
        ranges: what was observed, by tensor name; a node around an unobserved tensor stays FP32 in FP16 graphs.
        typed_dequantize: the target takes `output_dtype` on DequantizeLinear, which saves a Cast; graphs of opset
            23 get it.
        io_types: `keep` for inputs and outputs of the graph as they are, `high-precision` to make float ones `dtype`
            too where their range fits; a Kept note has the reason for each that stays.
        keep: names of nodes that stay FP32 whatever the rules say.
        noisy: nodes that stay FP32 because of what their rounding does to the outputs, each with the SQNR in dB that it
            leaves there alone, or with those that it was measured with.
    """

    dtype: DType = DType.FP16
    ranges: Ranges = field(default_factory=Ranges, repr=False)
    typed_dequantize: bool = True
    io_types: str = "keep"
    keep: tuple[str, ...] = field(default=(), repr=False)
    noisy: Mapping[str, float] = field(default_factory=dict, repr=False)

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED})
    exact_to: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            UsageError: `io_types` is neither of the two.
        """
        if self.io_types not in ("keep", HIGH_PRECISION):
            raise UsageError(f"io_types is 'keep' or '{HIGH_PRECISION}', not '{self.io_types}'")

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Decides, clamps masks, then casts. A graph that is typed already stays as it is.

        Yields:
            A Decided note for every node that holds FP32 data, in graph order, nested graphs behind their owner; then
            what stays and what changed.
        """
        if self.dtype is DType.FP32:
            return
        found = self.judged(graph)
        view, verdicts, judged, slots = found.view, found.verdicts, found.nodes, found.slots
        stays = found.stays
        nested, ends = borders.between_graphs(view, slots)
        view.borders |= ends
        decisions = [_decision(node, view, verdicts.get(node.name), nested) for node in judged]
        yield from (Decided(one.node, one.why, one) for one in decisions)
        yield from (Skipped(one.node, f"{one.rule}: {one.why}") for one in decisions if one.precision is DType.FP32)
        yield from (Kept(name, why) for name, why in stays.items())
        yield from _clamp(view, [mask for mask in found.masks if mask.deep and id(mask.node) in slots])
        typed = self.typed_dequantize and int(graph.opset) >= _TYPED_DEQUANTIZE
        yield from Casting(view, {**slots, **nested}, typed).apply()

    def judged(self, graph: gs.Graph) -> Judged:
        """What becomes of each node of a graph that is not typed yet; the graph stays as it is."""
        view = TypingView(graph, self.dtype, self.ranges, element_types.infer_all(graph))
        found = masks.find_masks(view)
        for mask in found:
            lowest = -math.inf if mask.infinite else masks.LOWEST
            view.clamps[id(mask.node), mask.index] = (lowest, view.format.largest)
        stays = borders.of_model(view) if self.io_types == HIGH_PRECISION else {}
        verdicts, nodes = judge(view, self.keep, self.noisy)
        slots = {id(node): view.slots(node) for node in nodes if node.name not in verdicts}
        return Judged(view, verdicts, nodes, slots, found, stays)


@dataclass(frozen=True, eq=False)
class Judged:
    """What typing does to a graph.

    Attributes:
        view: the graph, with the bounds that inputs are clamped to on their way into half.
        verdicts: why nodes stay FP32, by name.
        nodes: all that hold FP32 data, in graph order, nested graphs behind their owner.
        slots: what moves, by id(node), of every node that computes in the lower type.
        masks: of attentions.
        stays: why inputs and outputs of the model keep their type, by name.
    """

    view: TypingView
    verdicts: Mapping[str, Verdict]
    nodes: Sequence[gs.Node]
    slots: dict[int, element_types.Slots]
    masks: Sequence[masks.Mask]
    stays: Mapping[str, str]


def judge(
    view: TypingView, keep: tuple[str, ...] = (), noisy: Mapping[str, float] | None = None
) -> tuple[dict[str, Verdict], list[gs.Node]]:
    """Why nodes stay FP32, by name, and all nodes that hold FP32 data in graph order, nested graphs included."""
    verdicts: dict[str, Verdict] = {}
    judged: list[gs.Node] = []
    for node in view.nodes:
        slots = view.slots(node)
        if graphs.is_op(node, *_TYPELESS) or not (slots.inputs or slots.outputs or graphs.subgraphs(node)):
            continue
        judged.append(node)
        verdict = Verdict("kept", "kept in FP32 by request") if node.name in keep else rules.judge(node, view)
        if verdict is None and noisy is not None and node.name in noisy:
            verdict = _noisy(view, noisy[node.name])
        if verdict is not None:
            verdicts[node.name] = verdict
    spread(view, judged, verdicts)
    return verdicts, judged


def _noisy(view: TypingView, sqnr_db: float) -> Verdict:
    why = f"rounded to {view.dtype} alone, it and its neighbours leave {sqnr_db:.1f} dB at the outputs"
    return Verdict(f"{view.dtype}-noise", why, {"sqnr_db": sqnr_db})


def _decision(
    node: gs.Node, view: TypingView, verdict: Verdict | None, nested: Mapping[int, element_types.Slots]
) -> Decision:
    if id(node) in nested:
        why = f"what crosses between its graphs is {view.dtype} where nothing else is said of a node inside"
        return Decision(node.name, node.op, view.dtype, "control-flow", why)
    if verdict is None:
        return Decision(node.name, node.op, view.dtype, "fits", f"constants and observed values fit {view.dtype}")
    return Decision(node.name, node.op, DType.FP32, verdict.rule, verdict.why, figures=verdict.figures)


def _clamp(view: TypingView, found: list[masks.Mask]) -> Iterator[Note]:
    """Max(mask, -30000) in FP32 in front of each use of a computed mask; constant masks are clamped as they convert."""
    names = Names(view.graph)
    made: dict[tuple[int, int], gs.Variable] = {}
    for mask in found:
        tensor, home = mask.node.inputs[mask.index], view.homes[id(mask.node)]
        if isinstance(tensor, gs.Constant):
            continue
        key = (id(tensor), id(home))
        if key not in made:
            bound = gs.Constant(names.fresh(f"{tensor.name}/lowest"), np.array(masks.LOWEST, np.float32))
            made[key] = gs.Variable(names.fresh(f"{tensor.name}/clamped"), np.float32, tensor.shape)
            node = gs.Node("Max", names.fresh(f"{tensor.name}/clamp"), {}, [tensor, bound], [made[key]])
            edit.insert_before(home, mask.node, node)
            view.types[id(bound)] = view.types[id(made[key])] = element_types.FP32
            yield Changed(node.name, f"mask '{tensor.name}' clamped to {masks.LOWEST:g}: its softmax stays 0")
        edit.set_input(mask.node, mask.index, made[key])
