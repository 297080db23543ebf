"""Weights in few bits, activations as they are: methods, what they cost each layer, and how layers are given back.

    rtn        nearest integers, whole range of each block
    mse        the range of each block that errs least over its weights
    awq        channels that matter are scaled up before rounding (and their producers down), then the range of each
               block that errs least in the outputs
    gptq       integers chosen channel by channel, each making up for the errors of those before it
    awq+gptq   the scaling of the one, the rounding of the other

The scaling is the float rewrite of SmoothQuant and stands behind the equivalence gate. What a layer errs is judged by
its own outputs: Σ |x·(Ŵ - W)|² / Σ |x·W|² over all rows for gptq, over recorded ones for the others. Without data there
is nothing but the weights to judge by.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import absorb, awq, blocks, decide, hessian, linear, record, weight_layers
from qcompiler import gptq as gptq_
from qcompiler import model as models
from qcompiler.blocks import Blocks
from qcompiler.decide import Refusal
from qcompiler.equivalence import Gate
from qcompiler.errors import AccuracyError, EngineError, UsageError
from qcompiler.macs import concrete_shapes
from qcompiler.numerics import sqnr_db
from qcompiler.pass_ import Pass
from qcompiler.passes.matmul_nbits import MatmulNbits
from qcompiler.passes.smooth_quant import SmoothQuant
from qcompiler.passes.weight_only import WeightOnly
from qcompiler.plan import Decision, Plan
from qcompiler.recipe import Recipe
from qcompiler.record import Rows
from qcompiler.session import return_freed_memory
from qcompiler.target import DType, Target
from qcompiler.verification import gate as check_gate
from qcompiler.weight_layers import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.data import Source
    from qcompiler.observe import Observations
    from qcompiler.stages import Run
    from qcompiler.verification import Verification

PRECISIONS = ("int8-weight", "int4-weight")
FIRST_INT4_SM = 80
FIRST_OPSET = 21  # of blocks and INT4
WORTH_DB = 0.05  # below this gain, scaling is not worth an edit
GATE_FEEDS = 2
RAISED = 0.05  # share of the stored weights that goes back to high precision where a gate was missed
MOST_WORK = 2e11  # multiply-accumulates that a figure of one layer may take


@dataclass(frozen=True, eq=False)
class Weight:
    """One stored weight and what it costs.

    Attributes:
        layer: which product, in which form.
        blocks: the integers and their scales.
        method: how it was rounded.
        weight_db: SQNR of the weight alone.
        output_db: SQNR of the layer's outputs with it; None where nothing was observed.
        gain_db: how much better that is than rounding to nearest, None likewise.
    """

    layer: Layer
    blocks: Blocks = field(repr=False)
    method: str
    weight_db: float
    output_db: float | None
    gain_db: float | None

    @property
    def bytes(self) -> int:
        """What is stored: integers and scales in half, zero points in the integers' own type."""
        bits = 4 if self.layer.format == "int4" else 8
        return -(-bits * (self.blocks.values.size + self.blocks.scales.size) // 8) + 2 * self.blocks.scales.size


@dataclass(frozen=True, eq=False)
class Stored:
    """Everything that the stage decided.

    Attributes:
        method: how weights were rounded, after `auto` was settled.
        weights: of the stored layers, by node, in graph order.
        refused: the other linear nodes.
        scaled: by activation, the gain in dB of the scaling that AWQ folded into its producer.
        unscaled: by activation, why AWQ left it.
        restored: by node, layers that went back to high precision for a gate.
        macs: of linear nodes, by name; empty without data.
    """

    method: str
    weights: dict[str, Weight]
    refused: list[Refusal]
    scaled: dict[str, float] = field(default_factory=dict)
    unscaled: dict[str, str] = field(default_factory=dict)
    restored: dict[str, Weight] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)

    def blocks(self) -> dict[str, Blocks]:
        """What the lowering stores, by node."""
        return {name: one.blocks for name, one in self.weights.items()}


