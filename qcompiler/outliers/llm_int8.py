"""Which outlier channels leave the INT8 product (LLM.int8, Dettmers et al. 2022)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.ir import graph as graphs
from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.ir.operators import PRODUCTS
from qcompiler.numerics.rounding import LARGEST, Format, format_of, quantize
from qcompiler.numerics.sqnr import TINY, decibel
from qcompiler.passes.base import Report
from qcompiler.passes.channels.llm_int8 import OUTLIERS, LlmInt8, join, layout_of
from qcompiler.plan import Candidate, Decision, Plan, Refusal
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.tables import LlmInt8Table
from qcompiler.runtime.stream import fill
from qcompiler.statistics import rows as recorded
from qcompiler.statistics.histogram import Histograms
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.outliers import AllOutliers, Outliers
from qcompiler.target import DType
from qcompiler.verification.equivalence import UNDONE, applied

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


RULE = "llm-int8"
MOST_ROWS = 256
COLUMNS = 128  # outputs of all layers of a group that errors are summed over
RANGES = (1.0, 0.7, 0.45)  # of the largest value that is left: what calibrators make of it
WORTH_DB = 3.0  # what a layer must gain for the fewest channels to be looked for
FLOOR = 0.1  # of the power of the median row, below which the error of a row counts no more
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class Split:
    """Layers that read one activation, and which of its channels they multiply apart.

    Attributes:
        tensor: the activation.
        readers: names of the layers.
        channels: outlier channels in rising order; empty where the layers are left as they are.
        of: how many channels there are.
        why: the reason, with figures.
        amax: largest |x| of the outlier channels.
        rest: largest |x| of the others.
        plain_db: SQNR of the layers' outputs with the whole activation rounded, from rows.
        db: the same with these channels apart.
    """

    tensor: str
    readers: tuple[str, ...]
    channels: tuple[int, ...]
    of: int
    why: str
    amax: float = 0.0
    rest: float = 0.0
    plain_db: float = 0.0
    db: float = 0.0


@dataclass(frozen=True, eq=False)
class Splits:
    """All that was decided.

    Attributes:
        decided: one entry a group of layers, in graph order.
        layouts: of each split layer, by name: mask, gather or split.
        joined: names of layers whose products were joined again, because they stay in high precision.
    """

    decided: tuple[Split, ...] = ()
    layouts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    joined: frozenset[str] = frozenset()


Watched = Callable[[models.Model, Sequence[Candidate]], Sequence[str]]


@dataclass(frozen=True)
class LlmInt8Options:
    """What is asked for.

    Attributes:
        table: the recipe's.
        dtype: what the layers will compute in, INT8 or FP8.
        by_row: every row of an activation will have a scale of its own.
    """

    table: LlmInt8Table
    dtype: DType
    by_row: bool


@dataclass(frozen=True, eq=False)
class Apart:
    """A model after outlier channels got products of their own.

    Attributes:
        model: as given where no channel was taken out.
        layers: those that are left to decide, and the others, outlier products among them.
        observed: with the statistics of tensors that the rewrite made.
        splits: what was decided.
        reports: of the passes that ran.
        errors: largest relative error of each behind the equivalence check, by its text form.
    """

    model: models.Model
    layers: Candidates
    observed: Observations
    splits: Splits = Splits()
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


def split_outliers(
    normal: models.Model,
    layers: Candidates,
    observed: Observations,
    options: LlmInt8Options,
    scope: Scope,
    watched: Watched,
) -> Apart:
    """Decides which channels leave the quantized products and takes them out, behind the equivalence check.

    Args:
        normal: the float model, normalised.
        layers: those that may be quantized, and the others.
        observed: its statistics; samples were kept.
        options: what is asked for.
        scope: finds the layers again in the edited model.
        watched: names of the tensors of the edited model whose ranges somebody will ask for.

    Returns:
        The edited model; as given where the edits missed the check and were undone, which the report says.
    """
    table = options.table
    fresh = [
        one
        for one in layers.found
        if one.op in PRODUCTS and one.scales is None and one.amax is None and one.known is None
    ]
    groups = {name: members for name, members in candidates.by_activation(fresh).items() if _asked(members, table)}
    rows = recorded.record_rows(normal, dict.fromkeys(groups, -1), observed.kept)
    format = format_of(options.dtype)
    decided = tuple(choose_channels(normal, groups, rows, observed.outliers, table, format, by_row=options.by_row))
    channels = {reader: one.channels for one in decided for reader in one.readers if one.channels}
    if not channels:
        return Apart(normal, layers, observed, Splits(decided))
    model, report, error = applied(LlmInt8(channels, table.layout), normal, observed.kept)
    if report.undone:
        whole = tuple(dataclasses.replace(one, channels=(), why=UNDONE) for one in decided)
        return Apart(normal, layers, observed, Splits(whole), (report,))
    left = apart(scope.layers(model), decided)
    seen = observe_new(model, watched(model, left.found), left.found, observed, decided)
    nodes = {node.name: node for node in model.graph.nodes}
    layouts = {name: layout_of(nodes[name]) for name in channels if name + OUTLIERS in nodes}
    errors = {} if error is None else {report.name: error}
    return Apart(model, left, seen, Splits(decided, layouts), (report,), errors)


def choose_channels(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    rows: Mapping[str, recorded.Rows],
    outliers: Mapping[str, Outliers],
    wanted: LlmInt8Table,
    format: Format = "int8",
    *,
    by_row: bool = False,
) -> list[Split]:
    """Decides the channels of every group.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation that they share.
        rows: recorded rows of these activations.
        outliers: their statistics over all data, for the largest |x| of each channel.
        wanted: the recipe's table.
        format: what the layers will compute in.
        by_row: every row will have a scale of its own.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    decided = []
    for name, members in groups.items():
        readers = tuple(one.node for one in members)
        weights = linear.Matrices([nodes[reader] for reader in readers])
        reason = _reason(rows.get(name), outliers.get(name))
        if len(weights.shapes) < len(weights):
            reason = "a weight is computed on the way, or has too many dimensions"
        if reason:
            decided.append(Split(name, readers, (), 0, reason))
            continue
        layers = _Layers(rows[name], weights, outliers[name].channels, format, by_row=by_row)
        decided.append(_choose(name, readers, layers, wanted))
    return decided


