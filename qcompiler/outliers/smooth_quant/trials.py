"""The stage that folds outlier channels into weights: what is tried, what is compared, and what is kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.calibrators.auto import AUTO
from qcompiler.data.shorten import shorten
from qcompiler.ir import macs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Views, find_views, weighed
from qcompiler.numerics.rounding import format_of
from qcompiler.outliers.smooth_quant import measured
from qcompiler.outliers.smooth_quant.alpha import Choice
from qcompiler.outliers.smooth_quant.cost import seconds_of_choice
from qcompiler.outliers.smooth_quant.fitting import remains
from qcompiler.outliers.smooth_quant.groups import (
    SmoothGroup,
    channel_axes,
    channel_axis,
    choose_scales,
    divisible,
    observed_again,
)
from qcompiler.passes.base import Report
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.plan import Candidate
from qcompiler.planning.climb import spiking
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.budget import budget_of
from qcompiler.recipe.tables import QfemTable, SmoothQuantTable
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.statistics import observe
from qcompiler.statistics import rows as recorded
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.outliers import Outliers, fold_of
from qcompiler.statistics.rows import Rows
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen, between
from qcompiler.target import DType
from qcompiler.verification.equivalence import UNDONE, applied

if TYPE_CHECKING:
    from numpy.typing import NDArray


JUDGED_FEEDS = 4  # samples that the outputs are looked at on
TRIAL_WORK = 8_000_000_000  # multiply-accumulates of one of them
LOOKS = 4  # of the budget of the search, one part in so many is for looks at the outputs while alphas are chosen

Watched = Callable[[models.Model, Sequence[Candidate]], Sequence[str]]


@dataclass(frozen=True)
class SmoothQuantOptions:
    """What smoothing is asked for.

    Attributes:
        table: the recipe's.
        qfem: the recipe's: what it will keep in high precision is left out of comparisons.
        dtype: what layers will compute in, INT8 or FP8.
        calibrator: how their ranges will be chosen; `auto` tries several.
        per_channel: weight scales per output channel, else per tensor.
        ignored: outputs that are not judged.
        effort: quick, balanced or thorough.
        search_time: seconds that may be searched, in place of the effort; None for what the effort says.
        likelihood: what the next token is drawn by is compared by the likelihood that it loses (see `Planning`).
    """

    table: SmoothQuantTable
    qfem: QfemTable
    dtype: DType
    calibrator: str
    per_channel: bool
    ignored: tuple[str, ...] = ()
    effort: str = "balanced"
    search_time: float | None = None
    likelihood: bool = False

    def looks(self, macs: float, samples: int, judged: int) -> int:
        """How many times a choice may look at the outputs, on so many samples each."""
        budget = budget_of(self.effort, self.search_time, macs, samples)
        return budget // LOOKS // max(judged, 1)


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
        runs: how often the model was run to compare.
    """

    model: models.Model
    observed: Observations
    groups: tuple[SmoothGroup, ...] = ()
    tried: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    runs: int = 0


def smoothable(found: Sequence[Candidate], observed: Observations, table: SmoothQuantTable) -> bool:
    """Whether there is anything to decide: smoothing is on, samples were kept, and layers may be smoothed."""
    if not observed.kept or (table.alpha == "off" and not table.layers):
        return False
    return bool(channel_axes(candidates.smoothable(candidates.by_activation(found)), table))


def fold_outliers(
    normal: models.Model,
    found: Sequence[Candidate],
    observed: Observations,
    options: SmoothQuantOptions,
    scope: Scope,
    watched: Watched,
) -> Smoothed:
    """Decides the alphas that were ordered and folds them, behind the equivalence check, like every float pass.

    Args:
        normal: the float model, normalised.
        found: its layers that may be quantized.
        observed: its statistics; samples were kept.
        options: what is asked for.
        scope: finds the layers again in an edited model.
        watched: names of the tensors of an edited model whose ranges somebody will ask for.

    Returns:
        The smoothed model; as given where the fold missed the check and was undone, which the report says.
    """
    trials = Trials(normal, found, observed, options, scope)
    if options.table.alpha != AUTO or not trials.fresh:
        return trials.fold(trials.plan(options.table.alpha), watched)
    best, made = best_of(trials.attempt)
    return trials.fold(best.groups, watched, {one.label: one.sqnr_db for one in made})


