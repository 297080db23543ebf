"""What can be done about a result that is not close enough: what the plan leaves to change, and nothing else.

A missed gate has been answered before anybody reads this: layers went back to high precision, or nearer to float, until
nothing was left to try. So the advice never is to aim higher, and never a layer that computes in float already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qcompiler.plan import Plan
from qcompiler.target import DType
from qcompiler.verification.compare import Verification

# For a comparison of two files, where nobody knows the plan
COMPILED_ELSEWHERE = (
    "Compile it again with the gate, so that layers go back to high precision until it holds, or keep the layers that "
    "are named in high precision with --keep; or accept less."
)
NAMED = 2  # layers that are named at most


def remedies(plan: Plan, verification: Verification | None) -> str:
    """Sentences that begin with what helps most.

    Args:
        plan: what was reached.
        verification: the comparison, whose suspects are named.
    """
    tips = list(_tips(plan, verification))
    if not tips:
        return "Nothing is left to change but the limit: accept less."
    return f"What can help: {'; '.join(tips)}; or accept less."


def _tips(plan: Plan, verification: Verification | None) -> Iterator[str]:
    blamed = dict.fromkeys(one.layer for one in verification.suspects) if verification else {}
    known = [decision for name in blamed if (decision := plan.decisions.get(name)) is not None]
    kept = [one.node for one in known if one.precision.quantized][:NAMED]
    if kept:
        patterns = " ".join(f"--keep '^{re.escape(node)}$'" for node in kept)
        yield f"{patterns}, where the error begins"
    if any(one.precision is DType.FP16 for one in plan):
        begins = any(one.precision is DType.FP16 for one in known[:1])
        yield "--high-precision fp32" + (", because the error begins in FP16" if begins else "")
    if any(one.precision.quantized and not one.precision.weight_only for one in plan):
        yield "more samples of the kind that comes out badly (--data), because ranges are taken from them"
        if not kept:
            yield "--keep for the layers that `qcompiler sensitivity` lists first"
