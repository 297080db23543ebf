"""The stage that folds outlier channels into weights (SmoothQuant, Xiao et al. 2022): a rung of the ladder."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from qcompiler.calibrators.auto import AUTO
from qcompiler.compiler import ladder
from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant import groups, trials
from qcompiler.planning.chosen import Planning
from qcompiler.planning.climb import Climb, Standing, settled, surely_met, surely_missed
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


@stage(version=4, judged=True)
def smooth_quant(
    run: Compilation,
    subject: Subject,
    watch: Watch,
    target: Target,
    planning: Planning,
    options: trials.SmoothQuantOptions | None,
    strict: bool = False,
) -> Done[Subject]:
    """The subject with alphas chosen and folded; as given where smoothing is off or of no help.

    It costs nothing where the model runs. So it is done above the goal, too, where the layers' own errors promise
    enough: the goal was met on a few samples only. Where a metric holds, or time is short, that is left.

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
    if options is None or not trials.smoothable(subject.layers.found, subject.seen, options.table):
        help = RUNG.helps(ladder.Seen(subject, planning, target, options))
        return Done(subject, off if before is None else off | ladder.record(ladder.passed(RUNG, help), before=before))
    if ladder.ordered(options):
        return _done(run, subject, before, _ordered(run, subject, watch, target, planning, options), strict=strict)
    if before is None:
        return Done(subject, off)
    enough = before.met and (before.accepted is not None or options.effort == "quick")
    forgone = ladder.forgone(RUNG, before, planning, enough=enough)
    if forgone is not None:
        return Done(subject, off | ladder.record(forgone))
    started, fitting = time.perf_counter(), _fitting(subject, target, planning)
    with run.working():
        trial = trials.Trials(
            subject.model, subject.layers.found, subject.seen, options, subject.scope, fitting=fitting
        )
        local = trial.choices()
    help = RUNG.helps(ladder.Seen(subject, planning, target, options, local))
    if not help.can and not settled(RUNG.name, planning):
        return Done(subject, off | ladder.record(ladder.passed(RUNG, help), before=before))
    climbed = _climbed(run, trial, subject, before, watch, target, planning)
    return _done(run, subject, before, replace(climbed, why=help.why, started=started), strict=strict)


def _fitting(subject: Subject, target: Target, planning: Planning) -> bool:
    """Whether weights can be fitted behind it: where the goal is missed, that rung takes what smoothing leaves."""
    if subject.parts is None or subject.standing is None or subject.standing.met:
        return False
    able, why = ladder.fittable(ladder.Seen(subject, planning, target))
    return bool(able) and not why


@dataclass(frozen=True, eq=False)
class _Climbed:
    """What smoothing has made.

    Attributes:
        done: the smoothed model with what there is to tell.
        after: the subject with it; as given where nothing was folded.
        standing: where that stands; None where nobody has looked.
        runs: how often the model was run to compare.
        kept: whether the model goes on with it.
        ready: the session that tried it.
        why: what said that it can help.
        started: by the clock.
    """

    done: trials.Smoothed
    after: Subject
    standing: Standing | None
    runs: int
    kept: bool
    ready: Ready | None = None
    why: str = ORDERED
    started: float = field(default_factory=time.perf_counter)


def _ordered(
    run: Compilation,
    subject: Subject,
    watch: Watch,
    target: Target,
    planning: Planning,
    options: trials.SmoothQuantOptions,
) -> _Climbed:
    """With the alphas that were asked for, whatever they reach."""
    started, ready = time.perf_counter(), run.lent(Ready)
    del ready  # trials open sessions of their own: these would stand beside them
    with run.working():
        done = trials.fold_outliers(
            subject.model, subject.layers.found, subject.seen, options, subject.scope, watch.tensors
        )
    one = _standing(run, subject, done, target, planning)
    return replace(one, kept=one.after is not subject, started=started)