def refuse_early(recipe: Recipe, target: Target, data: bool) -> Target:
    """What can be known to fail before anything is read; returns the target with the opset that blocks need.

    Raises:
        UsageError: the recipe asks for what does not go together, or for data that is not there.
        EngineError: a GPU of the target has no INT4.
    """
    if recipe.precision not in PRECISIONS:
        return target
    wanted = recipe.weight_only
    if wanted.storage == "matmulnbits" and recipe.precision != "int4-weight":
        raise UsageError(
            "recipe key 'weight_only.storage' = 'matmulnbits' stores INT4: choose precision int4-weight, or storage "
            "dequantize, which ONNX Runtime fuses by itself"
        )
    if recipe.attention != "float":
        raise UsageError(
            f"recipe key 'attention' = '{recipe.attention}' quantizes activations, which engines miscompile beside "
            f"weights in blocks: choose precision int8 for it, or leave it out with {recipe.precision}"
        )
    if not data and ("awq" in wanted.method or "gptq" in wanted.method):
        raise UsageError(
            f"weight method '{wanted.method}' looks at activations: give --data with real samples, or choose "
            "--weight-method mse or rtn, which need none"
        )
    if not data and target.high_precision is DType.FP16:
        raise UsageError(
            f"precision '{recipe.precision}' leaves activations in FP16, which only their ranges can show to fit: give "
            "--data with real samples, or choose --high-precision fp32 or bf16, which need none (weights alone "
            "are rounded without data by --weight-method mse or rtn)"
        )
    old = [sm for sm in target.sms if recipe.precision == "int4-weight" and int(sm[2:]) < FIRST_INT4_SM]
    if old:
        raise EngineError(
            f"{' and '.join(old)} has no INT4, which begins with sm{FIRST_INT4_SM} (Ampere): choose precision "
            "int8-weight, which every GPU takes, or a newer target"
        )
    return replace(target, opset=max(target.opset, FIRST_OPSET))


def needs_rows(recipe: Recipe, target: Target) -> bool:
    """Whether a profile must allow for more than one row: TensorRT-RTX 1.7 multiplies a single one with no INT8 weight.

    Where it knows that there is but one, it dequantizes the whole weight on every run. INT4 models have INT8 parts.
    """
    return recipe.precision in PRECISIONS and target.engine == "tensorrt-rtx"


def stage(
    run: Run, normal: models.Model, samples: Source | None, observed: Observations
) -> tuple[models.Model, Stored | None]:
    """Rounds the weights; returns the model (with AWQ's scaling folded in) and what was decided, None if not asked."""
    recipe = run.recipe
    if recipe.precision not in PRECISIONS:
        return normal, None
    if samples is None:
        run.warn(
            "no --data: weights are rounded by themselves, and nothing compares the result with the float model; "
            "with data, --weight-method gptq errs less"
        )
    layers, refused = weight_layers.find(normal.graph, run.target, recipe)
    method = _method(recipe, data=samples is not None)
    half = run.target.high_precision is not DType.FP32
    with run.stage("weights", len(layers) or 1) as advance:
        rows = record.rows(normal, {one.activation: -1 for one in layers}, observed.kept)
        stored = Stored(method, {}, refused, macs=_macs(normal, observed))
        scaled = normal
        scales: dict[str, NDArray[np.float32]] = {}
        if "awq" in method:
            scaled, scales = _scale(run, normal, layers, rows, stored, observed, half=half)
        again = {one.node: one for one in weight_layers.find(scaled.graph, run.target, recipe)[0]}
        pieces = _Pieces(
            normal, scaled, again, rows, scales, {one.node: one.activation for one in layers}, recipe, half
        )
        found: dict[str, Weight] = {}
        for weight in pieces.round(method, samples):
            found[weight.layer.node] = weight
            advance(1)
    stored.weights.update({one.node: found[one.node] for one in layers})
    models.forget_pages(normal)
    return_freed_memory()
    return scaled, stored


def _method(recipe: Recipe, *, data: bool) -> str:
    wanted = recipe.weight_only.method
    if wanted != "auto":
        return wanted
    return "gptq" if data and recipe.precision == "int4-weight" else "mse"


def _macs(model: models.Model, observed: Observations) -> Mapping[str, int]:
    if not observed.kept:
        return {}
    graph = model.graph
    return decide.node_macs(graph, concrete_shapes(graph, observed.kept[0], decide.tensors_for_shapes(graph)))


