"""The stage that makes the plan's graph in the target's types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.compiler.wiring import wiring
from qcompiler.ir import model as models
from qcompiler.judge.views import find_views
from qcompiler.outliers import llm_int8
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.passes.pipelines import lowering
from qcompiler.plan import Decision, Plan
from qcompiler.planning.placement.known import spread
from qcompiler.planning.search import half_noise
from qcompiler.planning.search.half_noise import HalfNoise
from qcompiler.planning.simulation.half import HalfSimulator
from qcompiler.recipe.tables import LlmInt8Table
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics import ranges
from qcompiler.statistics.followed import follow
from qcompiler.statistics.timed import KEPT, Timed
from qcompiler.statistics.unchanged import unchanged
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import DType, Target
from qcompiler.weight_only import methods
from qcompiler.weight_only import record as weights

# How far below its goal what rounding to half leaves is worth a warning: as loud as the quantization noise, or far from
# what networks have
DOUBTFUL_DB = {True: half_noise.BELOW_DB, False: 20.0}


@dataclass(frozen=True)
class LowerOptions:
    """How the graph is typed.

    Attributes:
        io_types: `keep`, or `high-precision`: what float inputs and outputs become.
        llm_int8: the table, for the manifest.
        min_sqnr: SQNR in dB that the user demands of every output; None for no gate.
        ignored: outputs that nothing is judged by.
    """

    io_types: str
    llm_int8: LlmInt8Table
    min_sqnr: float | None = None
    ignored: tuple[str, ...] = ()


@stage(version=2)
def lower(
    run: Compilation,
    subject: Subject,
    decided: Planned,
    target: Target,
    options: LowerOptions,
    before: Lowered | None = None,
) -> Done[Lowered]:
    """The plan's graph: Q/DQ pairs, stored weights, everything else typed by observed ranges, legal for the target.

    Args:
        subject: observed.
        decided: the plan, and the model that it speaks of.
        target: what it is made for.
        options: how the graph is typed.
        before: an earlier try on the same subject, whose ranges are not measured again.

    Raises:
        EngineError: the target would not compute it as meant, and it cannot be written in another way.
    """
    model, chosen = models.copy(decided.model), decided.chosen
    with run.working():
        seen, same = _ranges(run, subject, decided.model, target, before)
        half = _half(run, subject, decided, target, seen, options, before.half if before is not None and same else None)
        storing = methods.passes(subject.stored)
        noisy = {} if half is None else half.noisy
        pipeline = lowering(
            chosen.plan,
            target,
            seen,
            chosen.corrections,
            chosen.scales,
            options.io_types,
            storing,
            noisy,
            decided.model.ends,
            chosen.fitted,
        )
        reports = pipeline(model.graph)
    models.forget_pages(decided.model)
    return_freed_memory()
    plan = chosen.plan
    for report in reports:
        plan = _typed(plan, report.decisions)
        for name, why in report.kept.items():
            run.warn(f"'{name}' keeps its type: {why}")
        for text, names in report.widened.items():
            run.warn(f"{', '.join(map(repr, names))}: {text}")
    quantized = bool(plan.quantized())
    if half is not None and half.sqnr_db < half.goal_db - DOUBTFUL_DB[quantized]:
        run.warn(_doubt(half, target, quantized=quantized))
    record = {
        "macs": plan.macs_by_precision(),
        "plan": list(plan),
        "quantizers": list(plan.quantizers.values()),
        "graph": wiring(decided.model.graph, plan),
        "llm_int8": llm_int8.record_of(decided.splits, plan, options.llm_int8),
        "weight_only": weights.record_of(subject.stored),
        "half": None if half is None else half.to_json(),
    }
    done = Lowered(model, decided.model, plan, decided.splits, seen, half)
    return Done(done, record, tuple((report, None) for report in reports))


def foreseen(known: Timed, target: Target) -> Foreseen:
    """What rounding to half does, at best with everything in half at once, else with as many sets as are allowed.

    Where the model has changed since the observation, ranges of what is new are measured on the kept samples.
    """
    if target.high_precision is DType.FP32:
        return NOTHING
    few, whole = (min(most, known.choosing) for most in (half_noise.FEW, half_noise.SAMPLES))
    once = Foreseen(runs=2 * few, sessions=1, copies=1)
    blamed = Foreseen(runs=2 * whole + half_noise.TRIES * few)
    again = Foreseen(runs=2 + known.kept + min(KEPT, known.choose), sessions=3)
    return between(once, once + blamed + again)


def _ranges(
    run: Compilation, subject: Subject, model: models.Model, target: Target, before: Lowered | None
) -> tuple[ranges.Ranges, bool]:
    """Of all float tensors, over all samples, and whether nothing had to be measured for them.

    What the stages behind the observation, or an earlier try, have changed is measured now, on the samples that were
    kept: a value must fit eight times over, which is more than other samples exceed them by. What still holds the same
    values, however it is computed by now, has the range that was seen on all samples.
    """
    if target.high_precision is DType.FP32:
        return ranges.Ranges(), True
    if subject.samples is None:
        here = spread(model.graph, subject.scope.ranges)
        return ranges.Ranges({name: ranges.Range(one.low, one.high) for name, one in here.items()}), True
    known, measured = (before.ranges, before.inner) if before else (subject.seen.ranges, subject.measured)
    same = frozenset[str]() if measured is None else unchanged(measured.graph, model.graph)
    old = {name: one for name, one in known.items() if name in same}
    missing = [name for name in ranges.wanted(model) if name not in same]
    if not missing:
        return ranges.Ranges(old), True
    feeds = tuple({id(feed): feed for feed in (*subject.seen.kept, *subject.seen.held)}.values())
    if measured is not None:
        held = follow(measured.graph, model.graph, [name for name in missing if name in known], feeds[0])
        old |= {name: known[name] for name in missing if held.get(name) == name and name in known}
    left = [name for name in missing if name not in old]
    found = run.item("ranges", (model, feeds, left), lambda: ranges.measure(model, feeds, left, quick=False)).found
    # Where one of these samples stands in the data, nobody knows
    new = {name: ranges.Range(one.low, one.high) for name, one in found.items()}
    return ranges.Ranges({**old, **new}), False


def _half(
    run: Compilation,
    subject: Subject,
    decided: Planned,
    target: Target,
    seen: ranges.Ranges,
    options: LowerOptions,
    known: HalfNoise | None,
) -> HalfNoise | None:
    """What rounding to half does to the outputs, and what goes back to FP32 for it; `known` is of the same model."""
    if target.high_precision is DType.FP32 or not subject.seen.kept:
        return None
    aimed = decided.chosen.net.target_db
    goal = half_noise.goal_of(target.high_precision, _reached(decided), options.min_sqnr, aimed)
    if known is not None and known.sqnr_db >= goal:
        return known
    model, feeds, high = decided.model, subject.seen.choosing, target.high_precision

    def find() -> HalfNoise:
        typing = HighPrecision(high, ranges=seen, io_types=options.io_types)
        simulator = HalfSimulator(model, typing, find_views(model.graph, feeds[0], options.ignored))
        return half_noise.find(simulator, feeds, goal, usual_db=half_noise.USUAL_DB[high])

    return run.item("half", (model, high, seen, options.io_types, options.ignored, feeds, goal), find)


def _doubt(half: HalfNoise, target: Target, *, quantized: bool) -> str:
    remedy = (
        "--high-precision fp32 computes in FP32 what is not quantized"
        if quantized
        else "leave the model in FP32, or prepare its inputs so that its values are of the size of 1"
    )
    return (
        f"rounding to {target.high_precision} alone leaves {half.sqnr_db:.1f} dB at the outputs, and no few nodes are "
        f"to blame for it: {remedy}"
    )


def _reached(decided: Planned) -> float | None:
    """The SQNR in dB that quantization leaves; None where nothing was quantized by the safety net."""
    net = decided.chosen.net
    return net.curve[-1].sqnr_db if decided.chosen.plan.quantized() and net.curve else None


def _typed(plan: Plan, decisions: Sequence[Decision]) -> Plan:
    """The plan with what the typing pass decided: quantized nodes stay, the others learn their float type."""
    known = dict(plan.decisions)
    for one in decisions:
        old = known.setdefault(one.node, one)
        if not old.precision.quantized and old.precision is not one.precision:
            known[one.node] = dataclasses.replace(old, precision=one.precision, why=f"{old.why}; {one.why}")
    return plan.with_(decisions=known)
