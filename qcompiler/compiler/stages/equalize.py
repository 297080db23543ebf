"""The first rungs of the ladder: where everything quantized at once stands, and whether equalization helps that.

Equalization is cross-layer (Nagel et al. 2019, section 4.1): channels between two convolutions are rescaled, so that
the weights of both have ranges alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from qcompiler.compiler import ladder
from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.content import digest
from qcompiler.compiler.subject import Subject
from qcompiler.ir.model import Model
from qcompiler.outliers.equalized import equalized
from qcompiler.planning.chosen import Planning
from qcompiler.planning.climb import Climb, settled, surely_met, surely_missed
from qcompiler.planning.climb import foreseen as foreseen_climb
from qcompiler.planning.ready import ROOM_DB, Ready, prepared
from qcompiler.planning.ready import foreseen as foreseen_prepared
from qcompiler.planning.search.checks import Samples, by_metric, by_sqnr
from qcompiler.planning.search.goal import DEFAULT_DROP, counted
from qcompiler.planning.search.offers import opened
from qcompiler.planning.search.watch import Watch
from qcompiler.planning.simulation.simulator import Simulation, Simulator, Use
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import Target
from qcompiler.verification.metrics import halves as metric_halves
from qcompiler.verification.metrics.clocked import Clocked
from qcompiler.verification.metrics.halves import MetricHalves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.verification.metric import Feeds

FORCED = "--equalize asked for it: it was done before anything was observed"


@stage(judged=True)
def calibrate(run: Compilation, subject: Subject, target: Target, planning: Planning) -> Done[Subject]:
    """The subject with what everything quantized at once reaches: in the ranges of one calibrator, then of others.

    Args:
        subject: normal and observed.
        target: what planning must know of the machine.
        planning: what is asked for.
    """
    if planning.dynamic or not planning.formats or not subject.seen.kept:
        return Done(subject)
    started, clocked = time.perf_counter(), run.lent(Clocked)
    with run.working():
        model = opened(subject.model, subject.layers.found)
        ready = prepared(model, subject.layers, subject.seen, planning, target, others=run.others)
        if ready.simulation is None:
            return Done(subject)
        simulation = ready.simulation
        ready, accepts = _metric(subject, ready, simulation, planning, clocked)
        climb = Climb(ready, simulation, planning, accepts)
        seen = ladder.Seen(subject, planning, target)
        first = climb.first()
        told = [ladder.climbed(ladder.RANGES, ladder.RANGES.helps(seen).why, None, first, _since(started), climb.runs)]
        best, help = first, ladder.OTHER_RANGES.helps(seen)
        roomy = first.sqnr_db >= first.goal_db + ROOM_DB and not ready.roomy
        if first.met and roomy:
            told.append(ladder.unneeded(ladder.OTHER_RANGES, first))
        elif not help.can:
            told.append(ladder.passed(ladder.OTHER_RANGES, help))
        else:
            runs, started = climb.runs, time.perf_counter()
            best = climb.best()
            told.append(
                ladder.climbed(
                    ladder.OTHER_RANGES,
                    help.why,
                    first,
                    best,
                    _since(started),
                    climb.runs - runs,
                    kept=best.sqnr_db > first.sqnr_db,
                )
            )
    run.lend(ready)
    return Done(subject.with_(standing=best), ladder.record(*told))


def _metric(
    subject: Subject, ready: Ready, simulation: Simulation, planning: Planning, clocked: Clocked | None
) -> tuple[Ready, Callable[[Mapping[str, Use]], bool] | None]:
    """What the user's metric says of plans, where there is one: it is the goal then, and dB are not.

    Args:
        subject: with the metric.
        ready: the layers.
        simulation: that tries them.
        planning: what is asked for.
        clocked: the metric, where it was measured on the same model already.

    Returns:
        What a plan is searched with, and the metric's float score with it; whether a plan holds the goal.
    """
    if subject.judge.metric is None:
        return ready, None
    simulator = simulation.simulator
    run_float = partial(_float, simulator)
    if clocked is not None and _same(clocked.model, subject.model):
        halves = clocked.halves.answered_by(run_float)
    else:
        halves = MetricHalves(subject.judge.metric, run_float)
    limit = DEFAULT_DROP if planning.max_drop is None else planning.max_drop
    least = None
    if planning.min_sqnr is not None:
        least = by_sqnr(Samples(simulator, ready.observed.choosing), planning.min_sqnr)
    check = counted(by_metric(halves, simulator, limit, least))
    return dataclasses.replace(ready, halves=halves), lambda uses: check(uses).holds


def _same(one: Model, other: Model) -> bool:
    """Whether two models have the same content: what an earlier compilation has left is another object."""
    return one is other or digest(one) == digest(other)


def _float(simulator: Simulator, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
    return simulator.infer(dict(feeds), {})


@stage(version=2, judged=True)
def equalize(
    run: Compilation,
    subject: Subject,
    watch: Watch,
    target: Target,
    planning: Planning,
    forced: bool = False,
    strict: bool = False,
) -> Done[Subject]:
    """The subject equalized, where that brings everything quantized at once closer to float; else as given.

    Args:
        subject: normal and observed.
        watch: which tensors will be asked about; what has changed of them is measured again.
        target: what planning must know of the machine.
        planning: what is asked for.
        forced: it was done already, on request.
        strict: a pass that is undone is an error.

    Raises:
        EquivalenceError: strict, and the equalized model does not compute what the model computes.
    """
    before = subject.standing
    if before is None:
        return Done(subject)
    if forced:
        return Done(subject, ladder.record(ladder.Told(ladder.EQUALIZE.name, True, FORCED, kept=True)))
    forgone = ladder.forgone(ladder.EQUALIZE, before, planning, enough=before.met)
    if forgone is not None:
        return Done(subject, ladder.record(forgone))
    again = settled(ladder.EQUALIZE.name, planning)
    started = time.perf_counter()
    help = ladder.EQUALIZE.helps(ladder.Seen(subject, planning, target))
    if not help.can and not again:
        return Done(subject, ladder.record(ladder.passed(ladder.EQUALIZE, help), before=before))
    mine = run.lent(Ready)
    with run.working():
        done = equalized(subject.model, subject.seen, watch.tensors(subject.model, subject.layers.found))
        after = subject.editing(done.model, seen=done.observed) if done.report.changed else subject
        ready = None
        if after is not subject:
            ready = prepared(after.model, after.layers, after.seen, planning, target, others=run.others)
    tell_undone(run, (done.report,), strict=strict)
    if ready is None or ready.simulation is None:
        run.lend(mine)
        why = done.report.undone or "the pass found nothing to do"
        vain = ladder.Told(ladder.EQUALIZE.name, True, f"{help.why}; {why}")
        tried = before.in_vain(ladder.EQUALIZE.name)
        return Done(subject.with_(standing=tried), ladder.record(vain, before=before))
    with run.working():
        climb = Climb(ready, ready.simulation, planning)
        standing = climb.best()
    kept = bool(again) or standing.sqnr_db > before.sqnr_db
    run.lend(ready if kept else mine)
    told = ladder.climbed(ladder.EQUALIZE, help.why, before, standing, _since(started), climb.runs, kept=kept)
    passes = checked((done.report,), {} if done.error is None else {done.report.name: done.error})
    if not kept:
        tried = before.in_vain(ladder.EQUALIZE.name)
        return Done(subject.with_(standing=tried), ladder.record(told, before=before))
    standing = standing.kept(ladder.EQUALIZE.name, before, anew=True)
    return Done(after.with_(standing=standing), ladder.record(told, before=before), passes)


def foreseen_calibrate(subject: Subject, known: Timed, planning: Planning) -> Foreseen:
    """What is prepared for all that comes, and everything quantized at once, in one calibrator's ranges or in all.

    The metric, where there is one, is asked for each of these plans.
    """
    if planning.dynamic or not planning.formats or not subject.layers.found:
        return NOTHING
    shown = bool(known.seen.ranges)  # which tell how far the samples reach that choose
    climbed = foreseen_prepared(subject.layers, known, planning, shown=shown) + foreseen_climb(known, planning)
    asked = metric_halves.foreseen_loss(known.scoring)
    return climbed + between(asked, asked.times(2))


def foreseen_equalize(
    subject: Subject, known: Timed, target: Target, planning: Planning, forced: bool = False
) -> Foreseen:
    """What is measured again of an equalized model, and a climb; nothing where it is known to be of no help."""
    if planning.dynamic or not planning.formats or forced or surely_met(known, planning):
        return NOTHING
    seen = ladder.Seen(subject.with_(seen=known.seen), planning, target)
    if not ladder.EQUALIZE.helps(seen).can:
        return NOTHING
    again = Foreseen(runs=6, counted=known.kept, sessions=4, copies=1)
    every = again + foreseen_prepared(subject.layers, known, planning) + foreseen_climb(known, planning)
    return every if surely_missed(known, planning) else between(NOTHING, every)


def _since(started: float) -> float:
    return time.perf_counter() - started
