"""The stages that say what all of it comes to (holds, doubtful, or broken), and refuse what is not accepted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.errors import AccuracyError
from qcompiler.numerics.sqnr import noise_power
from qcompiler.plan import Plan
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.verification import share
from qcompiler.verification.compare import Verification
from qcompiler.verification.finite_on_all import Finiteness
from qcompiler.verification.gates import Gates
from qcompiler.verification.remedy import remedies
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Judgement, Word, advice, verdict_of
from qcompiler.weight_only import give_back

FLOAT = "--allow-broken writes it nevertheless; --precision fp16 says that float is what you want"


@stage(kept=False)
def conclude(
    run: Compilation,
    plan: Plan,
    verification: Verification | None,
    gates: Gates,
    promise: Promise,
    finite: Finiteness | None,
    net: SafetyNet,
    doubts: Sequence[str],
    *,
    last: bool,
) -> Done[Judgement]:
    """The verdict so far; at the end, with a warning where the result does not hold.

    Args:
        plan: what was reached.
        verification: the comparison; None where there was none.
        gates: the user's limits.
        promise: what was asked for of the share that is quantized: a model that stays float must not look like a
            success.
        finite: what became of all samples; None where nobody looked.
        net: the search for what may be quantized: a goal that it missed is told.
        doubts: reasons that the data and the engine give.
        last: nothing more is to come.
    """
    verdict, nothing = verdict_of(verification, gates), share.nothing_quantized(plan, promise)
    if nothing:
        verdict = verdict.broken([nothing]) if promise.something else verdict.doubted([nothing])
    if finite is not None and finite.failing:
        verdict = verdict.broken([str(finite)])
    verdict = verdict.doubted(doubts)
    if last:
        for text in _told(verdict, verification, net, gates):
            run.warn(text)
        left = share.left_float(plan, promise)
        if left:
            run.warn(left)
    return Done(verdict, {"verdict": verdict.to_json()})


def _told(verdict: Judgement, verification: Verification | None, net: SafetyNet, gates: Gates) -> Iterator[str]:
    """What the user should know of it."""
    if verdict.word is not Word.HOLDS:
        yield f"the result is {verdict.word}: {'; '.join(verdict.reasons)}"
    told = advice(verification, net.target_db)
    if told:
        yield told
    judged = verification is not None and verification.score is not None
    short = bool(net.curve) and net.curve[-1].sqnr_db < net.target_db  # not by a margin alone, which is in the record
    if not net.met and short and gates.min_sqnr is None and not judged:
        reached, goal = (
            _rise(db) if net.likelihood else f"{db:.3g} dB" for db in (net.curve[-1].sqnr_db, net.target_db)
        )
        yield (
            f"the search for layers to quantize stopped at {reached}, short of its goal of {goal}, because only a part "
            "of the work may go back to high precision by itself: "
            "a gate (--min-sqnr, --metric with --max-drop) or a lower safety.min_share lets it go on"
        )


def _rise(sqnr_db: float) -> str:
    """What dB of the next token's likelihood are in words."""
    return f"a perplexity that is {math.expm1(min(noise_power(sqnr_db), 100.0)):.1%} higher"


@stage(kept=False)
def accept(
    run: Compilation,
    subject: Subject,
    plan: Plan,
    verification: Verification | None,
    gates: Gates,
    promise: Promise,
    verdict: Judgement,
) -> Done[None]:
    """Nothing is written of what is not accepted.

    Args:
        subject: with its stored weights, for advice.
        plan: what was reached.
        verification: the comparison; None where there was none.
        gates: the user's limits, and whether what nobody would ship is written all the same.
        promise: what was asked for of the share that is quantized: a model that stays float must not look like a
            success.
        verdict: on all of it.

    Raises:
        AccuracyError: a gate is missed, or the result is broken, and nothing is left to give back.
    """
    if verification is not None:
        give_back.require(verification, gates, subject.stored, remedies(plan, verification))
    nothing = share.nothing_quantized(plan, promise)
    if nothing and promise.something and not gates.allow_broken:
        gated = gates.min_sqnr is not None or gates.max_drop is not None
        taken = " A gate took all of it back: ask for less." if gated and _gave_back(plan) else ""
        told = f"{taken}{_instead(plan)} The manifest has a reason for every node."
        raise AccuracyError(f"{nothing}.{told} {FLOAT}.")
    begins = f" {verification.begins}" if verification is not None and verification.begins else ""
    if verdict.word is Word.BROKEN and not gates.allow_broken:
        raise AccuracyError(
            f"the result is broken: {'; '.join(verdict.reasons)}.{begins} {remedies(plan, verification)} A metric of "
            "your own (--metric) has the word on good enough; --allow-broken writes it all the same."
        )
    share.require(plan, promise)
    return Done(None)


def _gave_back(plan: Plan) -> bool:
    return any(one.rule == "sensitive" for one in plan if one.macs)


def _instead(plan: Plan) -> str:
    """What makes products of single rows faster, where it is these that stay float."""
    rows = any(one.rule == "gemv" for one in plan)
    return " Products of one row gain by smaller weights alone: --precision int8-weight." if rows else ""
