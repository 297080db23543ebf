"""The figures of a comparison: each view with its SQNR or its agreement, its worst sample, and what cannot be compared.

SQNR = 10 log10( sum ref^2 / sum (ref - got)^2 )   in dB, sums over all samples of a view

and the same beside what varies of ref from sample to sample (`variation`), where that can be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.judge.agreement import agreement
from qcompiler.judge.chances import Chances
from qcompiler.judge.decisions import Decisions
from qcompiler.judge.likelihood import Likelihood
from qcompiler.judge.margin import bound_of
from qcompiler.judge.noise import compared, kept_by, signal_of, squared_error
from qcompiler.judge.variation import Varying
from qcompiler.judge.views import WEAK, Role, View
from qcompiler.numerics.sqnr import sqnr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANCES = "Sigmoid"  # the step that gives them


@dataclass(frozen=True, slots=True)
class ViewFigure:
    """How one view compares.

    Attributes:
        name: as of `View`; likewise `output`, `tensor`, `role`, `step`.
        judged: whether a verdict goes by it.
        samples: how many were compared.
        sqnr_db: SQNR in dB, pooled over the samples; infinite if nothing differs; None where there is no such figure:
            of discrete and of picked results, and where the float model gives zeros.
        worst_sample: index of the sample with the smallest SQNR or agreement; None where no sample has a figure.
        worst_sample_db: its SQNR; None where there is none.
        agreement: of discrete and of picked results, the share that agrees, 0..1; None of others.
        reshaped: samples whose shape differs between the models.
        missing: the quantized graph has no such tensor, so that nothing was compared.
        varying_db: signal that varies from sample to sample beside the same noise, in dB; None where the samples do not
            tell, or of what has a scale of its own.
        margin_db: what other samples of the same kind may take from `sqnr_db`, by the spread over these, 95 times in
            100 (`judge.margin`); None where there is no figure, and with one sample alone.
        lost: of what a Softmax reads, the share of right answers that the noise takes, 0..1 (`judge.decisions`); of the
            chances that a Sigmoid gives, that share or what F1 and order lose at most, 95 times in 100
            (`judge.chances`); None where nothing is decided.
        perplexity: of what the next token is drawn by, by how much the noise raises the perplexity, 0.01 for 1 %
            (`judge.likelihood`); None of others.
    """

    name: str
    output: str
    tensor: str
    role: str
    step: str
    judged: bool
    samples: int
    sqnr_db: float | None
    worst_sample: int | None = None
    worst_sample_db: float | None = None
    agreement: float | None = None
    reshaped: int = 0
    missing: bool = False
    varying_db: float | None = None
    margin_db: float | None = None
    lost: float | None = None
    perplexity: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it counts where the worst figure is asked for: not what is weak, picked, or taken out by the user."""
        return self.sqnr_db is not None and self.role not in {*WEAK, Role.IGNORED}

    @property
    def least_db(self) -> float | None:
        """The lower of both figures, which choices and verdicts go by; None where there is none."""
        return min((db for db in (self.sqnr_db, self.varying_db) if db is not None), default=None)


def worst_view(views: Iterable[ViewFigure], *, varying: bool = False) -> ViewFigure | None:
    """The view that counts with the smallest SQNR, or `varying_db`; None where none has that figure."""
    known = [(view, view.varying_db if varying else view.sqnr_db) for view in views if view.counts]
    told = [(db, view) for view, db in known if db is not None]
    return min(told, key=lambda one: one[0])[1] if told else None


