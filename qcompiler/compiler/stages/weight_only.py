"""The stages that round weights by more than their own values: INT8 beside INT8 activations, or few bits alone."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

from qcompiler.compiler import ladder
from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.planning.chosen import Planning
from qcompiler.planning.climb import Climb, Standing, settled, surely_met, surely_missed
from qcompiler.planning.climb import foreseen as foreseen_climb
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.one_sided import one_sided
from qcompiler.planning.ready import Ready, prepared
from qcompiler.planning.ready import foreseen as foreseen_prepared
from qcompiler.planning.search.offers import opened
from qcompiler.recipe.budget import MOST_SAMPLES
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import Target
from qcompiler.weight_only import few_rows, fitted, methods
from qcompiler.weight_only.storable import WeightOnlyOptions

RUNG = ladder.FIT_WEIGHTS


@stage(version=3)
def fit_weights(run: Compilation, subject: Subject, target: Target, planning: Planning) -> Done[Subject]:
    """The subject with INT8 weights fitted to what their layers read, where that brings it closer to float.

    The float weights stay as they are: what goes back to high precision later has lost nothing. It costs nothing where
    the model runs. So it is done above the goal, too, where it promises enough for little: the goal was met on a few
    samples only. Where a metric holds, or time is short, that is left.

    Args:
        subject: normal, observed and smoothed.
        target: what planning must know of the machine.
        planning: what is asked for.
    """
    before = subject.standing
    if before is None or subject.parts is None:
        return Done(subject)
    forgone = ladder.forgone(RUNG, before, planning, enough=_enough(before, planning))
    if forgone is not None:
        return Done(subject, ladder.record(forgone))
    started = time.perf_counter()
    help = RUNG.helps(ladder.Seen(subject, planning, target))
    if not help.can and not settled(RUNG.name, planning):
        return Done(subject, ladder.record(ladder.passed(RUNG, help), before=before))
    mine, model = run.lent(Ready), opened(subject.model, subject.layers.found)
    samples = min(MOST_SAMPLES, subject.parts.samples[0])
    with run.working(samples * fitted.passes(model, subject.layers.found)) as advance:
        feeds = tuple(islice(subject.parts.calibrate, samples))
        layers = fitted.fitted(model, subject.layers, feeds, advance)
        after, told = _tried(RUNG, help.why, run, subject, layers, target, planning, started, mine)
    models.forget_pages(subject.model)
    return_freed_memory()
    return Done(after, ladder.record(told, before=before))


@stage(version=2)
def shift(run: Compilation, subject: Subject, target: Target, planning: Planning) -> Done[Subject]:
    """The subject with activations on one side of zero moved onto the middle of their grid, where that helps.

    It costs nothing where the model runs, so it is done above the goal as `fit_weights` is.

    Args:
        subject: normal, observed and smoothed, its weights fitted.
        target: what planning must know of the machine.
        planning: what is asked for.
    """
    before = subject.standing
    if before is None:
        return Done(subject)
    forgone = ladder.forgone(ladder.SHIFT, before, planning, enough=_enough(before, planning))
    if forgone is not None:
        return Done(subject, ladder.record(forgone))
    started = time.perf_counter()
    help = ladder.SHIFT.helps(ladder.Seen(subject, planning, target))
    if not help.can and not settled(ladder.SHIFT.name, planning):
        return Done(subject, ladder.record(ladder.passed(ladder.SHIFT, help), before=before))
    mine = run.lent(Ready)
    with run.working():
        layers = one_sided(subject.model.graph, subject.layers, subject.seen.histograms)
        after, told = _tried(ladder.SHIFT, help.why, run, subject, layers, target, planning, started, mine)
    return_freed_memory()
    return Done(after, ladder.record(told, before=before))


def _enough(before: Standing, planning: Planning) -> bool:
    """Whether what costs nothing where the model runs need not be tried either: a metric holds, or time is short."""
    return before.met and (before.accepted is not None or planning.effort == "quick")


def _tried(
    rung: ladder.Rung,
    why: str,
    run: Compilation,
    subject: Subject,
    layers: Candidates,
    target: Target,
    planning: Planning,
    started: float,
    mine: Ready | None,
) -> tuple[Subject, ladder.Told]:
    """The subject with other layers where everything quantized is then closer to float, else as it was.

    Args:
        rung: what is tried.
        why: it is.
        run: where the better session is left behind.
        subject: as it was.
        layers: the same, to be stored or rounded in another way.
        target: what planning must know of the machine.
        planning: what is asked for.
        started: the clock when the rung began.
        mine: the session of the subject as it was.
    """
    before = subject.standing
    assert before is not None  # else no rung is climbed
    model = opened(subject.model, subject.layers.found)
    ready = prepared(model, layers, subject.seen, planning, target, like=mine, others=run.others)
    assert ready.simulation is not None  # there was one before, of the same layers
    climb = Climb(ready, ready.simulation, planning)
    standing = climb.best()
    kept = bool(settled(rung.name, planning)) or standing.calm_db > before.calm_db
    run.lend(ready if kept else mine)
    seconds = time.perf_counter() - started
    told = ladder.climbed(rung, why, before, standing, seconds, climb.runs, kept=kept)
    if not kept:
        return subject.with_(standing=before.in_vain(rung.name)), told
    return subject.with_(layers=layers, standing=standing.kept(rung.name, before, anew=False)), told


def foreseen_fitted(subject: Subject, known: Timed, target: Target, planning: Planning) -> Foreseen:
    """What fitting runs and computes, and a climb; nothing where it is known to be of no help."""
    seen = _seen(subject, known, target, planning)
    if not planning.formats or not RUNG.helps(seen).can:
        return NOTHING
    if surely_met(known, planning):  # above the goal it must take little, and mostly promises too little
        return NOTHING
    graph, found = subject.model.graph, subject.layers.found
    samples = min(MOST_SAMPLES, known.calibrate)
    computed = fitted.work_of(graph, found) + samples * fitted.work_of_sample(graph, found, known.macs)
    runs = samples * fitted.passes(subject.model, found) + computed / max(known.macs, 1)
    return _perhaps(subject, known, planning, Foreseen(runs=runs, sessions=1, copies=2))


def foreseen_shift(subject: Subject, known: Timed, target: Target, planning: Planning) -> Foreseen:
    """A climb where activations lie to one side of zero and the goal is not surely met; else nothing."""
    if not planning.formats or surely_met(known, planning):
        return NOTHING
    helps = ladder.SHIFT.helps(_seen(subject, known, target, planning)).can
    return _perhaps(subject, known, planning, NOTHING) if helps else NOTHING


def _seen(subject: Subject, known: Timed, target: Target, planning: Planning) -> ladder.Seen:
    """What one sample shows, of as many as there will be."""
    feeds = round(known.calibrate + known.choose + known.judge)
    return ladder.Seen(subject.with_(seen=replace(known.seen, feeds=feeds)), planning, target)


def _perhaps(subject: Subject, known: Timed, planning: Planning, work: Foreseen) -> Foreseen:
    """A trial with so much work, which is made where the goal is missed until then."""
    every = work + foreseen_prepared(subject.layers, known, planning, shown=True) + foreseen_climb(known, planning)
    return every if surely_missed(known, planning) else between(NOTHING, every)


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
