"""The stage that compares float and lowered in ONNX Runtime, on what they are judged by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Subject
from qcompiler.data.source import open_source
from qcompiler.runtime.finite import refuse_not_finite
from qcompiler.verification.compare import Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.held_out import runs_of
from qcompiler.verification.metric import score_of


@dataclass(frozen=True)
class VerifyOptions:
    """What is compared.

    Attributes:
        samples: so many feeds; 0 for no comparison.
        drift: look for the first inner tensor that drifts, too.
    """

    samples: int
    drift: bool


@dataclass(frozen=True, eq=False)
class Proof:
    """What a comparison has shown.

    Attributes:
        verification: the comparison; None where there was none.
        score_without: the metric of the float model without its prefix; None where there is no prefix, or no metric.
    """

    verification: Verification | None
    score_without: float | None = None


@stage()
def verify(
    run: Compilation, subject: Subject, lowered: Lowered, options: VerifyOptions, before: Proof | None = None
) -> Done[Proof]:
    """Float against lowered, on data that nothing was chosen by; with too little of it, in sample.

    Args:
        subject: with the reference, the samples and the judge.
        lowered: what is compared with it.
        options: what is compared.
        before: an earlier comparison with the same reference, whose float score is not measured again.

    Raises:
        ModelError: an output of the float model is not finite; the message names the node.
        UsageError: the metric fails or returns no number.
    """
    if subject.samples is None or not options.samples:
        return Done(Proof(None), {"verification": None})
    judge, front = subject.judge, subject.prefix and subject.prefix.front
    held = None if judge.data is None else open_source(judge.data, subject.inputs, samples=options.samples)
    held = front.through(held) if front and held is not None else held
    own = held is None and subject.parts is not None
    if own and subject.parts is not None:
        held = subject.parts.judge
    known = before and before.verification and before.verification.score
    with run.working(options.samples + runs_of(judge.metric)) as advance:
        found = compare(
            subject.reference,
            lowered.model,
            held if held is not None else subject.seen.kept[: options.samples],
            samples=options.samples,
            metric=judge.metric,
            float_score=known.float_score if known else None,
            drift=options.drift,
            inner=lowered.inner,
            advance=lambda: advance(1),
        )
        without = before.score_without if before is not None else _without_prefix(subject, found)
    if any(output.float_not_finite for output in found.outputs):
        refuse_not_finite(subject.reference, held or subject.samples)
    if held is None:
        found = dataclasses.replace(found, data=subject.samples.name, random=subject.samples.random, in_sample=True)
    elif own:
        found = dataclasses.replace(found, data=f"{held.name}, samples held out")
    return Done(Proof(found, without), {"verification": found.to_json(), **_of_prefix(subject, found, without)})


def _without_prefix(subject: Subject, found: Verification) -> float | None:
    """The metric of the float model without the prefix that was baked in."""
    plain = subject.prefix and subject.prefix.plain
    if found.score is None or not plain or subject.judge.metric is None:
        return None
    return score_of(subject.judge.metric, plain)


def _of_prefix(subject: Subject, found: Verification, without: float | None) -> dict[str, Any]:
    """What the part of the manifest about the prefix learns from the comparison."""
    if subject.prefix is None:
        return {}
    with_it = found.score.float_score if found.score is not None and subject.prefix.baked else None
    return {"qfep": {"float_score_without": without, "float_score_with": with_it}}
