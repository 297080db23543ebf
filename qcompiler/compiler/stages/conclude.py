"""The stage that says what all of it comes to: holds, doubtful, or broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.plan import Plan
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.verification import share
from qcompiler.verification.compare import Verification
from qcompiler.verification.finite_on_all import Finiteness
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Judgement, Word, advice, verdict_of


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
    if not net.met and net.curve and gates.min_sqnr is None and not judged:
        yield (
            f"the search for layers to quantize stopped at {net.curve[-1].sqnr_db:.1f} dB, short of its goal of "
            f"{net.target_db:g} dB, because only a part of the work may go back to high precision by itself: "
            "a gate (--min-sqnr, --metric with --max-drop) or a lower safety.min_share lets it go on"
        )
