"""What weights are fitted to, and what they are judged by: never the same rows, where the data has others.

    held out       fitted to the part of the data that calibrates, judged by the part that chooses
    cross-fitted   the data has no such part: fitted to one half of the samples and judged by the other, and the other
                   way round; what has won is then fitted to all of them
    in sample      there is a single sample: one half of its rows judges the other. Rows of one sample resemble each
                   other, so the figures are too good

A weight has numbers enough to fit a few rows of its inputs exactly. Its error on these rows says nothing of any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from qcompiler.data.batches import samples_of
from qcompiler.data.samples import fingerprint
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.statistics.hessian import ONE_FOLD, Folds
from qcompiler.statistics.rows import Rows, record_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.statistics.observe import Observations


HELD_OUT: Final = "held out"
CROSS_FITTED: Final = "cross-fitted"
IN_SAMPLE: Final = "in sample"
FOLDS: Final = 2  # more of them leave more to fit to, and each one costs a fit


@dataclass(frozen=True, eq=False)
class RowTrial:
    """Rows that are fitted to, and others that judge."""

    fitted: Rows
    judge: Rows


@dataclass(frozen=True, eq=False)
class RowTrials:
    """Recorded rows of one activation.

    Attributes:
        rows: all that may be fitted to.
        trials: what choices are made by: one, or one for each fold, in which it is the judge.
        how: `HELD_OUT`, `CROSS_FITTED` or `IN_SAMPLE`: what figures of these trials are.
    """

    rows: Rows
    trials: tuple[RowTrial, ...]
    how: str

    def divided(self, scales: NDArray[np.float32] | None) -> RowTrials:
        """The rows of the activation divided by scales [K]; the same where there are none."""
        if scales is None:
            return self
        by: Callable[[Rows], Rows] = lambda rows: replace(rows, values=rows.values / scales)  # noqa: E731
        return RowTrials(by(self.rows), tuple(RowTrial(by(one.fitted), by(one.judge)) for one in self.trials), self.how)


@dataclass(frozen=True, eq=False)
class Dealt:
    """The samples, as fitting and judging want them.

    Attributes:
        fitting: what Hessians are summed over; can be walked again.
        folds: how they are cut.
        kept: samples that rows are recorded of, to fit to.
        held: samples that rows are recorded of, to judge by; empty where folds judge each other.
    """

    fitting: Iterable[Feeds]
    folds: Folds
    kept: Sequence[Feeds]
    held: Sequence[Feeds]

    @property
    def how(self) -> str:
        """What figures are that were measured on these samples."""
        return HELD_OUT if self.held else IN_SAMPLE if self.folds.by_rows else CROSS_FITTED


def deal(source: Iterable[Feeds], observed: Observations) -> Dealt:
    """The samples of the part that calibrates, in folds where nothing is held out.

    Args:
        source: the part that calibrates; read once more where nothing is held out.
        observed: what was kept and held of the data.
    """
    if observed.held:
        return Dealt(source, ONE_FOLD, observed.kept, observed.held)
    feeds = list(source)
    single = {fingerprint(one): one for feed in feeds for one in samples_of(feed, observed.axes)}
    whole = single if len(single) <= len(observed.kept) else {fingerprint(feed): feed for feed in feeds}
    if len(whole) == 1:
        whole = single
    samples = [whole[key] for key in sorted(whole)]
    return Dealt(samples, Folds(FOLDS, by_rows=len(samples) == 1), samples, ())


def record(model: models.Model, tensors: Mapping[str, int], dealt: Dealt) -> dict[str, RowTrials]:
    """Records rows of activations, to fit to and to judge by.

    Args:
        model: the float model.
        tensors: by name, the axis of their channels.
        dealt: the samples.

    Returns:
        By name; an activation that no sample reaches is not in it.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    if dealt.held:
        kept, held = (record_rows(model, tensors, feeds) for feeds in (dealt.kept, dealt.held))
        return {
            name: RowTrials(rows, (RowTrial(rows, held.get(name, rows)),), HELD_OUT if name in held else IN_SAMPLE)
            for name, rows in kept.items()
        }
    if dealt.folds.by_rows:
        found = record_rows(model, tensors, dealt.kept)
        return {name: _crossed(_halves(rows, dealt.folds.count), dealt.how) for name, rows in found.items()}
    parts = [record_rows(model, tensors, dealt.kept[fold :: dealt.folds.count]) for fold in range(dealt.folds.count)]
    return {
        name: _crossed([part[name] for part in parts if name in part], dealt.how)
        for name in tensors
        if any(name in part for part in parts)
    }


def _crossed(folds: Sequence[Rows], how: str) -> RowTrials:
    """Each fold judges what was fitted to the others."""
    if len(folds) == 1:
        return RowTrials(folds[0], (RowTrial(folds[0], folds[0]),), IN_SAMPLE)
    others = (_joined([one for one in folds if one is not fold]) for fold in folds)
    return RowTrials(_joined(folds), tuple(RowTrial(rest, fold) for rest, fold in zip(others, folds, strict=True)), how)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.folds for part in parts]),
    )


def _halves(rows: Rows, count: int) -> Sequence[Rows]:
    parts = [np.array_split(one, count) for one in (rows.values, rows.counts, rows.folds)]
    return [Rows(*part) for part in zip(*parts, strict=True) if len(part[0])]
