"""The stage that stores weights in few bits, activations as they are."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen
from qcompiler.weight_only import few_rows, methods
from qcompiler.weight_only.storable import WeightOnlyOptions


@stage()
def weight_only(
    run: Compilation, subject: Subject, options: WeightOnlyOptions | None, strict: bool = False
) -> Done[Subject]:
    """The subject with rounded weights, and AWQ's scaling folded in; as given where nobody asked.

    What the manifest says of it is known when the plan is: see *lower*.

    Args:
        subject: normal; observed where there is data.
        options: what is asked for; None for precisions that quantize activations.
        strict: scaling that is undone is an error.

    Raises:
        EquivalenceError: strict, and the scaled model does not compute what the model computes.
    """
    if options is None:
        return Done(subject, {"weight_only": None})
    if subject.samples is None:
        run.warn(
            "no --data: weights are rounded by themselves, and nothing compares the result with the float model; "
            "with data, --weight-only-method gptq errs less"
        )
    fitting = None if subject.parts is None else subject.parts.calibrate
    work = methods.work_of(subject.model, options, feeds=None if subject.parts is None else subject.parts.samples[0])
    with run.working(work.steps or 1) as advance:
        done = methods.round_weights(subject.model, work, fitting, subject.seen, advance, run.each)
    tell_undone(run, done.reports, strict=strict)
    for text in few_rows.warnings(done.stored):
        run.warn(text)
    models.forget_pages(subject.model)
    return_freed_memory()
    return Done(
        subject.with_(model=done.model, stored=done.stored), {"weight_only": None}, checked(done.reports, done.errors)
    )


def foreseen(subject: Subject, known: Timed, options: WeightOnlyOptions | None) -> Foreseen:
    """What rounding runs and computes; nothing where nobody asked."""
    if options is None:
        return NOTHING
    return methods.foreseen(methods.work_of(subject.model, options, feeds=round(known.calibrate)), subject.model, known)
