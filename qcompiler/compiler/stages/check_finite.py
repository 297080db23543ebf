"""The stage that runs all samples once through the result: what is finite in float must be finite there, too."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Subject
from qcompiler.verification.finite_on_all import Finiteness, finite_on_all


@stage()
def check_finite(run: Compilation, subject: Subject, lowered: Lowered, compared: bool) -> Done[Finiteness | None]:
    """What became of all samples; None without data, or where nobody wants a comparison.

    Args:
        subject: with the reference and all samples.
        lowered: the result.
        compared: the result is compared with float at all.

    Raises:
        ModelError: a node of the result fails on a sample, or an output of the float model is NaN; names the node.
    """
    if subject.samples is None or not compared:
        return Done(None)
    with run.working(subject.seen.feeds) as advance:
        found = finite_on_all(subject.reference, lowered.model, subject.samples, advance=advance)
    record = {"samples": found.samples, "failing": list(found.failing), "output": found.output, "node": found.node}
    return Done(found, {"verification": {"finite": record}})