def _scale(
    run: Run,
    normal: models.Model,
    layers: Sequence[Layer],
    rows: Mapping[str, Rows],
    stored: Stored,
    observed: Observations,
    *,
    half: bool,
) -> tuple[models.Model, dict[str, NDArray[np.float32]]]:
    """AWQ's scaling, folded into the producers, and its factors by activation."""
    nodes = {node.name: node for node in normal.graph.nodes}
    tensors = normal.graph.tensors()
    scales: dict[str, NDArray[np.float32]] = {}
    for name, members in weight_layers.by_activation(layers).items():
        few = [one for one in members if one.format == "int4"] or members
        fold = absorb.plan(normal.graph, tensors[name], -1, split=True)
        if fold.why:
            stored.unscaled[name] = f"no producer can absorb it: {fold.why}"
            continue
        weights = [_matrix(nodes[one.node]) for one in few]
        chosen = awq.search(
            rows[name], weights, size=few[0].size, format=few[0].format, classes=fold.classes, half=half
        )
        if chosen.gain_db < WORTH_DB:
            stored.unscaled[name] = f"no scaling gains {WORTH_DB:g} dB"
            continue
        scales[name], stored.scaled[name] = chosen.scales, chosen.gain_db
    if not scales:
        return normal, scales
    gate = Gate(normal, observed.kept[:GATE_FEEDS])
    scaled = models.copy(normal)
    one = SmoothQuant(scales, split=True)
    report = one(scaled.graph)
    error = gate.check(one, report, scaled)
    run.reports.append(report)
    if error is not None:
        run.equivalence[report.name] = error
    return scaled, scales


def _matrix(node: Any) -> NDArray[np.float32]:
    found = linear.matrix(node)
    assert found is not None  # `weight_layers` has looked
    return found


@dataclass(frozen=True)
class _Pieces:
    """What rounding needs to know of all layers.

    Attributes:
        normal: the float model before AWQ's scaling.
        scaled: the one behind it; the same where nothing was scaled.
        layers: of `scaled`, by node.
        rows: recorded rows of the activations of `normal`.
        scales: what activations of `normal` were divided by.
        before: by node, the name of its activation in `normal`.
        recipe: method, damping and order.
        half: scales are numbers that FP16 holds exactly.
    """

    normal: models.Model
    scaled: models.Model
    layers: Mapping[str, Layer]
    rows: Mapping[str, Rows]
    scales: Mapping[str, NDArray[np.float32]]
    before: Mapping[str, str]
    recipe: Recipe
    half: bool

    def round(self, method: str, samples: Source | None) -> Iterator[Weight]:
        """All layers, in an order that needs few Hessians at a time."""
        groups = dict(weight_layers.by_activation(self.layers.values()))
        depths = {
            name: members[0].depth
            for name, members in groups.items()
            if any(self._of(one, method).endswith("gptq") for one in members)
        }
        for name in groups.keys() - depths.keys() if samples is None or not depths else ():
            yield from self._group(groups.pop(name), method, None)
        parts = hessian.hessians(self.scaled, depths, samples or ()) if depths else ()
        for part in parts:
            for name, found in part.items():
                yield from self._group(groups.pop(name), method, found)
        for members in groups.values():
            yield from self._group(members, method, None)

    def _of(self, layer: Layer, method: str) -> str:
        """The method of one layer: beside INT4 blocks, INT8 errs so little that its own grid is all it needs."""
        return "mse" if layer.format == "int8" and self.recipe.precision == "int4-weight" else method

    def _group(self, members: Sequence[Layer], method: str, found: hessian.Hessian | None) -> Iterator[Weight]:
        before = self.before[members[0].node]
        rows, scales = self.rows.get(before), self.scales.get(before)
        factors: dict[int | None, gptq_.Factor] = {}
        if rows is not None and scales is not None:
            rows = Rows(rows.values / scales, rows.counts)
        seen = found if found is not None else None if rows is None else hessian.of_rows(rows.values, rows.counts)
        for one in members:
            own = self._of(one, method)
            if own.endswith("gptq") and found is not None and one.size not in factors:
                wanted = self.recipe.weight_only
                factors[one.size] = gptq_.factor(found, size=one.size, damp=wanted.damp, act_order=wanted.act_order)
            yield self._one(one, own, factors.get(one.size), rows, seen, scales)

    def _one(
        self,
        layer: Layer,
        method: str,
        found: gptq_.Factor | None,
        rows: Rows | None,
        seen: hessian.Hessian | None,
        scales: NDArray[np.float32] | None,
    ) -> Weight:
        weight = _matrix(_node(self.scaled, layer.node))
        stored = self._rounded(layer, method, weight, found, rows)
        difference = blocks.dequantize(stored) - weight
        alone = sqnr_db(weight, difference)
        if seen is None or layer.depth**2 * layer.width > MOST_WORK:
            return Weight(layer, stored, method, alone, None, None)
        output = _db(hessian.error(weight, seen, difference))
        own = _matrix(_node(self.normal, layer.node))
        if method == "rtn":
            return Weight(layer, stored, method, alone, output, 0.0)
        difference = blocks.dequantize(blocks.round_to_nearest(own, layer.size, layer.format, half=self.half)) - own
        undone = seen if scales is None else seen * np.outer(scales, scales)
        nearest = _db(hessian.error(own, undone, difference))
        return Weight(layer, stored, method, alone, output, output - nearest)

    def _rounded(
        self,
        layer: Layer,
        method: str,
        weight: NDArray[np.float32],
        found: gptq_.Factor | None,
        rows: Rows | None,
    ) -> Blocks:
        size, format = layer.size, layer.format
        if method.endswith("gptq") and found is not None:
            return gptq_.gptq(weight, found, size=size, format=format, half=self.half)
        if method == "awq" and rows is not None:
            return awq.clip(weight, rows, size=size, format=format, half=self.half)
        if method == "rtn":
            return blocks.round_to_nearest(weight, size, format, half=self.half)
        return blocks.clip_by_error(weight, size, format, half=self.half)