@dataclass(frozen=True)
class _Kept:
    """The samples that were kept, as trials use them.

    Attributes:
        whole: all of them.
        short: of a large model, only the beginning of each.
        folds: the part of the data that each belongs to.
        held: the fold whose samples trials are compared on; None where other samples are there for it, or all are of
            one fold.
        apart: the samples that trials are compared on, where nothing is fitted to them.
        work: multiply-accumulates of a short one.
    """

    whole: Sequence[Feeds]
    short: Sequence[Feeds]
    folds: Sequence[int]
    held: int | None
    apart: Sequence[Feeds]
    work: int

    @staticmethod
    def of(model: models.Model, observed: Observations) -> _Kept:
        kept, apart = observed.kept, observed.held
        sizes = concrete_shapes(model.graph, kept[0], macs.tensors_for_shapes(model.graph))
        work = sum(macs.node_macs(model.graph, sizes).values())
        share = min(1.0, TRIAL_WORK / max(work, 1))
        short = shorten(model.graph, kept, share) if share < 1 else list(kept)
        apart = tuple(shorten(model.graph, apart, share)) if share < 1 and apart else apart
        folds = [fold_of(feed) for feed in kept]
        common = Counter(folds).most_common()
        held = common[0][0] if len(common) > 1 and not apart else None
        return _Kept(kept, short, folds, held, apart, int(work * share))

    def compared(self) -> list[Feeds]:
        """The samples that trials are compared on."""
        held = [feed for feed, fold in zip(self.short, self.folds, strict=True) if self.held in (None, fold)]
        return list(self.apart or held)[:JUDGED_FEEDS]

    def fitted(self) -> list[Feeds]:
        """As many samples as are compared on, of those that trials may be fitted to."""
        fits = [self.held is None or fold != self.held for fold in self.folds]
        return [feed for feed, fit in zip(self.short, fits, strict=True) if fit][:JUDGED_FEEDS]

    def known(self) -> list[Feeds]:
        """The samples that trials take their ranges from."""
        fits = [self.held is None or fold != self.held for fold in self.folds]
        return [feed for feed, fit in zip(self.whole, fits, strict=True) if fit]


