"""The stage that accepts the result, or refuses it: the user's gates, and a word where nothing was quantized."""

from __future__ import annotations

from collections import Counter

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.ir.operators import LINEAR
from qcompiler.plan import Plan
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.weight_only import give_back


@stage(kept=False)
def accept(
    run: Compilation, subject: Subject, plan: Plan, verification: Verification | None, gates: Gates, quantizes: bool
) -> Done[None]:
    """Nothing is written of what is not accepted.

    Args:
        subject: with its stored weights, for advice.
        plan: what was reached.
        verification: the comparison; None where there was none.
        gates: the user's limits.
        quantizes: activations were to be quantized: a model that stays float must not look like a success.

    Raises:
        AccuracyError: a gate is missed, and nothing is left to give back.
    """
    if quantizes and not plan.quantized():
        rules = Counter(decision.rule for decision in plan if decision.op in LINEAR)
        why = f", mostly by rule '{rules.most_common(1)[0][0]}'" if rules else ": it has no Conv, Gemm or MatMul"
        run.warn(f"nothing in this model was quantized{why}; the plan in the manifest has a reason for every node")
    if verification is not None:
        give_back.require(verification, gates, subject.stored)
    return Done(None)
