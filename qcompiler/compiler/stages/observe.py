"""The stage that runs all data once for every statistic that a later stage asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.data.samples import ShapeRange
from qcompiler.data.source import Source
from qcompiler.planning import given
from qcompiler.planning.placement import candidates
from qcompiler.planning.recorded import Recorded
from qcompiler.planning.search import evidence
from qcompiler.planning.search.watch import Watch
from qcompiler.runtime.gpu.device import CPU_PROVIDER, Device
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics import on_device, outliers, residual
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.observe import observe as measure
from qcompiler.statistics.timed import KEPT as KEPT_FEEDS  # for the safety net, the ranges and the comparison
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import Foreseen
from qcompiler.target import DType

RESIDUAL_FEEDS = 4
_NAMED = 4


@dataclass(frozen=True)
class ObserveOptions:
    """How the data is run.

    Attributes:
        samples: how many feeds are expected, for the progress; None where nobody knows.
        ranges: ranges of activations are chosen from it.
        replayed: the front of an earlier compilation, which must have been made with the same data; None where there is
            none.
        device: where the model is run for it; None for the CPU.
    """

    samples: int | None
    ranges: bool = True
    replayed: Recorded | None = None
    device: Device | None = None


@stage()
def observe(run: Compilation, subject: Subject, watch: Watch, options: ObserveOptions) -> Done[Subject]:
    """The subject with histograms, outliers and kept samples of all that anybody will ask about.

    Args:
        subject: normal, behind its prefix.
        watch: which tensors later stages will ask about.
        options: how the data is run.

    Raises:
        DataError: a feed does not fit the model, or is not finite; or a front that is replayed is of other data.
        ModelError: an output is NaN and not meant to be; the message names the node where that arises.
    """
    if subject.samples is None or subject.parts is None:
        return Done(_given_alone(run, subject, options), {"data": None, "outliers": [], "residuals": []})
    points, parts = watch.points(subject.model, subject.layers.found), subject.parts
    with run.working(options.samples) as advance:
        seen = run.item(  # what is asked of the data may be the same for another target
            "look",
            (subject.model, points, parts, subject.axes, KEPT_FEEDS, options.device),
            lambda: measure(
                subject.model,
                points,
                parts.calibrate,
                axes=subject.axes,
                choose=parts.choose,
                judge=parts.judge,
                keep=KEPT_FEEDS,
                each=run.each,
                threads=run.threads,
                advance=advance,
                device=options.device,
            ),
        )
    return_freed_memory()
    if options.replayed is not None:
        options.replayed.refuse_other_data(str(seen.fingerprint))
    if subject.parts.apart or subject.samples.batch:  # dealing leaves every part a batch that is not full
        seen = dataclasses.replace(seen, shapes=_shapes(subject.samples))
    readers = {name: [one.node for one in members] for name, members in subject.layers.by_activation.items()}
    standing_out = outliers.records(seen.outliers, seen.histograms, readers)
    streams = residual.measure(subject.model.graph, seen.kept[:RESIDUAL_FEEDS]) if seen.kept else []
    record = {
        "data": {
            "name": subject.samples.name,
            "feeds": seen.feeds,
            "fingerprint": str(seen.fingerprint),
            "parts": subject.parts.to_json(),
            **_measured_on(options.device),
            **subject.samples.details,
        },
        "outliers": standing_out,
        "residuals": [dataclasses.asdict(one) for one in streams],
    }
    after = _weighed(run, subject, seen, options)
    return Done(after.with_(measured=subject.model, standing_out=standing_out), record)


def _measured_on(device: Device | None) -> dict[str, str]:
    """What ran the model, and what counted its tensors."""
    if device is None:
        return {"provider": CPU_PROVIDER}
    return {"provider": device.provider, "gpu": device.gpu, "counted_with": on_device.counts_with(device)}


def foreseen(known: Timed, watch: Watch) -> Foreseen:
    """All feeds once: those that calibrate are counted, the others are run where ranges of all samples are asked for.

    A few are run again for streams of residuals and for what is seen of equal positions.
    """
    others = known.choose + known.judge if watch.target.high_precision is not DType.FP32 else 0
    again = min(RESIDUAL_FEEDS, known.kept) + min(evidence.LOOKED_AT, known.kept)
    return Foreseen(runs=others + again, observed=known.calibrate, sessions=3, copies=1)


def _given_alone(run: Compilation, subject: Subject, options: ObserveOptions) -> Subject:
    """The subject without the layers that no range was given for, where there is no data to measure one."""
    if not options.ranges or not subject.scope.ranges:
        return subject
    scope = subject.scope
    refused = given.lacking(subject.model.graph, subject.layers, scope.ranges, scope.target)
    if refused:
        listed = ", ".join(f"'{one.node}'" for one in refused[:_NAMED])
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        layers, stay = (
            ("1 layer needs", "it stays") if len(refused) == 1 else (f"{len(refused)} layers need", "they stay")
        )
        run.warn(
            f"nothing gives a range that {layers} ({listed}{more}), so {stay} in high precision; --data with "
            "samples beside --ranges measures what is missing"
        )
    scope = dataclasses.replace(scope, unseen=refused)
    return subject.with_(scope=scope, layers=subject.layers.refusing(refused))


def _shapes(source: Source) -> ShapeRange:
    """The shapes of the data as it was given."""
    shapes = ShapeRange()
    for feed in source:
        shapes.watch(feed)
    return shapes


def _weighed(run: Compilation, subject: Subject, seen: Observations, options: ObserveOptions) -> Subject:
    """The subject without the layers that the data has shown too little of, where a range would be made of that."""
    if not options.ranges:
        return subject.with_(seen=seen)
    small = candidates.small(subject.model.graph, subject.layers.found, {}, subject.scope.target)
    large = subject.layers.refusing(small)  # no data would make a layer larger than its weight
    found = evidence.look(subject.model, large.found, seen)
    for text in found.warnings:
        run.warn(text)
    scope = dataclasses.replace(subject.scope, unseen=found.refused)
    seen = dataclasses.replace(seen, lacks=found.lacks)
    return subject.with_(seen=seen, scope=scope, layers=subject.layers.refusing(found.refused))
