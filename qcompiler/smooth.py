"""The stage that folds outlier channels into weights: what is tried, what is compared, and what is kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import attempts, came, decide, record, smoothing
from qcompiler import model as models
from qcompiler.attempts import Attempt
from qcompiler.equivalence import applied
from qcompiler.macs import concrete_shapes
from qcompiler.numerics import format_of
from qcompiler.observe import Observations
from qcompiler.outliers import Outliers, fold_of
from qcompiler.pass_ import Report
from qcompiler.passes.smooth_quant import SmoothQuant
from qcompiler.recipe import Qfem, Smoothing
from qcompiler.scope import Scope
from qcompiler.session import return_freed_memory
from qcompiler.shorten import shorten
from qcompiler.signature import Feeds
from qcompiler.smoothing import Group
from qcompiler.statistics import Histogram
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.stages import Run

JUDGED_FEEDS = 4  # samples that the outputs are looked at on
TRIAL_WORK = 8_000_000_000  # multiply-accumulates of one of them
LOOK_WORK = 600_000_000_000  # of all looks at the outputs of the model, while alphas are chosen
MOST_LOOKS = 200
SPIKE = 100.0  # largest token over the median one, from which a layer is left out of comparisons

Watched = Callable[[models.Model, Sequence[decide.Candidate]], Sequence[str]]


@dataclass(frozen=True)
class SmoothQuantOptions:
    """What smoothing is asked for.

    Attributes:
        table: the recipe's.
        qfem: the recipe's: what it will keep in high precision is left out of comparisons.
        dtype: what layers will compute in, INT8 or FP8.
        calibrator: how their ranges will be chosen; `auto` tries several.
        per_channel: weight scales per output channel, else per tensor.
    """

    table: Smoothing
    qfem: Qfem
    dtype: DType
    calibrator: str
    per_channel: bool


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A model after smoothing.

    Attributes:
        model: with outlier channels folded into weights; as given where nothing was smoothed.
        observed: with the statistics of what has changed.
        groups: what was decided for each group of layers; empty where smoothing is off.
        tried: SQNR in dB of each way that was compared.
        reports: of the passes that ran.
        errors: largest relative error of each behind the equivalence check, by its text form.
    """

    model: models.Model
    observed: Observations
    groups: tuple[Group, ...] = ()
    tried: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


def smooth(run: Run, normal: models.Model, found: Sequence[decide.Candidate], observed: Observations) -> Smoothed:
    """The stage: what `fold_outliers` makes of the model; as given where smoothing is off or there is nothing to do."""
    recipe, formats = run.recipe, run.recipe.formats()
    if not formats or not smoothable(found, observed, recipe.smooth_quant):
        return Smoothed(normal, observed)
    dtype = DType.INT8 if DType.INT8 in formats else DType.FP8
    fine = recipe.weight_granularity == "channel" if dtype is DType.INT8 else run.target.fp8_per_channel
    options = SmoothQuantOptions(recipe.smooth_quant, recipe.qfem, dtype, recipe.calibrator, fine)
    with run.stage("smooth"):
        done = fold_outliers(normal, found, observed, options, run.scope, run.watch.tensors)
    run.told(done.reports, done.errors)
    models.forget_pages(normal)
    return_freed_memory()
    return done


def smoothable(found: Sequence[decide.Candidate], observed: Observations, table: Smoothing) -> bool:
    """Whether there is anything to decide: smoothing is on, samples were kept, and layers may be smoothed."""
    if not observed.kept or (table.alpha == "off" and not table.layers):
        return False
    return bool(smoothing.smoothed(came.smoothable(decide.by_activation(found)), table))


def fold_outliers(
    normal: models.Model,
    found: Sequence[decide.Candidate],
    observed: Observations,
    options: SmoothQuantOptions,
    scope: Scope,
    watched: Watched,
) -> Smoothed:
    """Decides alphas and folds them, behind the equivalence check, like every float pass.

    Args:
        normal: the float model, normalised.
        found: its layers that may be quantized.
        observed: its statistics; samples were kept.
        options: what is asked for.
        scope: finds the layers again in an edited model.
        watched: names of the tensors of an edited model whose ranges somebody will ask for.

    Raises:
        EquivalenceError: the smoothed model does not compute what the model computes.
    """
    trials = Trials(normal, found, observed, options, scope)
    groups = came.smoothable(decide.by_activation(found))
    fresh = sum(map(len, groups.values())) == len(found)  # else what came quantized cannot be tried out here
    tried: dict[str, float] = {}
    if options.table.alpha == "auto" and fresh:
        best, made = attempts.best(trials.attempt)
        tried = {one.label: one.sqnr_db for one in made}
        decided = best.groups
    else:
        decided = trials.plan(options.table.alpha)
    scales = {group.tensor: group.scales for group in decided if group.alpha is not None}
    if not scales:
        return Smoothed(normal, observed, decided, tried)
    fold = SmoothQuant(scales, insert=options.table.insert, split=True)
    model, report, error = applied(fold, normal, observed.kept)
    after, _ = scope.layers(model)
    changed = smoothing.observed_again(normal, model, observed, watched(model, after), decided)
    seen = observed.with_(changed, _renamed(observed.outliers, found, after))
    return Smoothed(model, seen, decided, tried, (report,), {} if error is None else {report.name: error})


