"""The ladder: what is done for accuracy, cheapest first, and what must have been observed for it to be tried.

`LADDER` is the list, read from top to bottom. Behind each rung everything is quantized at once on the samples that
choose (`planning/climb.py`); what meets the goal ends the climb, and nothing below it is tried but smoothing, fitted
weights and shifts, which cost nothing where the model runs. A rung is tried only where what was observed says that it
can help; what gains nothing is not kept, and the model stays as it was.

The first five are stages or parts of them (`stages/equalize.py`, `stages/smooth_quant.py`, `stages/weight_only.py`);
the others are the planner's own (`planning/planner.py`), which goes by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from qcompiler.calibrators.auto import AUTO
from qcompiler.compiler.subject import Subject
from qcompiler.numerics.rounding import format_of
from qcompiler.outliers import predicted
from qcompiler.outliers.predicted import Read
from qcompiler.outliers.smooth_quant.alpha import WORTH_DB, Choice
from qcompiler.outliers.smooth_quant.groups import channel_axes, channel_axis
from qcompiler.outliers.smooth_quant.trials import SmoothQuantOptions
from qcompiler.passes.channels import equalize_channels
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.climb import Standing, main_format, settled, spiking
from qcompiler.planning.placement import candidates, one_sided
from qcompiler.planning.search import qfem
from qcompiler.recipe.budget import MOST_SAMPLES, budget_of
from qcompiler.runtime.work import count_macs
from qcompiler.target import DType, Target, lacking_fp8
from qcompiler.weight_only import fitted

NOTICEABLE_DB = 1.0  # what the errors of all layers must fall by together, where less would not reach the goal


@dataclass(frozen=True, slots=True)
class Help:
    """Whether a rung can help, in words for the report."""

    can: bool
    why: str


@dataclass(frozen=True, eq=False)
class Seen:
    """What rungs are judged by before they are tried.

    All of it was there before and nothing is run for it, but for the rows that layers are tried on one by one.

    Attributes:
        subject: observed.
        planning: what is asked for.
        target: what the engine has.
        smoothing: what is asked of smoothing; None where activations stay float.
        local: by activation, what the errors of its layers on recorded rows choose; empty where nobody has looked.
    """

    subject: Subject
    planning: Planning
    target: Target
    smoothing: SmoothQuantOptions | None = None
    local: Mapping[str, Choice] = field(default_factory=dict)

    @property
    def missing_db(self) -> float:
        """What is missing to the goal; infinite where nobody has looked."""
        standing = self.subject.standing
        return float("inf") if standing is None else standing.missing_db

    @cached_property
    def read(self) -> dict[str, Read]:
        """What is known of the activations of all layers but those whose tokens spike: these would hide the others."""
        subject, planning = self.subject, self.planning
        groups = subject.layers.by_activation
        apart = spiking(groups, subject.seen, planning.qfem)
        calm = {name: members for name, members in groups.items() if name not in apart}
        dtype = main_format(planning)
        per_channel = planning.per_channel if dtype is DType.INT8 else self.target.fp8_per_channel
        return predicted.read(
            subject.model.graph,
            calm,
            subject.seen.histograms,
            subject.seen.outliers,
            per_channel=per_channel,
            format=format_of(dtype),
        )

    def gain_db(self, after: Mapping[str, float]) -> float:
        """By how much the errors of all layers fall together, those of some activations being these."""
        before = {name: one.noise() for name, one in self.read.items()}
        return predicted.gain_db(before.values(), [after.get(name, noise) for name, noise in before.items()])

    @property
    def staying(self) -> dict[str, Read]:
        """Those of `read` that stay quantized for sure.

        Where the goal is missed, what errs most for its work goes back to high precision in the end, as far as the
        safety net allows. What a rung does for these layers is lost then, and they would hide what it does for others.
        """
        known, planning = self.read, self.planning
        if self.missing_db == 0 or planning.everything:
            return dict(known)
        macs = count_macs(self.subject.model.graph, self.subject.seen.kept[0])
        groups = self.subject.layers.by_activation
        work = {name: sum(macs.get(one.node, 0) for one in groups[name]) for name in known}
        left = (1 - planning.safety.min_share) * sum(work.values())
        back = set[str]()
        for name in sorted(known, key=lambda name: (-known[name].noise() / max(work[name], 1), name)):
            if work[name] > left:
                break
            left -= work[name]
            back.add(name)
        return {name: one for name, one in known.items() if name not in back}

    @property
    def work(self) -> float:
        """Multiply-accumulates that the budget of a search pays for."""
        macs = sum(count_macs(self.subject.model.graph, self.subject.seen.kept[0]).values())
        planning = self.planning
        return float(macs) * budget_of(planning.effort, planning.search_time, macs, self.subject.seen.feeds)

    @property
    def shown(self) -> float:
        """Multiply-accumulates of the runs that showed what layers read, `MOST_SAMPLES` of them at most."""
        macs = sum(count_macs(self.subject.model.graph, self.subject.seen.kept[0]).values())
        return float(macs) * min(self.subject.seen.feeds, MOST_SAMPLES)

    def enough(self, gain_db: float) -> bool:
        """Whether a predicted gain is worth a trial: it would reach the goal, or be noticed."""
        least = NOTICEABLE_DB if self.missing_db == 0 else min(NOTICEABLE_DB, self.missing_db)
        return gain_db >= max(WORTH_DB, least)


@dataclass(frozen=True)
class Rung:
    """One thing that is done for accuracy.

    Attributes:
        name: in records.
        does: what it does, in words.
        helps: whether it can, by what was observed.
    """

    name: str
    does: str
    helps: Callable[[Seen], Help]


def _always(seen: Seen) -> Help:
    return Help(True, "everything quantized in calibrated ranges, biases of convolutions corrected: the beginning")


def _other_ranges(seen: Seen) -> Help:
    if seen.planning.calibrator != AUTO:
        return Help(False, f"calibrator '{seen.planning.calibrator}' was asked for, and it gives one range")
    return Help(True, "several calibrators give ranges, and which is best only the outputs say")


def _equalize(seen: Seen) -> Help:
    if seen.subject.scope.ranges:
        return Help(False, "ranges that are given would not fit channels that are rescaled")
    factors = equalize_channels.factors(seen.subject.model.graph)
    known = {name: scale for name, scale in factors.items() if name in seen.read and _conv(seen, name)}
    if not factors:
        return Help(False, "no tensor lies between two convolutions, or the channels of all have weights alike")
    after = {name: seen.read[name].divided(scale.astype(np.float64)) for name, scale in known.items()}
    gain = seen.gain_db(after)
    most = max((float(scale.max() / scale.min()) for scale in factors.values()), default=1.0)
    told = (
        f"channels between convolutions would be rescaled by factors up to {most:.3g} times apart, which would change "
        f"the errors of all layers together by {-gain:+.1f} dB"
    )
    return Help(seen.enough(gain), told)


def _conv(seen: Seen, name: str) -> bool:
    """Whether the channels of an activation are those that convolutions read."""
    return channel_axis(seen.subject.layers.by_activation[name]) == 1


def _smooth_quant(seen: Seen) -> Help:
    options = seen.smoothing
    if options is None or options.table.alpha == "off":
        return Help(False, "smoothing is off")
    groups = candidates.smoothable(seen.subject.layers.by_activation)
    apart = spiking(seen.subject.layers.by_activation, seen.subject.seen, seen.planning.qfem)
    wide = [name for name in channel_axes(groups, options.table) if name in seen.subject.seen.outliers]
    if not wide:
        return Help(False, "no layer may be smoothed: no product reads channels that were observed")
    tried = {name: choice for name, choice in seen.local.items() if name not in apart}
    if not tried:
        return Help(
            False, "nothing in front of a layer can take the division, or all that could have tokens that spike"
        )
    others = [one.noise() for name, one in seen.read.items() if name not in tried]
    plain, divided = [one.plain for one in tried.values()], [one.error for one in tried.values()]
    gain, of_all = predicted.gain_db(plain, divided), predicted.gain_db([*others, *plain], [*others, *divided])
    told = (
        f"on recorded rows, dividing channels out lowers the errors of the {len(tried)} activations where that is "
        f"possible by {gain:.1f} dB together, and those of all layers by {of_all:.1f} dB"
    )
    return Help(seen.enough(gain) and of_all >= WORTH_DB, told)


def _fit_weights(seen: Seen) -> Help:
    able, why = fittable(seen)
    if not able:
        return Help(False, why)
    staying = seen.staying
    before = [one.noise() for one in staying.values()]
    after = [one.noise() - (one.rounding() if name in able else 0.0) for name, one in staying.items()]
    gain = predicted.gain_db(before, after)
    which = "all layers" if len(staying) == len(seen.read) else f"the {len(staying)} activations that err least"
    told = f"were weights not rounded at all, the errors of {which} together would fall by {gain:.1f} dB"
    return Help(not why and seen.enough(gain), why or told)


def fittable(seen: Seen) -> tuple[frozenset[str], str]:
    """The activations whose weights can be fitted, and why that takes too long; "" where it does not."""
    if main_format(seen.planning) is not DType.INT8 or not seen.planning.per_channel:
        return frozenset(), "only INT8 weights with a scale for each output channel are fitted"
    graph, layers = seen.subject.model.graph, seen.subject.layers.found
    weights = fitted.fittable(graph, layers)
    able = frozenset(one.activation for one in layers if one.node in weights)
    if not able:
        return able, "no product has a weight that could be fitted"
    work, allowed, met = fitted.work_of(graph, layers), seen.work, seen.missing_db == 0
    if met and work > seen.shown:
        return (
            able,
            f"the goal is met, and it takes {work / seen.shown:.1f} times the work of the runs that showed the data",
        )
    if work > allowed:
        return able, f"it takes {work / allowed:.1f} times the work that a search may cost: --effort or --search-time"
    return able, ""


def _shift(seen: Seen) -> Help:
    if main_format(seen.planning) is not DType.INT8:
        return Help(False, "FP8 errs by the size of each value: a shift would lose what it has near zero")
    if seen.target.unsigned_activations:
        return Help(False, "the target has grids with a zero point")
    subject = seen.subject
    layers = one_sided.one_sided(subject.model.graph, subject.layers, subject.seen.histograms)
    able = {one.activation for one in layers.found if one.shifted}
    if not able:
        return Help(False, "no activation lies to one side of zero in front of products with a constant bias")
    before = {name: seen.read[name] for name in able if name in seen.read}
    most = max(one_sided.gain_db(subject.seen.histograms[name]) for name in able)
    after = {
        name: one.rounding()
        + (one.noise() - one.rounding()) / 10 ** (one_sided.gain_db(subject.seen.histograms[name]) / 10)
        for name, one in before.items()
    }
    gain = seen.gain_db(after)
    told = (
        f"activations lie to one side of zero, and use up to {most:.1f} dB less of a symmetric grid than there is; the "
        f"errors of all layers together would fall by {gain:.1f} dB"
    )
    return Help(seen.enough(gain), told)


def _qfem(seen: Seen) -> Help:
    groups, wanted = seen.subject.layers.by_activation, seen.planning.qfem
    if wanted.alpha == "off":
        return Help(False, "QFeM is off")
    ratios = {name: seen.subject.seen.outliers[name].ratio for name in groups if name in seen.subject.seen.outliers}
    most = max(ratios.values(), default=1.0)
    least = qfem.LEAST if isinstance(wanted.alpha, str) else wanted.alpha
    told = f"the largest token reaches {most:.3g} times the median one at most"
    return Help(True, told) if most > least else Help(False, f"no spikes: {told}")


def _fp8(seen: Seen) -> Help:
    if DType.FP8 not in seen.planning.formats:
        return Help(False, f"FP8 was not asked for: precision {', '.join(seen.planning.formats)}")
    if lacking_fp8(seen.target):
        return Help(False, "the target has no FP8")
    return Help(True, "the target has FP8, whose steps follow the size of each value")


def _high_precision(seen: Seen) -> Help:
    if seen.planning.everything:
        return Help(False, "everything was asked for in the quantized format")
    return Help(True, "what errs most for its cost can go back to high precision")


RANGES: Final = Rung("ranges", "everything quantized, ranges of one calibrator, biases corrected", _always)
OTHER_RANGES: Final = Rung("other_ranges", "the ranges of other calibrators", _other_ranges)
EQUALIZE: Final = Rung("equalize", "channels of neighbouring convolutions get weights alike", _equalize)
SMOOTH_QUANT: Final = Rung("smooth_quant", "outlier channels are folded into weights", _smooth_quant)
FIT_WEIGHTS: Final = Rung("fit_weights", "INT8 weights are rounded by what their layers read (GPTQ)", _fit_weights)
SHIFT: Final = Rung("shift", "activations on one side of zero are moved onto the middle of the grid", _shift)
QFEM: Final = Rung("qfem", "layers whose tokens spike stay in high precision", _qfem)
FP8: Final = Rung("fp8", "layers in FP8 instead of INT8", _fp8)
HIGH: Final = Rung("high_precision", "single layers go back to high precision", _high_precision)

LADDER: Final = (RANGES, OTHER_RANGES, EQUALIZE, SMOOTH_QUANT, FIT_WEIGHTS, SHIFT, QFEM, FP8, HIGH)


@dataclass(frozen=True)
class Told:
    """What the manifest says of a rung.

    Attributes:
        name: of the rung.
        tried: whether it was.
        why: what says that it can help, or why it was not tried.
        sqnr_db: of the worst view behind it, on the samples that choose; None where it was not tried.
        gain_db: against what stood before; None likewise.
        share: of the multiply-accumulates that are quantized behind it, 0..1.
        seconds: of work; None where it was not tried.
        runs: how often the model was run for it.
        kept: whether the model goes on with it.
    """

    name: str
    tried: bool
    why: str
    sqnr_db: float | None = None
    gain_db: float | None = None
    share: float | None = None
    seconds: float | None = None
    runs: int | None = None
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        digits = {"sqnr_db": 2, "gain_db": 2, "share": 4, "seconds": 3}
        figures = {key: getattr(self, key) for key in digits}
        return asdict(self) | {key: one if one is None else round(one, digits[key]) for key, one in figures.items()}


def record(*told: Told, before: Standing | None = None) -> dict[str, Any]:
    """The part of the manifest that a stage adds to the ladder.

    Args:
        told: of each rung.
        before: where the model stood: where it met the goal and missed where it was judged, that is why they are tried.
    """
    again = "" if before is None or not before.missed else f"climbed on, as {before.missed}: "
    return {"rungs": {one.name: replace(one, why=f"{again}{one.why}").to_json() for one in told}}


def left_out(rung: Rung) -> Told:
    """A rung that a plan which is made again did without."""
    return Told(rung.name, tried=False, why="the plan that is made again was made without it")


def unneeded(rung: Rung, standing: Standing) -> Told:
    """A rung that the climb ended before."""
    goal = f"the goal of {standing.goal_db:g} dB is met" if standing.accepted is None else "the metric holds"
    return Told(rung.name, tried=False, why=f"{goal} before it, at {standing.sqnr_db:.1f} dB")


def forgone(rung: Rung, standing: Standing, options: Planning, *, enough: bool) -> Told | None:
    """A rung that is not even looked at; None for one that may be tried.

    Args:
        rung: that rung.
        standing: where the model stands in front of it.
        options: a plan that is made again goes by what it was made behind.
        enough: nothing more has to be done.
    """
    again = settled(rung.name, options)
    if again is False:
        return left_out(rung)
    return unneeded(rung, standing) if enough and not again else None


def passed(rung: Rung, help: Help) -> Told:
    """A rung that cannot help."""
    return Told(rung.name, tried=False, why=help.why)


def climbed(
    rung: Rung, why: str, before: Standing | None, after: Standing, seconds: float, runs: int, *, kept: bool = True
) -> Told:
    """A rung that was tried, and where the model stands behind it."""
    gain = None if before is None else after.sqnr_db - before.sqnr_db
    return Told(rung.name, True, why, after.sqnr_db, gain, after.share, seconds, runs, kept)


def decided(seen: Seen, chosen: Chosen, seconds: float) -> tuple[Told, ...]:
    """The rungs that planning has climbed by itself.

    Args:
        seen: what it knew.
        chosen: what it chose.
        seconds: of all of it.
    """
    standing, curve = seen.subject.standing, chosen.net.curve
    if standing is None:
        return ()
    spared, told = chosen.spared, list[Told]()
    walked = [point for point in spared.curve if point.sqnr_db is not None]
    why = QFEM.helps(seen)
    if standing.met and isinstance(seen.planning.qfem.alpha, str):
        told.append(unneeded(QFEM, standing))
    elif len(walked) > 1 or spared.tensors:
        reached = next((one.sqnr_db for one in walked if one.layers == len(spared.tensors)), None)
        gain = None if reached is None or walked[0].sqnr_db is None else reached - walked[0].sqnr_db
        told.append(Told(QFEM.name, True, f"{why.why}; {spared.why}", reached, gain, kept=bool(spared.tensors)))
    else:
        told.append(Told(QFEM.name, False, why.why if not why.can else spared.why))
    high, formats = len(chosen.net.restored), set(chosen.net.formats.values())
    fp8 = FP8.helps(seen)
    told.append(Told(FP8.name, fp8.can and bool(curve), fp8.why, kept=DType.FP8 in formats))
    back = HIGH.helps(seen)
    if len(curve) > 1:
        told.append(
            Told(
                HIGH.name,
                True,
                back.why,
                curve[-1].sqnr_db,
                curve[-1].sqnr_db - curve[0].sqnr_db,
                curve[-1].share,
                seconds,
                chosen.net.runs,
                kept=high > 0,
            )
        )
    elif standing.met or (curve and chosen.net.met):
        told.append(unneeded(HIGH, replace(standing, sqnr_db=curve[-1].sqnr_db) if curve else standing))
    else:
        told.append(Told(HIGH.name, False, back.why if not back.can else "nothing that is left can be given back"))
    return tuple(told)


def ordered(options: SmoothQuantOptions) -> bool:
    """Whether the user said which alphas smoothing takes: then it is done, whatever anything reaches."""
    return options.table.alpha not in (AUTO, "off") or bool(options.table.layers)