def _node(model: models.Model, name: str) -> Any:
    return next(node for node in model.graph.nodes if node.name == name)


def _db(power: float) -> float:
    return -10 * math.log10(power) if power > 0 else math.inf


# --- What follows of it -----------------------------------------------------------------------------------------------


def passes(stored: Stored | None, recipe: Recipe) -> tuple[Pass, ...]:
    """What the lowering has to do for the weights."""
    if stored is None:
        return ()
    join = recipe.weight_only.storage == "matmulnbits"
    joined = (MatmulNbits(recipe.weight_only.accuracy_level),) if join else ()
    return WeightOnly(stored.blocks()), *joined


def into(plan: Plan, stored: Stored | None, target: Target, order: Sequence[str]) -> None:
    """Writes the decisions into the plan, in graph order.

    Args:
        plan: what else was decided; decisions about other nodes stay.
        stored: the stage's result; None for nothing to do.
        target: its high-precision type.
        order: names of the graph's nodes.
    """
    if stored is None:
        return
    high = target.high_precision
    for refusal in stored.refused:
        if refusal.node not in plan.decisions:
            own = DType.FP32 if refusal.rule == "subgraph" else high
            plan.add(decide.decision(refusal, own, stored.macs.get(refusal.node, 0)))
    for name, one in stored.weights.items():
        plan.add(
            Decision(
                name,
                one.layer.op,
                one.layer.dtype,
                "weight-only",
                _why(one, high),
                stored.macs.get(name, 0),
                _figures(one),
            )
        )
    for name, one in stored.restored.items():
        why = f"an accuracy gate was missed, and this is one of the layers that err most: {_errs(one)}"
        plan.add(Decision(name, one.layer.op, high, "sensitive", why, stored.macs.get(name, 0), _figures(one)))
    places = {name: index for index, name in enumerate(order)}
    plan.decisions = dict(sorted(plan.decisions.items(), key=lambda item: places.get(item[0], len(places))))


def _why(one: Weight, high: DType) -> str:
    layer = one.layer
    form = f"{layer.format.upper()} in blocks of {layer.size}" if layer.size else f"{layer.format.upper()} per output"
    special = f" ({layer.why})" if layer.why else ""
    tied = f"; '{layer.tied}' keeps the same numbers as a float table" if layer.tied else ""
    return f"weight stored as {form}{special} by {one.method}, activation and product in {high}: {_errs(one)}{tied}"


def _errs(one: Weight) -> str:
    if one.output_db is None:
        return f"the weight reaches {one.weight_db:.1f} dB"
    gain = (
        f", {one.gain_db:+.1f} dB over rounding to nearest" if one.method != "rtn" and one.gain_db is not None else ""
    )
    return f"its outputs reach {one.output_db:.1f} dB{gain}"


def _figures(one: Weight) -> dict[str, float]:
    found = {"weight_db": one.weight_db, "output_db": one.output_db, "gain_db": one.gain_db}
    return {key: round(value, 3) for key, value in found.items() if value is not None and math.isfinite(value)}


def missed(verification: Verification | None, recipe: Recipe) -> bool:
    """Whether a gate of the recipe is missed."""
    if verification is None:
        return False
    try:
        check_gate(verification, recipe)
    except AccuracyError:
        return True
    return False