class Trials:
    """Ways of smoothing one model.

    Attributes:
        runs: how often the model was run to compare.
        fresh: whether ways can be compared by the outputs; else some layers came quantized.
        fitting: weights will be fitted behind it.
    """

    def __init__(
        self,
        normal: models.Model,
        found: Sequence[Candidate],
        observed: Observations,
        options: SmoothQuantOptions,
        scope: Scope,
        *,
        fitting: bool = False,
    ) -> None:
        """As `fold_outliers`; the kept samples are run once, and once more where weights will be fitted."""
        self._normal, self._found, self._observed = normal, found, observed
        self._options, self._scope = options, scope
        self._groups = candidates.smoothable(candidates.by_activation(found))
        self._rows = recorded.record_rows(normal, divisible(normal.graph, self._groups, options.table), observed.kept)
        self.fitting = fitting
        self._remains = remains(normal, self._products(), observed.kept) if fitting else {}
        self._local: dict[str, Choice] = {}
        self._plans: dict[str, tuple[SmoothGroup, ...]] = {}
        self.fresh = sum(map(len, self._groups.values())) == len(found)
        self.runs = 0

    def _products(self) -> dict[str, Rows]:
        """What was recorded of activations whose weights can be fitted."""
        return {name: rows for name, rows in self._rows.items() if channel_axis(self._groups[name]) == -1}

    @cached_property
    def _kept(self) -> _Kept:
        return _Kept.of(self._normal, self._observed)

    @cached_property
    def _views(self) -> Views:
        views = find_views(self._normal.graph, self._observed.kept[0], self._options.ignored)
        return weighed(views) if self._options.likelihood else views

    @cached_property
    def _spikes(self) -> set[str]:
        return _spikes(self._found, self._observed, self._options.qfem)

    def choices(self) -> Mapping[str, Choice]:
        """By activation, what the own errors of the layers choose; those that cannot be smoothed are missing."""
        self.plan(LOCAL)
        return dict(self._local)

    def plan(self, alpha: str | float) -> tuple[SmoothGroup, ...]:
        """What is decided with `auto`, `local` (that without a look at the outputs), `off` or an alpha."""
        if str(alpha) not in self._plans:
            self._plans[str(alpha)] = tuple(self._decided(alpha))
        return self._plans[str(alpha)]

    def _decided(self, alpha: str | float) -> list[SmoothGroup]:
        options, auto = self._options, alpha in (AUTO, LOCAL)
        decided = partial(
            choose_scales,
            self._normal,
            self._groups,
            self._rows,
            self._observed.outliers,
            dataclasses.replace(options.table, alpha=AUTO if auto else alpha),
            format=format_of(options.dtype),
            calibrator=options.calibrator,
            per_channel=options.per_channel,
            known=self._local if auto else None,
            remains=self._remains,
        )
        if alpha == LOCAL:
            return decided()
        kept = self._kept
        return decided(
            feeds=kept.short[:JUDGED_FEEDS],
            views=self._views,
            folds=kept.folds[:JUDGED_FEEDS],
            looks=options.looks(kept.work, self._observed.feeds, min(JUDGED_FEEDS, len(kept.short))),
            hold=kept.held,
        )

    def fold(
        self, decided: Sequence[SmoothGroup], watched: Watched, tried: Mapping[str, float] | None = None
    ) -> Smoothed:
        """The model with what was decided; as given where the fold missed the equivalence check and was undone.

        Args:
            decided: for each group.
            watched: names of the tensors of an edited model whose ranges somebody will ask for.
            tried: SQNR in dB of each way that was compared.
        """
        normal, observed, groups, tried = self._normal, self._observed, tuple(decided), tried or {}
        scales = {group.tensor: group.scales for group in groups if group.alpha is not None}
        if not scales:
            return Smoothed(normal, observed, groups, tried, runs=self.runs)
        fold = SmoothQuant(scales, insert=self._options.table.insert, split=True)
        model, report, error = applied(fold, normal, observed.kept)
        if report.undone:
            left = tuple(SmoothGroup(one.tensor, one.readers, None, "", UNDONE) for one in groups)
            return Smoothed(normal, observed, left, tried, (report,), runs=self.runs)
        after, _ = self._scope.layers(model)
        changed = observed_again(normal, model, observed, watched(model, after), groups)
        seen = observed.with_(changed, _renamed(observed.outliers, self._found, after))
        errors = {} if error is None else {report.name: error}
        return Smoothed(model, seen, groups, tried, (report,), errors, self.runs)

    def better(self, *, clear: bool) -> tuple[Attempt | None, dict[str, float]]:
        """What the outputs say is better than what the layers' own errors choose.

        Args:
            clear: what these choose gains so much that no single alpha for all layers is tried beside them.

        Returns:
            The best attempt, None where that is `local` or nothing else is found; SQNR in dB of all that were made.
        """
        ways: list[str | float] = [] if clear else [*FIXED]
        if [one.alpha for one in self.plan(AUTO)] != [one.alpha for one in self.plan(LOCAL)]:
            ways.insert(0, AUTO)
        if not ways or not self.fresh:
            return None, {}
        made = [self.attempt(way) for way in (LOCAL, *ways)]
        best = max(made, key=lambda one: one.sqnr_db)
        return None if best is made[0] else best, {one.label: one.sqnr_db for one in made}

    def attempt(self, alpha: str | float) -> Attempt:
        """A plan, and the SQNR it gives on samples that neither its scales nor its ranges have seen."""
        decided, options = self.plan(alpha), self._options
        scales = {group.tensor: group.trial for group in decided if group.alpha is not None}
        model, found = self._normal, self._found
        if scales:
            model = models.copy(self._normal)
            SmoothQuant(scales, insert=options.table.insert, split=True)(model.graph)
            found, _ = self._scope.layers(model)
        reached, runs = measured.measure(
            model,
            [one for one in found if one.node not in self._spikes],
            self._histograms(model, found, scales),
            self._kept.compared(),
            fitted=self._kept.fitted(),
            ignored=options.ignored,
            likelihood=options.likelihood,
            dtype=options.dtype,
            calibrator=options.calibrator,
            per_channel=options.per_channel,
        )
        self.runs += runs
        models.forget_pages(self._normal)
        return Attempt(str(alpha), decided, reached)

    def _histograms(
        self, model: models.Model, found: Sequence[Candidate], scales: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, Histogram]:
        """Of what the candidates read, as the samples of the other folds would give it."""
        was = {one.node: one.activation for one in self._found}
        found_in = {one.activation: was.get(one.node, one.activation) for one in found}
        seen = observe.histograms(model, list(found_in), self._kept.known())
        for name, before in found_in.items():
            channels = self._observed.outliers[before].without(-1 if self._kept.held is None else self._kept.held)
            if channels.size:
                divided = channels / scales.get(before, np.float32(1))
                seen[name].update(np.asarray([divided.max()], np.float32))
        return seen


