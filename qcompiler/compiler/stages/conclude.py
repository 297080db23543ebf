"""The stage that says at the end what all of it comes to: holds, doubtful, or broken."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.verification.verdict import Verdict


@stage(kept=False)
def conclude(run: Compilation, verdict: Verdict, doubts: Sequence[str]) -> Done[Verdict]:
    """The verdict on the comparison, with what else was found since.

    Args:
        verdict: on what was compared.
        doubts: reasons that the engine gives.
    """
    found = verdict.doubted(doubts)
    return Done(found, {"verdict": found.to_json()})
