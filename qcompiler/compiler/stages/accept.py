"""The stage that accepts the result, or refuses it: the user's gates, the verdict, what was not quantized at all."""

from __future__ import annotations

from collections import Counter

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.errors import AccuracyError
from qcompiler.ir.operators import LINEAR
from qcompiler.plan import Plan
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.verdict import Verdict, Word, verdict_of
from qcompiler.weight_only import give_back


@stage(kept=False)
def accept(
    run: Compilation, subject: Subject, plan: Plan, verification: Verification | None, gates: Gates, quantizes: bool
) -> Done[Verdict]:
    """Nothing is written of what is not accepted.

    Args:
        subject: with its stored weights, for advice.
        plan: what was reached.
        verification: the comparison; None where there was none.
        gates: the user's limits, and whether what nobody would ship is written all the same.
        quantizes: activations were to be quantized: a model that stays float must not look like a success.

    Raises:
        AccuracyError: a gate is missed, or the result is broken, and nothing is left to give back.
    """
    verdict = verdict_of(verification, gates)
    record = {"verdict": verdict.to_json()}
    if quantizes and not plan.quantized():
        rules = Counter(decision.rule for decision in plan if decision.op in LINEAR)
        why = f", mostly by rule '{rules.most_common(1)[0][0]}'" if rules else ": it has no Conv, Gemm or MatMul"
        run.warn(f"nothing in this model was quantized{why}; the plan in the manifest has a reason for every node")
    if verification is not None:
        give_back.require(verification, gates, subject.stored)
    if verdict.word is Word.BROKEN and not gates.allow_broken:
        raise AccuracyError(
            f"the result is broken: {'; '.join(verdict.reasons)}. Keep layers in high precision with --keep (see "
            "`qcompiler sensitivity`), choose another precision, judge by a metric of your own (--metric), or write it "
            "all the same with --allow-broken."
        )
    if verdict.word is not Word.HOLDS:
        run.warn(f"the result is {verdict.word}: {'; '.join(verdict.reasons)}")
    return Done(verdict, record)
