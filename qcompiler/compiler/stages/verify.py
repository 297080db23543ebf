"""The stages that compare float and lowered in ONNX Runtime, on what they are judged by, and run all samples once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Lowered, Subject
from qcompiler.data.source import Source, open_source
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.finite import refuse_not_finite
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics.farthest import Farthest, farthest
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.verification.compare import DRIFT_SAMPLES, Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.finite_on_all import Finiteness, finite_on_all
from qcompiler.verification.gates import Gates
from qcompiler.verification.held_out import runs_of
from qcompiler.verification.metric import score_of
from qcompiler.verification.metrics.halves import foreseen_scores
from qcompiler.verification.verdict import Word, verdict_of


@dataclass(frozen=True)
class VerifyOptions:
    """What is compared.

    Attributes:
        samples: so many feeds; 0 for no comparison.
        drift: look for the first inner tensor that drifts, too.
        ignored: outputs that nothing is judged by.
        close_db: SQNR in dB that is good enough: nobody is to blame then.
        halves: a half of the metric chose the plan: its score says what the other one loses.
        gates: what the user asks for: who is to blame is looked for where it is missed, or the verdict is not *holds*.
    """

    samples: int
    drift: bool
    ignored: tuple[str, ...] = ()
    close_db: float = 25.0
    halves: bool = False
    gates: Gates = field(default_factory=Gates)


@dataclass(frozen=True, eq=False)
class Proof:
    """What a comparison has shown.

    Attributes:
        verification: the comparison; None where there was none.
        score_without: the metric of the float model without its prefix; None where there is no prefix, or no metric.
    """

    verification: Verification | None
    score_without: float | None = None


@stage(judged=True)
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
    if not options.samples or (subject.samples is None and subject.judge.data is None):
        return Done(Proof(None), {"verification": None})
    judge, held = subject.judge, _judging(subject, options.samples)
    known = before and before.verification and before.verification.score
    whole = known.halves if known and known.halves is not None and not known.halves["split"] else None
    others = _others(subject, min(options.samples, subject.parts.samples[2]) if subject.parts is not None else 0)
    runs = options.samples + sum(map(len, others.values()))
    with run.working(runs + runs_of(judge.metric)) as advance:
        found = compare(
            subject.reference,
            lowered.model,
            held if held is not None else subject.seen.kept[: options.samples],
            samples=options.samples,
            metric=judge.metric,
            float_score=known.float_score if known else None,
            halves=options.halves and whole is None,
            drift=options.drift,
            normal=lowered.inner,
            ignored=options.ignored,
            close_db=options.close_db,
            doubted=partial(_doubted, options.gates),
            others=others,
            advance=lambda: advance(1),
        )
        if whole is not None and found.score is not None:
            found = dataclasses.replace(found, score=dataclasses.replace(found.score, halves=whole))
        without = before.score_without if before is not None else _without_prefix(subject, found)
    return_freed_memory()
    judging = held or subject.samples
    if judging is not None and any(output.nan for output in found.outputs):
        refuse_not_finite(subject.reference, judging, judging.place)
    if held is None and subject.samples is not None:
        found = dataclasses.replace(found, data=subject.samples.name, random=subject.samples.random, in_sample=True)
    elif held is not None and judge.data is None:
        found = dataclasses.replace(
            found, data=f"{held.name}, held out", positions=tuple(map(held.place, range(found.samples)))
        )
    return Done(Proof(found, without), {"verification": found.to_json(), **_of_prefix(subject, found, without)})


def foreseen(known: Timed, options: VerifyOptions) -> Foreseen:
    """Both models on what judges, on a few samples of the other parts, and for the drift; the metric where it tells.

    Where the layer that is to blame is looked for, the samples of the drift are run again for those suspected.
    """
    if not options.samples:
        return NOTHING
    judging = min(options.samples, known.judge or options.samples)
    others = sum(min(max(1, judging // 4), part) for part in (known.calibrate, known.choose))
    each = judging + others
    compared = Foreseen(runs=each, quantized=each, sessions=2, copies=2)
    compared += foreseen_scores(known.scoring, halved=options.halves)
    few = min(DRIFT_SAMPLES, judging)
    drift = Foreseen(runs=few, quantized=few, sessions=3)
    return compared + between(drift, drift.times(3))


def foreseen_on_all(known: Timed, compared: bool) -> Foreseen:
    """The result on those samples that reach farthest: one at best, else all that *verify* has not compared."""
    if not compared:
        return NOTHING
    every = Foreseen(quantized=known.calibrate + known.choose, sessions=1, copies=1)
    return between(Foreseen(quantized=1, sessions=1), every)


def _doubted(gates: Gates, found: Verification) -> bool:
    """Whether a gate is missed, or somebody should look before the result is shipped."""
    return not gates.hold(found) or verdict_of(found, gates).word is not Word.HOLDS


def _judging(subject: Subject, samples: int) -> Source | None:
    """What is compared on: other data, or the part of the data that nothing was chosen by; None where there is none."""
    if subject.judge.data is None:
        return None if subject.parts is None else subject.parts.judge
    source = open_source(subject.judge.data, subject.inputs, samples=samples, stored=subject.reference.ends)
    front = subject.prefix and subject.prefix.front
    return front.through(source) if front else source


def _others(subject: Subject, judging: int) -> dict[str, list[Feeds]]:
    """A few samples of the other parts: a quarter as many as judge, which tells whether the parts come out alike."""
    few = max(1, judging // 4)
    if subject.parts is None or not judging:
        return {}
    parts = {"calibrate": subject.seen.kept, "choose": subject.seen.held}
    return {name: list(feeds[:few]) for name, feeds in parts.items() if feeds}


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


@stage()
def check_finite(
    run: Compilation, subject: Subject, lowered: Lowered, verification: Verification | None
) -> Done[Finiteness | None]:
    """What became of all samples; None without data, or where nobody wants a comparison.

    Those that *verify* has compared are known by then. Of the others, those are run here that reach farthest, and all
    where ranges do not tell, or one of them fails.

    Args:
        subject: with the reference and all samples.
        lowered: the result.
        verification: the comparison on those that judge; None where there was none.

    Raises:
        ModelError: a node of the result fails on a sample, or an output of the float model is NaN; names the node.
    """
    if subject.parts is None or verification is None:
        return Done(None)
    known = frozenset(verification.positions)
    total = sum(subject.parts.samples) - len(known)
    with run.working() as advance:

        def over(wanted: Callable[[int], bool]) -> Finiteness:
            places = list[int]()
            feeds = _feeds(subject, wanted, places)
            return finite_on_all(subject.reference, lowered.model, feeds, place=places.__getitem__, advance=advance)

        needed = _needed(subject, lowered, verification)
        left = needed.places - known
        few = Finiteness(0) if not left or needed.why_all else over(left.__contains__)
        # A place that no sample was found at is one of a sample that nobody has run
        met = not needed.why_all and few.samples == len(left) and not few.failing
        found = Finiteness(total, run=few.samples) if met else over(lambda place: place not in known)
    return_freed_memory()
    found = dataclasses.replace(found, why_all=needed.why_all)
    record = {"samples": found.samples, "failing": list(found.failing), "output": found.output, "node": found.node}
    looked = {"run": found.samples if found.run is None else found.run, "why_all": found.why_all}
    return Done(found, {"verification": {"finite": {**record, **looked}}})


def _needed(subject: Subject, lowered: Lowered, verification: Verification) -> Farthest:
    """The samples that the result must be run on; all where its noise drowns the float values."""
    worst = verification.worst_sqnr_db
    if subject.samples is None or subject.samples.batch is not None:
        return Farthest(why_all="samples come in batches, of which nobody knows which one reaches farthest")
    inner = min((layer.sqnr_db for layer in verification.layers), default=0.0)
    if verification.failures or worst is None or min(worst, inner) < 0:
        return Farthest(why_all="its noise is louder than the values themselves, whose ranges say little of it")
    return farthest(lowered.model.graph, lowered.ranges)


def _feeds(subject: Subject, wanted: Callable[[int], bool], places: list[int]) -> Iterator[Feeds]:
    """The feeds of all parts whose place in the data is wanted; `places` learns where each stands."""
    dealt = subject.parts
    parts = () if dealt is None else (dealt.calibrate, dealt.choose, dealt.judge)
    for part in (one for one in parts if one is not None):
        for index, feed in enumerate(part):
            place = part.place(index)
            if wanted(place):
                places.append(place)
                yield feed
