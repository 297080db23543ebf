"""The climb goes on where a plan held the goal on what chose it, and missed a gate where it was judged.

The first climb ended at the first rung that met the goal, but for those that cost nothing where the model runs. That
goal was not enough, so the next rung is tried that evidence speaks for. One that changes the model drops what is marked
on its layers, which is tried again behind it. Whether a rung helps is judged by the samples that choose, as before: of
what judges, only that a gate was missed is known, and by how many dB.
"""

from __future__ import annotations

from itertools import takewhile

from qcompiler.compiler import ladder
from qcompiler.compiler.ask import Asked
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.equalize import equalize
from qcompiler.compiler.stages.smooth_quant import smooth_quant
from qcompiler.compiler.stages.weight_only import fit_weights, shift
from qcompiler.compiler.subject import Subject
from qcompiler.planning.chosen import Planning
from qcompiler.planning.climb import Standing
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.verdict import acceptable

STEP_DB = 3.0  # more than what was reached, where no gate says how many dB are missing
CHANGING = (ladder.EQUALIZE.name, ladder.SMOOTH_QUANT.name)  # the model, in order
MARKING = (ladder.FIT_WEIGHTS.name, ladder.SHIFT.name)  # its layers, behind them
MISSED = "what met the goal where it was chosen missed a gate where it was judged"


def climbed_on(
    run: Compilation, subject: Subject, planning: Planning, asked: Asked, verification: Verification | None
) -> Subject:
    """The subject behind the next rung that helps; as given where no gate was missed, or no rung is left.

    Where none of them helps, its model is the same, and its standing says that they were tried.

    Args:
        run: runs the rungs.
        subject: as the ladder left it.
        planning: what was asked for when the plan was made.
        asked: options of the rungs.
        verification: what the plan reached; None where nothing was compared.

    Raises:
        EquivalenceError: as of `equalize` and `smooth_quant`.
    """
    before = subject.standing
    if before is None or not before.met or verification is None or acceptable(verification, asked.gates):
        return subject
    fixed = planning.at is not None or planning.pick is not None or planning.replay is not None
    rungs = left(before)
    if fixed or asked.llm_int8 is not None or asked.weight_only is not None or not rungs:
        return subject
    now = subject.with_(standing=before.raised(max(_short(verification, asked.gates), STEP_DB), MISSED))
    strict = asked.recipe.strict
    if ladder.EQUALIZE.name in rungs:
        now = run(equalize, now, asked.watch, asked.search, planning, asked.recipe.equalize, strict)
    if ladder.SMOOTH_QUANT.name in rungs:
        now = run(smooth_quant, now, asked.watch, asked.search, planning, asked.smooth_quant, strict)
    rungs = left(now.standing)
    if ladder.FIT_WEIGHTS.name in rungs:
        now = run(fit_weights, now, asked.search, planning)
    return run(shift, now, asked.search, planning) if ladder.SHIFT.name in rungs else now


def left(standing: Standing | None) -> tuple[str, ...]:
    """Rungs that have not been tried on the model as it is.

    Args:
        standing: of the model; None where nobody has looked.

    Returns:
        Their names, in order; none in front of one that has changed the model.
    """
    if standing is None:
        return ()
    changed = [one for one in standing.behind if one in CHANGING]
    marked = tuple(takewhile(lambda one: one in MARKING, reversed(standing.behind)))
    further = CHANGING[CHANGING.index(changed[-1]) + 1 :] if changed else CHANGING
    return tuple(one for one in (*further, *MARKING) if one not in (*marked, *standing.vain))


def changed(before: Subject, after: Subject) -> bool:
    """Whether a climb has changed the model, and with it the layers that there are to decide about."""
    was, now = before.standing, after.standing
    return after is not before and (was is None or now is None or now.behind != was.behind)


def _short(verification: Verification, gates: Gates) -> float:
    """dB that are missing for a gate of dB; 0 where there is none, or it holds."""
    worst = verification.worst_sqnr_db
    return 0.0 if gates.min_sqnr is None or worst is None else max(gates.min_sqnr - worst, 0.0)
