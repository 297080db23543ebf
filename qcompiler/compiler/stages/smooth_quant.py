"""The stage that folds outlier channels into weights (SmoothQuant, Xiao et al. 2022): a rung of the ladder."""

from __future__ import annotations

import dataclasses
import time

from qcompiler.compiler import ladder
from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant import groups, trials
from qcompiler.planning.chosen import Planning
from qcompiler.planning.climb import Climb, Standing, surely_met, surely_missed
from qcompiler.planning.climb import foreseen as foreseen_climb
from qcompiler.planning.ready import Ready, prepared
from qcompiler.planning.ready import foreseen as foreseen_prepared
from qcompiler.planning.search.offers import opened
from qcompiler.planning.search.watch import Watch
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import Target

ORDERED = "the alphas are those that were asked for"
RUNG = ladder.SMOOTH_QUANT


@stage(version=2, judged=True)
def smooth_quant(
    run: Compilation,
    subject: Subject,
    watch: Watch,
    target: Target,
    planning: Planning,
    options: trials.SmoothQuantOptions | None,
    strict: bool = False,
) -> Done[Subject]:
    """The subject with alphas chosen and folded; as given where smoothing is off, not needed, or of no help.

    Args:
        subject: normal and observed.
        watch: which tensors will be asked about; what has changed of them is measured again.
        target: what planning must know of the machine.
        planning: what is asked for.
        options: what is asked of smoothing; None where activations stay float.
        strict: smoothing that is undone is an error.

    Raises:
        EquivalenceError: strict, and the smoothed model does not compute what the model computes.
    """
    before, off = subject.standing, {"smooth_quant": None}
    found = subject.layers.found
    able = options is not None and trials.smoothable(found, subject.seen, options.table)
    ordered = options is not None and able and ladder.ordered(options)
    if not ordered and before is None:
        return Done(subject, off)
    if not ordered and before is not None and before.met:
        return Done(subject, off | ladder.record(ladder.unneeded(RUNG, before)))
    help = ladder.Help(True, ORDERED)
    if not ordered:
        help = RUNG.helps(ladder.Seen(subject, planning, target, options))
    if options is None or not able or not help.can:
        return Done(subject, off | ladder.record(ladder.passed(RUNG, help), before=before))
    started, ready = time.perf_counter(), run.lent(Ready)
    del ready  # trials open sessions of their own: these would stand beside them
    with run.working():
        goal = None if before is None else before.goal_db
        done = trials.fold_outliers(
            subject.model, found, subject.seen, options, subject.scope, watch.tensors, goal_db=goal
        )
    tell_undone(run, done.reports, strict=strict)
    models.forget_pages(subject.model)
    return_freed_memory()
    folded = any(group.alpha is not None for group in done.groups) and not any(one.undone for one in done.reports)
    after = subject.editing(done.model, seen=done.observed) if folded else subject
    standing, runs = before, done.runs
    if folded:
        standing, more = _standing(run, after, target, planning)
        runs += more
    kept = folded and (ordered or before is None or standing is None or standing.calm_db > before.calm_db)
    if not kept:
        run.lent(Ready)  # it speaks of the model that is given up
    told = _told(help, before, standing, time.perf_counter() - started, runs, kept=kept)
    tried = {"smooth_quant": groups.record_of(done.groups, done.tried)}
    if not kept:
        undone = done.reports if any(one.undone for one in done.reports) else ()
        return Done(subject, tried | ladder.record(told, before=before), checked(undone, done.errors))
    if standing is not None:
        standing = dataclasses.replace(standing, behind=RUNG.name)
    record = tried | ladder.record(told, before=before)
    return Done(after.with_(standing=standing), record, checked(done.reports, done.errors))


def _standing(run: Compilation, subject: Subject, target: Target, planning: Planning) -> tuple[Standing | None, int]:
    """What everything quantized at once reaches by now, and how many runs that took; the session is left behind."""
    if planning.dynamic:
        return None, 0
    with run.working():
        model = opened(subject.model, subject.layers.found)
        ready = prepared(model, subject.layers, subject.seen, planning, target)
        if ready.simulation is None:
            return None, 0
        climb = Climb(ready, ready.simulation, planning)
        standing = climb.best()
    run.lend(ready)
    return standing, climb.runs


def _told(
    help: ladder.Help, before: Standing | None, after: Standing | None, seconds: float, runs: int, *, kept: bool
) -> ladder.Told:
    if after is None:
        return ladder.Told(RUNG.name, True, help.why, seconds=seconds, runs=runs, kept=kept)
    return ladder.climbed(RUNG, help.why, before, after, seconds, runs, kept=kept)


def foreseen(
    subject: Subject, known: Timed, target: Target, planning: Planning, options: trials.SmoothQuantOptions | None
) -> Foreseen:
    """What trials run and compute, and a climb behind them; nothing where one feed says that it is of no help."""
    found = subject.layers.found
    if options is None or not trials.smoothable(found, known.seen, options.table):
        return NOTHING
    behind = foreseen_prepared(subject.layers, known, planning) + foreseen_climb(known, planning)
    if ladder.ordered(options):
        return trials.foreseen(subject.model, found, known, options) + behind
    if surely_met(known, planning) or not RUNG.helps(ladder.Seen(_seen(subject, known), planning, target, options)).can:
        return NOTHING
    tried = trials.foreseen(subject.model, found, known, options) + behind
    return tried if surely_missed(known, planning) else between(NOTHING, tried)


def _seen(subject: Subject, known: Timed) -> Subject:
    """As if the one feed were all there is."""
    return subject.with_(seen=known.seen)
