"""The stages that say what the data lacks, and whether what results are judged by was prepared in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.serving import shown
from qcompiler.compiler.subject import Subject
from qcompiler.data import lacks
from qcompiler.data.alike import differences
from qcompiler.data.source import open_source
from qcompiler.data.spread import Spread, Spreads
from qcompiler.ir import decoder_io
from qcompiler.planning.search import deciders
from qcompiler.statistics.evidence import ALWAYS_ZERO, FEW
from qcompiler.verification.compare import Verification
from qcompiler.verification.metrics.halves import CHUNKS

CALIBRATION = "calibration data"
JUDGING = "data that the result is judged on"
METRIC = "data of the metric"
DOUBTLESS = (ALWAYS_ZERO, FEW)  # lacks that say nothing against the data: their layers stay as exact as they were


@dataclass(frozen=True)
class CheckDataOptions:
    """What the data is for.

    Attributes:
        samples: so many feeds of other data are what float and quantized are compared on; 0 for no comparison.
        profile: the data alone says which shapes an engine takes.
    """

    samples: int
    profile: bool


@stage()
def check_data(run: Compilation, subject: Subject, options: CheckDataOptions) -> Done[tuple[str, ...]]:
    """Warnings about the data, and those of them that are a doubt; the manifest gets the values of each input.

    Args:
        subject: observed; its judge may have other data.
        options: what the data is for.

    Raises:
        DataError: the other data does not fit the model.
    """
    source, seen = subject.samples, subject.seen
    if source is None or source.random:
        return Done((), {"inputs": None})
    found = {"calibration": seen.spreads.found()}
    held = _judging(subject, options.samples)
    if held:
        found["judging"] = held
    doubts = tuple(_unlike(subject, found))
    for text in (*_lacking(subject, options), *doubts):
        run.warn(text)
    lacking = sum(one.rule not in DOUBTLESS for one in subject.scope.unseen)
    if lacking:
        doubts = (*doubts, f"the data has not shown what {lacking} layer(s) need a range for")
    told = {what: {name: one.to_json() for name, one in spreads.items()} for what, spreads in found.items()}
    return Done(doubts, {"inputs": told})


@stage(kept=False)
def check_metric_data(run: Compilation, subject: Subject, verification: Verification | None) -> Done[None]:
    """Warnings where they were not prepared alike, or where all of the metric has chosen, so that none of it judges.

    Args:
        subject: observed.
        verification: with the score, whose feeds were watched; None where nothing was compared.
    """
    score = None if verification is None else verification.score
    if score is not None and score.halves is not None and not score.halves["split"]:
        run.warn(
            f"metric '{score.name}' is in sample: all of it has chosen the plan, as {score.halves['why']}. "
            f"Let it feed its data in {CHUNKS} calls or more, the same in each run, so that one half can judge"
        )
    if score is None or not score.fed or subject.samples is None or subject.samples.random:
        return Done(None)
    for text in lacks.ids(score.fed, decoder_io.looked_up(subject.reference.graph), METRIC):
        run.warn(text)
    for text in differences(subject.seen.spreads.found(), score.fed, CALIBRATION, METRIC):
        run.warn(text)
    return Done(None, {"inputs": {"metric": {name: one.to_json() for name, one in score.fed.items()}}})


def _judging(subject: Subject, samples: int) -> dict[str, Spread]:
    """The values of the data that nothing is fitted to, as `verify` reads it; empty where there is none."""
    data, front = subject.judge.data, subject.prefix and subject.prefix.front
    if data is None or not samples:
        return {}
    source = open_source(data, subject.inputs, samples=samples, stored=subject.reference.ends)
    spreads = Spreads()
    for feed in islice(front.through(source) if front else source, samples):
        spreads.watch(feed)
    return {} if source.random else spreads.found()


def _lacking(subject: Subject, options: CheckDataOptions) -> Iterator[str]:
    """What there is too little of."""
    seen, decoder = subject.seen, decoder_io.of_model(subject.reference)
    yield from lacks.samples(seen.spreads.different)
    yield from deciders.told(subject.model.graph, seen.sights)
    if options.profile and (decoder is None or not decoder.pairs or decoder.unknown):
        yield from lacks.sizes(shown(subject.model, seen, subject.inputs), subject.inputs)


def _unlike(subject: Subject, found: Mapping[str, Mapping[str, Spread]]) -> Iterator[str]:
    """What cannot be real, or is prepared in two ways."""
    rows = decoder_io.looked_up(subject.reference.graph)
    yield from lacks.ids(found["calibration"], rows, CALIBRATION)
    if "judging" in found:
        yield from lacks.ids(found["judging"], rows, JUDGING)
        yield from differences(found["calibration"], found["judging"], CALIBRATION, JUDGING)
