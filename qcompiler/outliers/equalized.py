"""A model whose convolutions were equalized, with the statistics of what that has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.ir import model as models
from qcompiler.numerics.sqnr import relative_error
from qcompiler.passes.base import Report
from qcompiler.passes.channels import equalize_channels
from qcompiler.passes.channels.equalize_channels import EqualizeChannels
from qcompiler.runtime.stream import fill, run_once
from qcompiler.statistics.histogram import Histograms
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.outliers import AllOutliers
from qcompiler.verification.equivalence import applied

SAME = 1e-3  # of the largest value: more than float32 moves when a graph is fused in another way


@dataclass(frozen=True, eq=False)
class Equalized:
    """A model after equalization.

    Attributes:
        model: as given where nothing was to be done, or the pass was undone.
        observed: with the statistics of what has changed.
        report: of the pass.
        error: largest relative error of an output behind it; None where nothing was run.
    """

    model: models.Model
    observed: Observations
    report: Report
    error: float | None


def equalized(normal: models.Model, observed: Observations, names: Sequence[str]) -> Equalized:
    """Equalizes a copy of a model, behind the equivalence check.

    What changes is measured again on the kept samples. What a rescaled tensor reaches over all data is known from its
    channels, so its histogram gets that value too.

    Args:
        normal: the float model, normalised; stays as it is.
        observed: its statistics; samples were kept.
        names: of the tensors whose ranges somebody will ask for.
    """
    factors = equalize_channels.factors(normal.graph)
    model, report, error = applied(EqualizeChannels(), normal, observed.kept)
    if report.undone or not report.changed:
        return Equalized(normal, observed, report, error)
    changed = moved(normal, model, observed, names)
    histograms = Histograms(changed)
    axes = {name: observed.outliers[name].axis for name in changed if name in observed.outliers}
    outliers = AllOutliers(axes)
    fill(model, [histograms, outliers], observed.kept)
    ones = np.ones(1, np.float32)
    found = {name: observed.outliers[name].divided(factors.get(name, ones), outliers.found[name]) for name in axes}
    for name, one in found.items():
        if one.channels.size:
            histograms.found[name].update(np.asarray([one.channels.max()], np.float32))
    return Equalized(model, observed.with_(histograms.found, found), report, error)


def moved(before: models.Model, after: models.Model, observed: Observations, names: Sequence[str]) -> list[str]:
    """The tensors of an edited model that hold something else than before, or that are new.

    Args:
        before: the model that was observed.
        after: the edited one.
        observed: what was observed; samples were kept.
        names: float tensors of `after` to look at; inputs never change.
    """
    inputs = {tensor.name for tensor in after.graph.inputs}
    wanted = [name for name in dict.fromkeys(names) if name not in inputs]
    known = [name for name in wanted if name in observed.histograms]
    feed = observed.kept[0]
    old = run_once(before, feed, outputs=known)
    new = run_once(after, feed, outputs=wanted)
    return [name for name in wanted if name not in old or relative_error(old[name], new[name]) > SAME]
