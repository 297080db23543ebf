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
from qcompiler.macs import concrete_shapes
from qcompiler.numerics import format_of
from qcompiler.observe import Observations
from qcompiler.outliers import fold_of
from qcompiler.passes.smooth_quant import SmoothQuant
from qcompiler.recipe import Qfem
from qcompiler.session import return_freed_memory
from qcompiler.shorten import shorten
from qcompiler.signature import Feeds
from qcompiler.smoothing import Group
from qcompiler.stages import Run, candidates
from qcompiler.statistics import Histogram
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

JUDGED_FEEDS = 4  # samples that the outputs are looked at on
TRIAL_WORK = 8_000_000_000  # multiply-accumulates of one of them
LOOK_WORK = 600_000_000_000  # of all looks at the outputs of the model, while alphas are chosen
MOST_LOOKS = 200
SPIKE = 100.0  # largest token over the median one, from which a layer is left out of comparisons

Watched = Callable[[models.Model, Sequence[decide.Candidate]], Sequence[str]]


def smooth(
    run: Run,
    normal: models.Model,
    found: Sequence[decide.Candidate],
    observed: Observations,
    watched: Watched,
) -> tuple[models.Model, tuple[Group, ...]]:
    """The model with outlier channels folded into weights, and what was decided for each group of layers.

    `observed` gets the histograms of what has changed. Behind the equivalence check, like every float pass.
    """
    wanted, formats = run.recipe.smooth_quant, run.recipe.formats()
    if not formats or not observed.kept or (wanted.alpha == "off" and not wanted.layers):
        return normal, ()
    groups = came.smoothable(decide.by_activation(found))
    axes = smoothing.smoothed(groups, wanted)
    if not axes:
        return normal, ()
    fresh = sum(map(len, groups.values())) == len(found)  # else what came quantized cannot be tried out here
    with run.stage("smooth"):
        trials = _Trials(run, normal, found, observed, axes)
        if wanted.alpha == "auto" and fresh:
            best, tried = attempts.best(trials.attempt)
            run.smoothings = {one.label: one.sqnr_db for one in tried}
            decided = best.groups
        else:
            decided = trials.plan(wanted.alpha)
        smoothed = _folded(run, normal, observed, decided)
        if smoothed is not normal:
            found_now = candidates(run, smoothed)[0]
            observed.histograms.update(
                smoothing.observed_again(normal, smoothed, observed, watched(smoothed, found_now), decided)
            )
            _rename(observed, found, found_now)
    models.forget_pages(normal)
    return_freed_memory()
    return smoothed, decided


def _folded(run: Run, normal: models.Model, observed: Observations, decided: Sequence[Group]) -> models.Model:
    """The smoothed model behind the equivalence check; the same one where nothing is smoothed."""
    scales = {group.tensor: group.scales for group in decided if group.alpha is not None}
    if not scales:
        return normal
    fold = SmoothQuant(scales, insert=run.recipe.smooth_quant.insert, split=True)
    return run.rewritten(fold, normal, observed.kept)


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


class _Trials:
    """Ways of smoothing one model."""

    def __init__(
        self,
        run: Run,
        normal: models.Model,
        found: Sequence[decide.Candidate],
        observed: Observations,
        axes: Mapping[str, int],
    ) -> None:
        recipe = run.recipe
        self._run, self._normal, self._found, self._observed = run, normal, found, observed
        self._groups = came.smoothable(decide.by_activation(found))
        self._dtype = DType.INT8 if DType.INT8 in recipe.formats() else DType.FP8
        self._per_channel = (
            recipe.weight_granularity == "channel" if self._dtype is DType.INT8 else run.target.fp8_per_channel
        )
        self._rows = record.rows(normal, axes, observed.kept)
        self._kept = _Kept.of(normal, observed.kept)
        self._spikes = _spikes(found, observed, recipe.qfem)

    def plan(self, alpha: str | float) -> tuple[Group, ...]:
        """What is decided with `auto`, `off` or an alpha."""
        recipe = self._run.recipe
        return tuple(
            smoothing.plan(
                self._normal,
                self._groups,
                self._rows,
                self._observed.outliers,
                dataclasses.replace(recipe.smooth_quant, alpha=alpha),
                format=format_of(self._dtype),
                calibrator=recipe.calibrator,
                per_channel=self._per_channel,
                feeds=self._kept.short[:JUDGED_FEEDS],
                folds=self._kept.folds[:JUDGED_FEEDS],
                looks=self._kept.looks(),
                hold=self._kept.held,
            )
        )

    def attempt(self, alpha: str | float) -> Attempt:
        """A plan, and the SQNR it gives on samples that neither its scales nor its ranges have seen."""
        decided = self.plan(alpha)
        scales = {group.tensor: group.trial for group in decided if group.alpha is not None}
        model, found = self._normal, self._found
        if scales:
            model = models.copy(self._normal)
            SmoothQuant(scales, insert=self._run.recipe.smooth_quant.insert, split=True)(model.graph)
            found = candidates(self._run, model)[0]
        reached = attempts.measure(
            model,
            [one for one in found if one.node not in self._spikes],
            self._histograms(model, found, scales),
            self._kept.compared(),
            dtype=self._dtype,
            calibrator=self._run.recipe.calibrator,
            per_channel=self._per_channel,
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


def _rename(observed: Observations, before: Sequence[decide.Candidate], after: Sequence[decide.Candidate]) -> None:
    """Lets the outliers of an activation be found under the name that its readers read it by now."""
    was = {one.node: one.activation for one in before}
    for one in after:
        known = observed.outliers.get(was.get(one.node, ""))
        if known is not None:
            observed.outliers.setdefault(one.activation, known)