class Figures:
    """Sums over samples, by view.

    Args:
        views: what is compared; those that the user ignores are listed without a figure.
        missing: tensors that the other graph does not have.
    """

    def __init__(self, views: Sequence[View], missing: Iterable[str] = ()) -> None:
        self._missing = frozenset(missing)
        self._of = {view: _Sums() for view in views}
        self._spread = Varying(views)
        self._decided: dict[View, Decisions] = {}
        self._likely = {
            view: Chances(logits=view.role is Role.SOURCE) for view in views if view.judged and view.step == CHANCES
        }
        self._drawn = {view: Likelihood() for view in views if view.drawn}
        self._count = 0

    def add(self, feed: Mapping[str, Any], reference: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        """One sample."""
        padding = Padding(feed)
        values: dict[View, NDArray[Any]] = {}
        for view, sums in self._of.items():
            if view.role is not Role.IGNORED and view.tensor not in self._missing:
                value = self._add(view, sums, reference.get(view.tensor), got.get(view.tensor), padding)
                values |= {} if value is None else {view: value}
        self._spread.add(feed, values)
        self._count += 1

    def learn(self, others: Figures) -> None:
        """What varies is told by other samples too: those of other figures of the same views, not used any more."""
        self._spread.merge(others._spread)

    def _add(self, view: View, sums: _Sums, reference: Any, got: Any, padding: Padding) -> NDArray[Any] | None:
        """Returns what is compared of the float model; None of what has no SQNR."""
        if not isinstance(reference, np.ndarray) or not isinstance(got, np.ndarray):
            return None  # a sequence or map: its arrays are compared as outputs are, see `verification.compare`
        if reference.shape != got.shape:
            sums.reshaped += 1
        if view.selected or reference.dtype.kind not in "fV":
            mine, other = padding.keep(reference), padding.keep(got)
            same = agreement(mine, other, selected=view.selected, amounts=view.amounts)
            sums.agree(self._count, *same)
            return None
        kept = kept_by(view, reference)
        first, second = compared(view, reference, padding, kept), compared(view, got, padding, kept)
        if first is not None and second is not None and first.shape == second.shape:
            if view.level is not None:
                behind = reference.ndim - 1 - view.level % reference.ndim
                self._decide(view, padding.keep(reference), padding.keep(got), behind)
            if view in self._likely:
                self._likely[view].add(first, second)
            if view in self._drawn:
                self._drawn[view].add(padding.keep(reference), padding.keep(got))
            sums.add(self._count, signal_of(first), squared_error(first, second))
            return first
        return None

    def _decide(self, view: View, reference: NDArray[Any], got: NDArray[Any], behind: int) -> None:
        """What a Softmax decides; `behind` axes stand behind that of the classes."""
        self._decided.setdefault(view, Decisions(-1 - behind)).add(reference, got)

    def _lost(self, view: View) -> float | None:
        """What is lost of what is read of a view; None where nobody knows."""
        if view in self._likely:
            return self._likely[view].at_most()
        return self._decided[view].lost() if view in self._decided else None

    def result(self) -> tuple[ViewFigure, ...]:
        """The figures, in the order of the views."""
        shares = self._spread.shares()
        return tuple(
            ViewFigure(
                view.name,
                view.output,
                view.tensor,
                str(view.role),
                view.step,
                view.judged,
                sums.samples,
                sums.sqnr_db,
                sums.worst[1],
                sums.worst_db,
                sums.agreed / sums.elements if sums.elements else None,
                sums.reshaped,
                view.tensor in self._missing,
                sums.varying_db(shares.get(view)),
                sums.margin_db,
                self._lost(view),
                self._drawn[view].rises() if view in self._drawn else None,
            )
            for view, sums in self._of.items()
        )


class _Sums:
    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.agreed = self.elements = self.samples = self.reshaped = 0
        self.worst: tuple[float, int | None] = (math.inf, None)
        self.worst_db: float | None = None
        self.each: list[tuple[float, float]] = []  # noise and signal of each sample

    @property
    def sqnr_db(self) -> float | None:
        return sqnr_db(self.signal, self.noise) if self.signal > 0 or math.isinf(self.noise) else None

    @property
    def margin_db(self) -> float | None:
        if len(self.each) < 2 or self.signal <= 0 or math.isinf(self.noise):
            return None
        return bound_of(*zip(*self.each, strict=True)).margin_db

    def varying_db(self, share: float | None) -> float | None:
        return None if share is None or self.sqnr_db is None else sqnr_db(self.signal * share, self.noise)

    def add(self, index: int, signal: float, noise: float) -> None:
        self.samples += 1
        self.signal += signal
        self.noise += noise
        self.each.append((noise, signal))
        if signal > 0 or math.isinf(noise):
            self._worse(index, sqnr_db(signal, noise))
            self.worst_db = self.worst[0]

    def agree(self, index: int, same: int, of: int) -> None:
        self.samples += 1
        self.agreed += same
        self.elements += of
        if of:
            self._worse(index, same / of)

    def _worse(self, index: int, figure: float) -> None:
        if self.worst[1] is None or figure < self.worst[0]:
            self.worst = (figure, index)