@dataclass(frozen=True)
class _Kept:
    """The samples that were kept, as trials use them.

    Attributes:
        whole: all of them.
        short: of a large model, only the beginning of each.
        folds: the part of the data that each belongs to.
        held: the fold whose samples trials are compared on; None where all are of one fold.
        work: multiply-accumulates of a short one.
    """

    whole: Sequence[Feeds]
    short: Sequence[Feeds]
    folds: Sequence[int]
    held: int | None
    work: int

    @staticmethod
    def of(model: models.Model, kept: Sequence[Feeds]) -> _Kept:
        sizes = concrete_shapes(model.graph, kept[0], decide.tensors_for_shapes(model.graph))
        work = sum(decide.node_macs(model.graph, sizes).values())
        share = min(1.0, TRIAL_WORK / max(work, 1))
        short = shorten(model.graph, kept, share) if share < 1 else list(kept)
        folds = [fold_of(feed) for feed in kept]
        common = Counter(folds).most_common()
        return _Kept(kept, short, folds, common[0][0] if len(common) > 1 else None, int(work * share))

    def compared(self) -> list[Feeds]:
        """The samples that trials are compared on."""
        held = [feed for feed, fold in zip(self.short, self.folds, strict=True) if self.held in (None, fold)]
        return held[:JUDGED_FEEDS]

    def known(self) -> list[Feeds]:
        """The samples that trials take their ranges from."""
        fits = [self.held is None or fold != self.held for fold in self.folds]
        return [feed for feed, fit in zip(self.whole, fits, strict=True) if fit]

    def looks(self) -> int:
        """How many times a choice may look at the outputs."""
        return min(MOST_LOOKS, LOOK_WORK // max(self.work * min(JUDGED_FEEDS, len(self.short)), 1))


class Trials:
    """Ways of smoothing one model."""

    def __init__(
        self,
        normal: models.Model,
        found: Sequence[decide.Candidate],
        observed: Observations,
        options: SmoothQuantOptions,
        scope: Scope,
    ) -> None:
        """As `fold_outliers`."""
        self._normal, self._found, self._observed = normal, found, observed
        self._options, self._scope = options, scope
        self._groups = came.smoothable(decide.by_activation(found))
        self._rows = record.rows(normal, smoothing.smoothed(self._groups, options.table), observed.kept)
        self._kept = _Kept.of(normal, observed.kept)
        self._spikes = _spikes(found, observed, options.qfem)

    def plan(self, alpha: str | float) -> tuple[Group, ...]:
        """What is decided with `auto`, `off` or an alpha."""
        options = self._options
        return tuple(
            smoothing.plan(
                self._normal,
                self._groups,
                self._rows,
                self._observed.outliers,
                dataclasses.replace(options.table, alpha=alpha),
                format=format_of(options.dtype),
                calibrator=options.calibrator,
                per_channel=options.per_channel,
                feeds=self._kept.short[:JUDGED_FEEDS],
                folds=self._kept.folds[:JUDGED_FEEDS],
                looks=self._kept.looks(),
                hold=self._kept.held,
            )
        )

    def attempt(self, alpha: str | float) -> Attempt:
        """A plan, and the SQNR it gives on samples that neither its scales nor its ranges have seen."""
        decided, options = self.plan(alpha), self._options
        scales = {group.tensor: group.trial for group in decided if group.alpha is not None}
        model, found = self._normal, self._found
        if scales:
            model = models.copy(self._normal)
            SmoothQuant(scales, insert=options.table.insert, split=True)(model.graph)
            found, _ = self._scope.layers(model)
        reached = attempts.measure(
            model,
            [one for one in found if one.node not in self._spikes],
            self._histograms(model, found, scales),
            self._kept.compared(),
            dtype=options.dtype,
            calibrator=options.calibrator,
            per_channel=options.per_channel,
        )
        models.forget_pages(self._normal)
        return Attempt(str(alpha), decided, reached)

    def _histograms(
        self, model: models.Model, found: Sequence[decide.Candidate], scales: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, Histogram]:
        """Of what the candidates read, as the samples of the other folds would give it."""
        was = {one.node: one.activation for one in self._found}
        found_in = {one.activation: was.get(one.node, one.activation) for one in found}
        seen = smoothing.histograms(model, list(found_in), self._kept.known())
        for name, before in found_in.items():
            channels = self._observed.outliers[before].without(-1 if self._kept.held is None else self._kept.held)
            if channels.size:
                divided = channels / scales.get(before, np.float32(1))
                seen[name].update(np.asarray([divided.max()], np.float32))
        return seen


def _spikes(found: Sequence[decide.Candidate], observed: Observations, wanted: Qfem) -> set[str]:
    """Layers that QFeM will hardly let be quantized: they would hide what smoothing does for the others."""
    if wanted.alpha == "off":
        return set()
    least = SPIKE if isinstance(wanted.alpha, str) else wanted.alpha
    spiking = {one.node for one in found if observed.outliers[one.activation].ratio > least}
    return spiking if len(spiking) < len(found) else set()


def _renamed(
    outliers: Mapping[str, Outliers], before: Sequence[decide.Candidate], after: Sequence[decide.Candidate]
) -> dict[str, Outliers]:
    """The outliers of activations that their readers read under another name by now, by that name."""
    was = {one.node: one.activation for one in before}
    found: dict[str, Outliers] = {}
    for one in after:
        known = outliers.get(was.get(one.node, ""))
        if known is not None and one.activation not in outliers:
            found.setdefault(one.activation, known)
    return found
