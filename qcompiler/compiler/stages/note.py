"""The stage that notes what a try was aimed at and what came out, so that the record has all of them."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Planned
from qcompiler.errors import AccuracyError
from qcompiler.verification import share
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise


@dataclass(frozen=True, slots=True)
class Try:
    """One plan and what it reached.

    Attributes:
        goal_db: SQNR that the safety net aimed at; None where nothing was chosen by it.
        share: of the multiply-accumulates that are quantized, 0..1.
        stored: how many weights are stored in few bits.
        sqnr_db: of the worst float output; None where there is none, or nothing was compared.
        drop: what the metric lost, relative; None without one.
        missed: which gate, in its own words; empty where all hold.
        looks: how often what judges was looked at, with this try: with more than one, the tries before it chose, too.
    """

    goal_db: float | None
    share: float
    stored: int
    sqnr_db: float | None
    drop: float | None
    missed: str
    looks: int = 0


@stage(kept=False)
def note(
    run: Compilation,
    decided: Planned,
    lowered: Lowered,
    verification: Verification | None,
    gates: Gates,
    promise: Promise,
    before: tuple[Try, ...] = (),
) -> Done[tuple[Try, ...]]:
    """All tries so far, with the one that has just been compared.

    Args:
        decided: the plan.
        lowered: its graph.
        verification: the comparison; None where there was none.
        gates: the user's limits.
        promise: what was asked for of the share.
        before: earlier tries.
    """
    plan, score = lowered.plan, None if verification is None else verification.score
    tried = Try(
        goal_db=decided.chosen.net.target_db if decided.chosen.net.curve else None,
        share=plan.share(),
        stored=sum(one.precision.weight_only for one in plan),
        sqnr_db=None if verification is None else verification.worst_sqnr_db,
        drop=None if score is None else score.drop,
        missed=_missed(lowered, verification, gates, promise),
        looks=(before[-1].looks if before else 0) + (verification is not None),
    )
    tries = (*before, tried)
    return Done(tries, {"tries": list(tries)})


def _missed(lowered: Lowered, verification: Verification | None, gates: Gates, promise: Promise) -> str:
    try:
        if verification is not None:
            gates.require(verification)
        share.require(lowered.plan, promise)
    except AccuracyError as error:
        return str(error)
    return ""