def _spikes(found: Sequence[Candidate], observed: Observations, wanted: QfemTable) -> set[str]:
    """Layers that QFeM will hardly let be quantized: they would hide what smoothing does for the others."""
    apart = spiking([one.activation for one in found], observed, wanted)
    return {one.node for one in found if one.activation in apart}


def _renamed(
    outliers: Mapping[str, Outliers], before: Sequence[Candidate], after: Sequence[Candidate]
) -> dict[str, Outliers]:
    """The outliers of activations that their readers read under another name by now, by that name."""
    was = {one.node: one.activation for one in before}
    found: dict[str, Outliers] = {}
    for one in after:
        known = outliers.get(was.get(one.node, ""))
        if known is not None and one.activation not in outliers:
            found.setdefault(one.activation, known)
    return found


LOCAL = "local"
FIXED = (0.3, 0.5, 0.7, 0.85)
CLEAR_DB = 3.0  # what the chosen alphas must gain for no others to be tried


@dataclass(frozen=True, eq=False)
class Attempt:
    """A way of smoothing that was tried.

    Attributes:
        label: `auto`, `local`, `off` or an alpha.
        groups: what was decided for each group of layers.
        sqnr_db: of the outputs with all layers quantized, on samples that scales and ranges have not seen.
    """

    label: str
    groups: tuple[SmoothGroup, ...]
    sqnr_db: float


def best_of(attempt: Callable[[str | float], Attempt]) -> tuple[Attempt, list[Attempt]]:
    """The attempt with the highest SQNR, and all that were made.

    Args:
        attempt: smooths with `auto`, `off` or an alpha, and measures.
    """
    off, auto = attempt("off"), attempt(AUTO)
    tried = [off, auto]
    smoothed = any(group.alpha is not None for group in auto.groups)
    if smoothed and auto.sqnr_db < off.sqnr_db + CLEAR_DB:
        tried += [attempt(alpha) for alpha in FIXED]
    return max(tried, key=lambda one: one.sqnr_db), tried


def foreseen(found: Sequence[Candidate], known: Timed, options: SmoothQuantOptions) -> Foreseen:
    """What trials run: what the layers' own errors choose at least, and every fixed alpha where that gains too little.

    Args:
        found: layers that may be smoothed among others.
        known: one feed, and how many there are.
        options: what is asked for.
    """
    share = min(1.0, TRIAL_WORK / max(known.macs, 1))  # of a sample
    judged = share * min(JUDGED_FEEDS, known.choosing)
    looks = options.looks(known.macs, round(known.calibrate), round(judged))
    fold = Foreseen(runs=6, counted=known.kept, sessions=4, copies=1)
    probe = between(Foreseen(runs=2 * judged, sessions=2), Foreseen(runs=looks * judged, sessions=2))
    if options.table.alpha != "auto":
        return fold + (probe if options.table.alpha != "off" else NOTHING)
    methods = 1 if options.calibrator != "auto" else len(measured.ranges_of(options.dtype))
    means = any(one.op == "Conv" for one in found)  # only these are corrected
    attempt = Foreseen(quantized=judged * (1 + methods + means), counted=known.kept, sessions=2 + means, copies=2)
    return between(fold + attempt, fold + probe + attempt.times(2 + len(FIXED)))


def recording(model: models.Model, found: Sequence[Candidate], known: Timed, options: SmoothQuantOptions) -> Foreseen:
    """What it takes to learn what the layers' own errors say: a run of the kept samples, and arithmetic.

    Args:
        model: the float model, normalised.
        found: layers that may be smoothed among others.
        known: one feed, and how many there are.
        options: what is asked for.
    """
    groups = candidates.smoothable(candidates.by_activation(found))
    chosen = seconds_of_choice(
        model,
        {name: groups[name] for name in channel_axes(groups, options.table)},
        known,
        calibrator=options.calibrator,
        per_channel=options.per_channel,
        format=format_of(options.dtype),
    )
    return Foreseen(runs=known.kept, sessions=1, seconds=chosen)
