"""The stage that chooses the precision of every node, and what is tried next where a gate was missed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from functools import partial

from qcompiler.compiler import ladder
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Planned, Subject
from qcompiler.ir import model as models
from qcompiler.outliers import llm_int8
from qcompiler.plan import Plan
from qcompiler.planning import dynamic, given
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.climb import goal_of, samples_of, surely_met
from qcompiler.planning.decisions import accounted, close
from qcompiler.planning.placement import candidates
from qcompiler.planning.planner import make_plan
from qcompiler.planning.ready import Ready, few_of, ranges_of
from qcompiler.planning.search import qfem, safety_net
from qcompiler.planning.search.goal import checks_for
from qcompiler.planning.search.offers import opened
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.search.take import Pinned, at_point, next_point
from qcompiler.recipe.budget import for_layers, runs_for
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.runtime.work import count_macs, count_macs_without_data
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import Target
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.metrics import halves
from qcompiler.verification.metrics.halves import MetricHalves
from qcompiler.verification.verdict import acceptable
from qcompiler.weight_only import give_back, record

STEP_DB = 3.0  # how much closer to float a search aims where everything quantized missed
MOST_DB = 60.0


@stage(judged=True)
def decide(
    run: Compilation, subject: Subject, target: Target, planning: Planning, before: Planned | None = None
) -> Done[Planned]:
    """A plan for the subject: every linear node's precision, with its reason.

    Args:
        subject: observed, smoothed, with its weights rounded where that was asked for.
        target: what planning must know of the machine.
        planning: what is asked for.
        before: an earlier try on the same subject; what its scores have shown is not measured again.
    """
    model, started = opened(subject.model, subject.layers.found), time.perf_counter()
    chosen = _chosen(run, subject, model, target, planning, before)
    rungs = ladder.decided(ladder.Seen(subject, planning, target), chosen, time.perf_counter() - started)
    settled, plan, splits = llm_int8.settle(model, chosen.plan, subject.splits)
    plan = record.into(plan, subject.stored, target, [node.name for node in model.graph.nodes])
    plan = accounted(plan, settled.graph, _work(settled, subject, planning), target.high_precision)
    asked = [*chosen.net.amax, *plan.quantizers, *chosen.spared.tensors]
    seen = subject.seen.histograms
    told = {
        "safety": dataclasses.replace(chosen.net, front=()),  # which stands under a key of its own
        "qfem": qfem.record_of(chosen.spared, subject.standing_out),
        "histograms": {name: seen[name].octaves() for name in dict.fromkeys(asked) if name in seen},
        "goal": chosen.goal and chosen.goal.to_json(),
        "front": [point.to_json(number) for number, point in enumerate(chosen.net.front)],
        **ladder.record(*rungs),
    }
    return Done(Planned(settled, dataclasses.replace(chosen, plan=plan), splits), told)


def _work(model: models.Model, subject: Subject, planning: Planning) -> Mapping[str, int]:
    """Multiply-accumulates of every node of what is decided about."""
    if subject.seen.kept:
        return count_macs(model.graph, subject.seen.kept[0])
    usual = {name: sizes[1] for name, sizes in (planning.shapes or {}).items()}
    return count_macs_without_data(model.graph, usual)


def _chosen(
    run: Compilation,
    subject: Subject,
    model: models.Model,
    target: Target,
    planning: Planning,
    before: Planned | None,
) -> Chosen:
    """The plan, from the observations; an empty one where there are none."""
    if planning.dynamic:
        every = candidates.find_candidates(model.graph, target, subject.scope.keep).refusing(subject.layers.refused)
        return dynamic.make_plan(model, every, subject.seen, planning, target)
    if not subject.seen.kept and planning.formats and subject.scope.ranges:
        found = given.make_plan(model, subject.layers, subject.scope.ranges, planning, target)
        return dataclasses.replace(found, plan=close(found.plan, subject.layers.found, subject.released))
    if not subject.seen.kept:
        return Chosen(Plan(), SafetyNet())
    metric = None if subject.judge.metric is None else partial(MetricHalves, subject.judge.metric)
    scores = qfem.UNKNOWN if before is None else before.chosen.scores
    ready = run.lent(Ready)
    with run.working() as advance:
        asked = (model, subject.layers, subject.seen, planning, target)
        pinned = _pinned(planning, before)
        chosen = make_plan(*asked, advance, metric=metric, scores=scores, pinned=pinned, ready=ready, others=run.others)
    del ready
    models.forget_pages(model)
    return_freed_memory()
    plan = close(chosen.plan, subject.layers.found, subject.released)
    return dataclasses.replace(chosen, plan=given.over(plan, model.graph, subject.scope.ranges))


def _pinned(planning: Planning, before: Planned | None) -> Pinned | None:
    """The point of a front that is to be taken now, of an earlier try or of an earlier compilation; None to search."""
    if planning.at is None or before is None:
        return planning.replay
    chosen = before.chosen
    reached = chosen.goal and dataclasses.replace(
        chosen.goal, check=None, why="the next point of the front: what came before it missed where it was judged"
    )
    words = {name: one.calibrator for name, one in chosen.plan.quantizers.items()}
    return Pinned(at_point(chosen.net, planning.at), chosen.spared, reached, words)


def _short(verification: Verification, gates: Gates) -> float:
    """dB that were missing for a gate of dB, 0 where that was not missed."""
    worst = verification.worst_sqnr_db
    missing = 0.0 if gates.min_sqnr is None or worst is None else gates.min_sqnr - worst
    return missing if 0 < missing < MOST_DB else 0.0


def foreseen(subject: Subject, known: Timed, planning: Planning) -> Foreseen:
    """What the first plan takes beyond what was prepared and run for *calibrate*; the metric is asked of some plans.

    Where a gate is missed, others follow.
    """
    groups = subject.layers.by_activation
    if not groups or not planning.formats or planning.dynamic:
        return NOTHING
    ranges, samples, few = ranges_of(planning), samples_of(known, planning), few_of(subject.layers, known)
    choices, effort, seconds = len(groups) * len(planning.formats), planning.effort, planning.search_time
    budget = for_layers(effort, seconds, known.macs, round(known.calibrate))
    budget = runs_for(budget, effort, seconds, choices) if planning.reproducible else budget
    spared = Foreseen(quantized=few * (1 + ranges))
    may_spare = planning.qfem.alpha != "off" and not surely_met(known, planning)
    searched = safety_net.foreseen(
        groups=len(groups),
        formats=len(planning.formats),
        ranges=ranges,
        few=max(1, min(samples, budget // 2 // choices)),
        samples=samples,
        runs=budget,
        target_db=goal_of(planning),
        sqnr_db=-math.inf if known.sqnr_db is None else known.sqnr_db,
    )
    asked = halves.foreseen_loss(known.scoring)
    most = checks_for(planning.effort, planning.search_time)
    return between(NOTHING, spared if may_spare else NOTHING) + searched + between(asked, asked.times(most))


def stricter(
    subject: Subject, planning: Planning, decided: Planned, verification: Verification | None, gates: Gates
) -> tuple[Subject, Planning] | None:
    """What to try next where a gate was missed or the result is broken, and there is more to give back; None to go on.

    First the next point of the front, whatever share stays quantized but for a gate on it; where nothing was searched
    yet, a search. Then the stored weights that err most go back. A point that the user picked is kept.
    """
    if verification is None or acceptable(verification, gates):
        return None
    plan, safety = decided.chosen.plan, planning.safety
    net, short = decided.chosen.net, _short(verification, gates)
    if plan.quantized() and plan.quantizers and planning.pick is None and net.curve:
        at = next_point(net, short)
        if at is not None and net.front[at].share >= planning.min_share:
            return subject, dataclasses.replace(planning, at=at)
        if len(net.front) == 1 and not planning.beyond:  # the first plan was good enough: nothing was searched yet
            goal = max(safety.target_sqnr_db, net.curve[-1].sqnr_db) + max(short, STEP_DB)
            safety = dataclasses.replace(safety, target_sqnr_db=min(goal, MOST_DB), min_share=0.0)
            return subject, dataclasses.replace(planning, safety=safety, beyond=True)
    floor = max(safety.min_share, planning.min_share)
    stored = give_back.give_back(subject.stored, floor)
    return None if stored is None else (subject.with_(stored=stored), planning)
