"""The stage that says what all of it comes to: holds, doubtful, or broken."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.plan import Plan
from qcompiler.verification import share
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Judgement, Word, verdict_of


@stage(kept=False)
def conclude(
    run: Compilation,
    plan: Plan,
    verification: Verification | None,
    gates: Gates,
    promise: Promise,
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
        doubts: reasons that the data and the engine give.
        last: nothing more is to come.
    """
    verdict, nothing = verdict_of(verification, gates), share.nothing_quantized(plan, promise)
    if nothing:
        verdict = verdict.broken([nothing]) if promise.something else verdict.doubted([nothing])
    verdict = verdict.doubted(doubts)
    if last and verdict.word is not Word.HOLDS:
        run.warn(f"the result is {verdict.word}: {'; '.join(verdict.reasons)}")
    return Done(verdict, {"verdict": verdict.to_json()})