def _climbed(
    run: Compilation,
    trial: trials.Trials,
    subject: Subject,
    before: Standing,
    watch: Watch,
    target: Target,
    planning: Planning,
) -> _Climbed:
    """With what the layers' own errors choose; with what the outputs choose where that leaves the goal missed.

    The outputs are looked at with nearest integers, so they do not choose where weights will be fitted.
    """
    ready = run.lent(Ready)
    del ready
    with run.working():
        done = trial.fold(trial.plan(trials.LOCAL if trial.fresh else AUTO), watch.tensors)
    first = _standing(run, subject, done, target, planning)
    gain = -math.inf if first.standing is None else first.standing.calm_db - before.calm_db
    first = replace(first, kept=gain > 0)
    if (
        before.met
        or not trial.fresh
        or trial.fitting
        or (first.kept and first.standing is not None and first.standing.met)
    ):
        return first
    with run.working():
        better, tried = trial.better(clear=gain >= trials.CLEAR_DB)
    first = replace(first, done=replace(first.done, tried=tried), runs=first.runs + trial.runs)
    if better is None:
        return first
    with run.working():
        done = trial.fold(better.groups, watch.tensors, tried)
    second = _standing(run, subject, done, target, planning)
    least = first.standing.calm_db if first.kept and first.standing is not None else before.calm_db
    if second.standing is None or second.standing.calm_db <= least:
        return first
    return replace(second, runs=first.runs + second.runs, kept=True)


def _standing(
    run: Compilation, subject: Subject, done: trials.Smoothed, target: Target, planning: Planning
) -> _Climbed:
    """What everything quantized at once reaches with a smoothed model."""
    if all(group.alpha is None for group in done.groups) or any(one.undone for one in done.reports):
        return _Climbed(done, subject, subject.standing, done.runs, kept=False)
    after = subject.editing(done.model, seen=done.observed)
    if planning.dynamic:
        return _Climbed(done, after, None, done.runs, kept=False)
    with run.working():
        model = opened(after.model, after.layers.found)
        ready = prepared(model, after.layers, after.seen, planning, target, others=run.others)
        if ready.simulation is None:
            return _Climbed(done, after, None, done.runs, kept=False)
        climb = Climb(ready, ready.simulation, planning)
        standing = climb.best()
    return _Climbed(done, after, standing, done.runs + climb.runs, kept=False, ready=ready)


def _done(run: Compilation, subject: Subject, before: Standing | None, one: _Climbed, *, strict: bool) -> Done[Subject]:
    """What goes on, and what the manifest says of it."""
    done = one.done
    tell_undone(run, done.reports, strict=strict)
    models.forget_pages(subject.model)
    return_freed_memory()
    if one.kept and one.ready is not None:
        run.lend(one.ready)
    told = _told(one, before)
    tried = {"smooth_quant": groups.record_of(done.groups, done.tried)}
    if not one.kept:
        undone = done.reports if any(report.undone for report in done.reports) else ()
        after = subject if before is None else subject.with_(standing=before.in_vain(RUNG.name))
        return Done(after, tried | ladder.record(told, before=before), checked(undone, done.errors))
    standing = one.standing
    if standing is not None and standing is not before:
        standing = standing.kept(RUNG.name, before, anew=True)
    record = tried | ladder.record(told, before=before)
    return Done(one.after.with_(standing=standing), record, checked(done.reports, done.errors))


def _told(one: _Climbed, before: Standing | None) -> ladder.Told:
    seconds = time.perf_counter() - one.started
    if one.standing is None:
        return ladder.Told(RUNG.name, True, one.why, seconds=seconds, runs=one.runs, kept=one.kept)
    return ladder.climbed(RUNG, one.why, before, one.standing, seconds, one.runs, kept=one.kept)


def foreseen(
    subject: Subject, known: Timed, target: Target, planning: Planning, options: trials.SmoothQuantOptions | None
) -> Foreseen:
    """What the layers' own errors take to learn; where they promise anything, trials and a climb behind them, too."""
    found = subject.layers.found
    if options is None or not trials.smoothable(found, known.seen, options.table):
        return NOTHING
    local = trials.recording(subject.model, found, known, options)
    behind = foreseen_prepared(subject.layers, known, planning) + foreseen_climb(known, planning)
    tried = trials.foreseen(found, known, options) + behind
    if ladder.ordered(options):
        return local + tried
    if surely_met(known, planning):  # above the goal it must promise more than it mostly does
        return NOTHING if options.effort == "quick" else local
    return local + (tried if surely_missed(known, planning) else between(NOTHING, tried))