def give_back(run: Run, stored: Stored | None, verification: Verification | None) -> bool:
    """Gives the layers that err most back to high precision where a gate was missed; whether there is more to try.

    A twentieth of the weights at a time, as long as `safety.min_share` of them stays stored.
    """
    if stored is None or not stored.weights or not missed(verification, run.recipe):
        return False
    sizes = {name: one.blocks.values.size for name, one in (*stored.weights.items(), *stored.restored.items())}
    total = sum(sizes.values())
    left = sum(sizes[name] for name in stored.weights) - run.recipe.safety.min_share * total
    worst = sorted(stored.weights.values(), key=lambda one: one.weight_db if one.output_db is None else one.output_db)
    chosen: list[str] = []
    for one in worst:
        size = sizes[one.layer.node]
        if size <= left and sum(sizes[name] for name in chosen) < RAISED * total:
            chosen.append(one.layer.node)
            left -= size
    for name in chosen:
        stored.restored[name] = stored.weights.pop(name)
    return bool(chosen)


def gate(verification: Verification, recipe: Recipe, stored: Stored | None) -> None:
    """`verification.gate`, with what can be done about weights in few bits.

    Raises:
        AccuracyError: a gate is missed.
    """
    try:
        check_gate(verification, recipe)
    except AccuracyError as error:
        if stored is None or not (stored.weights or stored.restored):
            raise
        raise AccuracyError(f"{error} {_advice(stored, recipe)}") from error


def _advice(stored: Stored, recipe: Recipe) -> str:
    worst = min(stored.weights.values(), key=lambda one: one.output_db or one.weight_db, default=None)
    tips = []
    if recipe.precision == "int4-weight" and recipe.weight_only.block_size > SMALLEST_BLOCK:
        tips.append(f"--block-size {SMALLEST_BLOCK}")
    if stored.method in ("rtn", "mse"):
        tips.append("--weight-method gptq with --data")
    if recipe.precision == "int4-weight":
        tips.append("--precision int8-weight")
    if worst is not None:
        tips.append(f"--keep '{worst.layer.node}' (its outputs reach only {worst.output_db or worst.weight_db:.1f} dB)")
    back = f"{len(stored.restored)} layers went back to high precision already; " if stored.restored else ""
    return f"For weights in few bits: {back}try {', '.join(tips)}." if tips else ""


SMALLEST_BLOCK = min(weight_layers.SIZES)


def rows(stored: Stored | None, recipe: Recipe, target: Target) -> dict[str, Any] | None:
    """What the manifest says; None where weights were not asked for."""
    if stored is None:
        return None
    wanted = recipe.weight_only
    weights = stored.weights.values()
    wide = {DType.FP32: 4}.get(target.high_precision, 2)
    return {
        "precision": recipe.precision,
        "method": stored.method,
        "block_size": wanted.block_size if recipe.precision == "int4-weight" else None,
        "act_order": wanted.act_order if "gptq" in stored.method else None,
        "damp": wanted.damp if "gptq" in stored.method else None,
        "storage": wanted.storage,
        "layers": [_row(one) for one in weights],
        "restored": list(stored.restored),
        "scaled": {name: round(gain, 3) for name, gain in stored.scaled.items()},
        "unscaled": stored.unscaled,
        "refused": dict(Counter(one.rule for one in stored.refused)),
        "forms": dict(Counter(_form(one.layer) for one in weights)),
        "tied": [one.layer.node for one in weights if one.layer.tied],
        "bytes_before": sum(wide * one.blocks.values.size for one in weights),
        "bytes_after": sum(one.bytes for one in weights),
        "gain_db": _mean([one.gain_db for one in weights if one.gain_db is not None and math.isfinite(one.gain_db)]),
    }


def _form(layer: Layer) -> str:
    return f"{layer.format} in blocks of {layer.size}" if layer.size else f"{layer.format} per output"


def _row(one: Weight) -> dict[str, Any]:
    return {
        "node": one.layer.node,
        "depth": one.layer.depth,
        "width": one.layer.width,
        "format": one.layer.format,
        "block": one.layer.size,
        "method": one.method,
        "bytes": one.bytes,
        **{key: None if value is None else round(value, 3) for key, value in _errors(one).items()},
        "why": one.layer.why,
    }


def _errors(one: Weight) -> dict[str, float | None]:
    return {"weight_db": one.weight_db, "output_db": one.output_db, "gain_db": one.gain_db}


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
