"""The stage that makes the plan's graph in the target's types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.ir import model as models
from qcompiler.outliers import llm_int8
from qcompiler.passes.pipelines import lowering
from qcompiler.plan import Decision, Plan
from qcompiler.recipe.tables import LlmInt8Table
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics import ranges
from qcompiler.target import DType, Target
from qcompiler.weight_only import methods
from qcompiler.weight_only import record as weights

RANGE_FEEDS = 4


@dataclass(frozen=True)
class LowerOptions:
    """How the graph is typed.

    Attributes:
        io_types: `keep`, or `high-precision`: what float inputs and outputs become.
        llm_int8: the table, for the manifest.
    """

    io_types: str
    llm_int8: LlmInt8Table


@stage()
def lower(run: Compilation, subject: Subject, decided: Planned, target: Target, options: LowerOptions) -> Done[Lowered]:
    """The plan's graph: Q/DQ pairs, stored weights, everything else typed by observed ranges, legal for the target.

    Raises:
        EngineError: the target would not compute it as meant, and it cannot be written in another way.
    """
    model, chosen = models.copy(decided.model), decided.chosen
    with run.working():
        feeds = subject.seen.kept[:RANGE_FEEDS]
        wide = target.high_precision is DType.FP32
        seen = ranges.Ranges() if wide or not feeds else ranges.measure(decided.model, feeds)
        storing = methods.passes(subject.stored)
        pipeline = lowering(chosen.plan, target, seen, chosen.corrections, chosen.scales, options.io_types, storing)
        reports = pipeline(model.graph)
    models.forget_pages(decided.model)
    return_freed_memory()
    plan = chosen.plan
    for report in reports:
        plan = _typed(plan, report.decisions)
        for name, why in report.kept.items():
            run.warn(f"'{name}' keeps its type: {why}")
    record = {
        "macs": plan.macs_by_precision(),
        "plan": list(plan),
        "quantizers": list(plan.quantizers.values()),
        "llm_int8": llm_int8.record_of(decided.splits, plan, options.llm_int8),
        "weight_only": weights.record_of(subject.stored),
    }
    done = Lowered(model, decided.model, plan, decided.splits)
    return Done(done, record, tuple((report, None) for report in reports))


def _typed(plan: Plan, decisions: Sequence[Decision]) -> Plan:
    """The plan with what the typing pass decided: quantized nodes stay, the others learn their float type."""
    known = dict(plan.decisions)
    for one in decisions:
        old = known.setdefault(one.node, one)
        if not old.precision.quantized and old.precision is not one.precision:
            known[one.node] = dataclasses.replace(old, precision=one.precision, why=f"{old.why}; {one.why}")
    return plan.with_(decisions=known)