def _asked(members: Sequence[Candidate], wanted: LlmInt8Table) -> bool:
    return not wanted.layers or any(re.search(text, one.node) for text in wanted.layers for one in members)


def _reason(rows: recorded.Rows | None, seen: Outliers | None) -> str:
    if rows is None or seen is None or not len(rows.values):
        return "nothing was observed of its activation"
    return "" if len(seen.channels) == rows.values.shape[1] else "the number of its channels varies"


class _Layers:
    """The layers of a group with rows of what they read, and the error that rounding it makes."""

    def __init__(
        self,
        rows: recorded.Rows,
        weights: Sequence[Floats],
        channels: Floats,
        format: Format,
        *,
        by_row: bool = False,
    ) -> None:
        self._by_row = by_row
        spiking = np.argsort(-np.abs(rows.values).max(axis=1), kind="stable")
        spaced = np.linspace(0, len(spiking) - 1, min(MOST_ROWS, len(spiking))).round().astype(np.intp)
        self._x = rows.values[spiking[spaced]]
        self._counts = rows.counts[spiking[spaced]].astype(np.float64)
        each = max(1, COLUMNS // len(weights))
        self._w = np.concatenate([weight[:, :: max(1, weight.shape[1] // each)] for weight in weights], axis=1)
        self._format = format
        self.channels = np.maximum(channels, np.abs(rows.values).max(axis=0))
        self.order = np.argsort(-self.channels, kind="stable")
        product = self._x @ self._w
        power = np.einsum("rn,rn->r", product, product).astype(np.float64)
        self._power = np.maximum(power, FLOOR * max(float(np.median(power)), 1e-30))
        self._known: dict[int, float] = {}

    def db(self, count: int) -> float:
        """SQNR of the layers' outputs with the `count` largest channels apart, every row relative to itself."""
        if count not in self._known:
            self._known[count] = self._measure(count)
        return self._known[count]

    def _measure(self, count: int) -> float:
        x = self._x.copy()
        x[:, self.order[:count]] = 0
        largest = float(self.channels[self.order[count:]].max(initial=0.0))
        if not largest:
            return float("inf")
        steps = [np.float32(part * largest / LARGEST[self._format]) for part in RANGES]
        if self._by_row:
            steps = [np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30)) / LARGEST[self._format]]
        errors = []
        for step in steps:
            gap = (quantize(x / step, 1.0, None, self._format).astype(np.float32) * step - x) @ self._w
            noise = np.einsum("rn,rn->r", gap, gap).astype(np.float64)
            errors.append(float(np.dot(self._counts, noise / self._power)) / float(self._counts.sum()))
        return decibel(min(errors), TINY)


def _choose(name: str, readers: tuple[str, ...], layers: _Layers, wanted: LlmInt8Table) -> Split:
    of = len(layers.channels)
    most = int(wanted.most * of)
    plain = layers.db(0)

    def left(why: str) -> Split:
        return Split(name, readers, (), of, why, rest=float(layers.channels.max(initial=0.0)), plain_db=plain, db=plain)

    if isinstance(wanted.threshold, str):
        count, why = _fewest(layers, wanted.sqnr_db, most)
    else:
        count = int(np.count_nonzero(layers.channels >= wanted.threshold))
        gain = f", and with them apart its layers reach {layers.db(count):.1f} dB instead of {plain:.1f}"
        why = f"they reach {wanted.threshold:g}{gain}" if count else f"no channel reaches {wanted.threshold:g}"
        if count > most:
            count, why = 0, f"{count} of {of} channels reach {wanted.threshold:g}, more than llm_int8.most allows"
    if not count:
        return left(why)
    picked = layers.order[:count]
    return Split(
        name,
        readers,
        tuple(sorted(int(one) for one in picked)),
        of,
        why,
        float(layers.channels[picked].max()),
        float(layers.channels[layers.order[count:]].max(initial=0.0)),
        plain,
        layers.db(count),
    )


def _fewest(layers: _Layers, goal: float, most: int) -> tuple[int, str]:
    """The fewest channels that reach the goal; where none do, the fewest within 1 dB of the best that is allowed."""
    plain = layers.db(0)
    if plain > goal - WORTH_DB:
        return 0, f"its layers reach {plain:.1f} dB as they are"
    sizes = [size for size in SIZES if size < most] + ([most] if most else [])
    best = layers.db(sizes[-1]) if sizes else plain
    if best - plain < WORTH_DB:
        return 0, f"with {most} channels apart its layers reach {best:.1f} dB instead of {plain:.1f}: not worth it"
    reached = min(goal, best if best >= goal else best - 1.0)
    low, high = 0, len(sizes) - 1
    while low < high:  # more channels apart never err more, but for what ranges make of it
        middle = (low + high) // 2
        low, high = (low, middle) if layers.db(sizes[middle]) >= reached else (middle + 1, high)
    count = sizes[low]
    return count, f"with them apart its layers reach {layers.db(count):.1f} dB instead of {plain:.1f}"


def apart(all_: Candidates, decided: Sequence[Split]) -> Candidates:
    """Candidates without the outlier products, which are refused by a rule of their own."""
    found, refused = all_
    of = {reader + OUTLIERS: (reader, one) for one in decided for reader in one.readers if one.channels}
    kept = [one for one in found if one.node not in of]
    whys = {
        name: f"{len(one.channels)} of {one.of} channels of '{one.tensor}', which reach {one.amax:.4g} where the "
        f"others reach {one.rest:.4g}, multiplied apart from '{reader}': {one.why}"
        for name, (reader, one) in of.items()
    }
    apart = [Refusal(one.node, one.op, RULE, whys[one.node]) for one in found if one.node in of]
    renamed = [dataclasses.replace(one, rule=RULE, why=whys[one.node]) if one.node in of else one for one in refused]
    return Candidates(tuple(kept), (*renamed, *apart))


def observe_new(
    model: models.Model,
    names: Sequence[str],
    found: Sequence[Candidate],
    observed: Observations,
    decided: Sequence[Split],
) -> Observations:
    """What was observed, with histograms and outliers of tensors that the rewrite made, from the kept samples.

    What the normal channels reach over all data is known, so their histogram gets that value too.
    """
    inputs = {tensor.name for tensor in model.graph.inputs}
    known = {tensor.name for tensor in graphs.tensors(model.graph)}
    new = [name for name in dict.fromkeys(names) if name in known - inputs and name not in observed.histograms]
    if not new:
        return observed
    activations = {one.activation for one in found} & set(new)
    fresh, standing = Histograms(new), AllOutliers({name: -1 for name in new if name in activations})
    fill(model, [fresh, standing], observed.kept)
    histograms, outliers = fresh.found, standing.found
    rests = {reader: one.rest for one in decided for reader in one.readers if one.channels}
    for one in found:
        if one.activation in activations and one.node in rests:
            histograms[one.activation].update(np.asarray([rests[one.node]], np.float32))
    return observed.with_(histograms, outliers)


def settle(model: models.Model, plan: Plan, splits: Splits) -> tuple[models.Model, Plan, Splits]:
    """Joins the products again whose normal part stays in high precision, in the model and in the plan."""
    idle = [name for name in splits.layouts if not (plan.precision(name) or DType.FP32).quantized]
    if not idle:
        return model, plan, dataclasses.replace(splits, joined=frozenset())
    joined = models.copy(model)
    for name in join(joined.graph, idle):
        apart, own = (plan.decisions.get(one) for one in (name, name.removesuffix(OUTLIERS)))
        plan = plan.without(name)
        if apart is not None and own is not None and splits.layouts[own.node] != "mask":
            plan = plan.deciding(dataclasses.replace(own, macs=own.macs + apart.macs))
    return joined, plan, dataclasses.replace(splits, joined=frozenset(idle))


def apart_of(splits: Splits, plan: Plan) -> dict[str, Decision]:
    """What was decided for the outlier products, by the layers that they belong to."""
    return {name: plan.decisions[name + OUTLIERS] for name in splits.layouts if name + OUTLIERS in plan.decisions}


def record_of(splits: Splits, plan: Plan, wanted: LlmInt8Table) -> dict[str, Any] | None:
    """What the manifest says; None where it was off. How many kernels there are is known when an engine is audited.

    Args:
        splits: what was decided.
        plan: the plan that was reached.
        wanted: the recipe's table.
    """
    if not splits.decided:
        return None
    total = sum(decision.macs for decision in plan)
    apart = apart_of(splits, plan)
    return {
        "threshold": wanted.threshold,
        "layout": wanted.layout,
        "macs_share": round(sum(one.macs for one in apart.values()) / total, 5) if total else 0.0,
        "layers": len(apart),
        "joined": sorted(splits.joined),
        "kernels": None,
        "groups": [
            {
                "tensor": one.tensor,
                "readers": one.readers,
                "channels": one.channels,
                "of": one.of,
                "layout": next((splits.layouts[name] for name in one.readers if name in splits.layouts), ""),
                "amax": one.amax,
                "rest": one.rest,
                "plain_db": round(one.plain_db, 2),
                "db": round(one.db, 2),
                "why": one.why,
            }
            for one in splits.decided
        ],
    }


def kernels(engine: Path, layers: Mapping[str, Any]) -> dict[str, int] | None:
    """What the outlier products of these layers became, from the listing of a TensorRT-RTX plan; None without one.

    Returns:
        `kernels`: launches in all; `own`: launches that multiply outlier channels and do little else (a product,
        perhaps with the sum behind it); `fused`: outlier products inside a kernel that there is anyway.
    """
    from qcompiler.engines.audit import NOT_KERNELS
    from qcompiler.engines.listing import read

    ops = [op for one in read(engine) if not one.body for op in one.ops if op.kind not in NOT_KERNELS]
    if not ops:
        return None
    names = {name + OUTLIERS for name in layers}
    own = [op for op in ops if op.kind != "function" and op.nodes & names]
    listed = {name for op in own for name in op.nodes & names}
    return {"kernels": len(ops), "own": len(own), "fused": len(names - listed)}
