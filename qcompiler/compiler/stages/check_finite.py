"""The stage that runs all samples once through the result: what is finite in float must be finite there, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Subject
from qcompiler.data.source import Source
from qcompiler.ir.signature import Feeds
from qcompiler.verification.finite_on_all import Finiteness, finite_on_all


@stage()
def check_finite(run: Compilation, subject: Subject, lowered: Lowered, compared: bool) -> Done[Finiteness | None]:
    """What became of all samples; None without data, or where nobody wants a comparison.

    Those that *verify* has compared are known by then; the others are run here.

    Args:
        subject: with the reference and all samples.
        lowered: the result.
        compared: the result is compared with float at all.

    Raises:
        ModelError: a node of the result fails on a sample, or an output of the float model is NaN; names the node.
    """
    if subject.parts is None or not compared:
        return Done(None)
    parts = [one for one in (subject.parts.calibrate, subject.parts.choose) if one is not None]
    places = list[int]()
    with run.working(sum(subject.parts.samples[:2])) as advance:
        found = finite_on_all(
            subject.reference, lowered.model, _feeds(parts, places), place=places.__getitem__, advance=advance
        )
    record = {"samples": found.samples, "failing": list(found.failing), "output": found.output, "node": found.node}
    return Done(found, {"verification": {"finite": record}})


def _feeds(parts: Sequence[Source], places: list[int]) -> Iterator[Feeds]:
    """All feeds of the parts; `places` learns where each stands in the data."""
    for part in parts:
        for index, feed in enumerate(part):
            places.append(part.place(index))
            yield feed
