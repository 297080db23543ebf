"""How certain a ranking of layers is that was measured on some of the samples.

Samples differ, and so does what an error of a layer does to them. With e(s, g) the squared error that group g makes at
the outputs for sample s, and x(s) what varies of the signal:

    noise(g) = max over views of  Σs w(s) e(s, g) / Σs w(s) x(s)

where the loudest samples of the data are always run and stand for themselves, w = 1, and each of the others stands for
as many as there are: what is clipped is clipped in few samples.

* Its standard error is that of the jackknife: each sample is left out once (Quenouille 1956, "Notes on bias in
  estimation"; Tukey 1958). Where n of N samples were run, it is smaller by √(1 − n / N): all of them leave no doubt.
* Two groups are told apart by the difference of their figures on the same samples, which has an error of its own: a
  sample that is hard for one group is hard for the other.
* The rank correlation with what all samples would give follows from that of two halves of the samples (Spearman 1910,
  "Correlation calculated from faulty data"; Brown 1910). If m samples agree with m others by r, then k · m agree by

      R(k) = k r / (1 + (k − 1) r)

  and n samples agree with N, of which they are a part, by √(R(n) / R(N)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcompiler.numerics.sqnr import decibel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


SPLITS: Final = 20  # into halves, at most
SEED: Final = 44
SURE: Final = 2.0  # standard errors between two figures whose order is certain


@dataclass(frozen=True, eq=False)
class SampleEvidence:
    """What samples have shown in one format.

    Attributes:
        errors: sums of squared errors, [samples, groups, views].
        signals: of what varies of the signal, [samples, views].
        loud: so many of the first samples stand for themselves alone.
        total: samples that there are.
    """

    errors: Floats
    signals: Floats
    loud: int
    total: int

    @property
    def others(self) -> int:
        """How many samples were run that stand for more."""
        return len(self.errors) - self.loud

    @property
    def rest(self) -> int:
        """How many samples these stand for."""
        return max(self.total - self.loud, self.others)

    def noise(self, some: Sequence[int] | None = None) -> Floats:
        """Noise-to-signal power of each group, the worst view's: [groups]; views without a signal count nowhere.

        Args:
            some: only these of the others; all of them by default.
        """
        rows = np.arange(self.others) if some is None else np.asarray(some, np.int64)
        weight = self.rest / max(len(rows), 1)
        power, error = (
            array[: self.loud].sum(axis=0) + weight * array[self.loud :][rows].sum(axis=0)
            for array in (self.signals, self.errors)
        )
        known = power > 0
        if not known.any():
            return np.zeros(error.shape[0])
        return np.asarray((error[:, known] / power[known]).max(axis=1), np.float64)

    def figures_db(self, some: Sequence[int] | None = None) -> Floats:
        """The same as SQNR in dB: [groups]; 200 stands for no error."""
        return np.array([decibel(float(one)) for one in self.noise(some)])

    def standard_error_db(self) -> Floats:
        """Of each group's figure, in dB: [groups]; NaN where a single sample tells nothing of that."""
        return self._jackknife(self._left_out())

    def sure_of_next(self, order: Sequence[int]) -> list[bool]:
        """For each place in an order of groups, the most noise first, whether the next one has certainly less.

        The last one has no next, and is certain.
        """
        if len(order) < 2 or self.others >= self.rest:
            return [True] * len(order)
        left_out, figures = self._left_out(), self.figures_db()
        first, second = list(order[:-1]), list(order[1:])
        with np.errstate(invalid="ignore"):  # two infinities differ by no number
            apart = figures[second] - figures[first]
            doubt = SURE * self._jackknife(left_out[:, second] - left_out[:, first])
        return [*(bool(one) for one in apart > doubt), True]  # NaN is no certainty

    def expected_correlation(self) -> float | None:
        """The rank correlation to be expected with what all samples would give; None where that cannot be told."""
        if self.others >= self.rest or self.errors.shape[1] < 2:
            return 1.0
        alone = self._reliability()
        if alone is None:
            return None
        return math.sqrt(_of_many(alone, self.others) / _of_many(alone, self.rest)) if alone > 0 else 0.0

    def samples_for(self, aim: float) -> int:
        """How many samples a rank correlation below 1 takes; all of them where those that were run do not tell."""
        if self.errors.shape[1] < 2:
            return self.loud + 1
        alone = self._reliability()
        if alone is None or alone <= 0:
            return self.loud + self.rest
        wanted = aim * aim * _of_many(alone, self.rest)
        most = float(self.rest) if wanted >= 1 else wanted * (1 - alone) / (alone * (1 - wanted))
        return self.loud + min(self.rest, math.ceil(most))

    def _left_out(self) -> Floats:
        """Figures in dB with each of the others left out once: [others, groups]; no rows of a single one."""
        if self.others < 2:
            return np.zeros((0, self.errors.shape[1]))
        every = range(self.others)
        return np.stack([self.figures_db([one for one in every if one != out]) for out in every])

    def _jackknife(self, left_out: Floats) -> Floats:
        """Standard errors of columns, a sample left out in each row."""
        count = len(left_out)
        if self.others >= self.rest:
            return np.zeros(left_out.shape[1])
        if not count:
            return np.full(left_out.shape[1], math.nan)
        with np.errstate(invalid="ignore"):  # two infinities differ by no number
            apart = left_out - left_out.mean(axis=0)
            spread = (count - 1) / count * (apart * apart).sum(axis=0)
        return np.asarray(np.sqrt(spread * (1 - count / self.rest)), np.float64)

    def _reliability(self) -> float | None:
        """How far a sample agrees with another one in its ranking, -1..1; None of a single sample."""
        half = self.others // 2
        if not half:
            return None
        found = [rank_correlation(self.noise(first), self.noise(second)) for first, second in _halves(self.others)]
        agreed = float(np.mean(found))
        return agreed / (half - (half - 1) * agreed) if agreed < 1 else 1.0


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; 1 where both are all equal, -1..1."""
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    if scale == 0:
        return 1.0 if float(first @ first) == float(second @ second) else 0.0
    return float(first @ second) / scale


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)], np.float64)


def _of_many(alone: float, count: int) -> float:
    """How far so many samples agree with as many others, if one agrees by `alone`."""
    return count * alone / (1 + (count - 1) * alone)


def _halves(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Samples in two halves, all ways while they are few; of an odd number one is left out."""
    half = count // 2
    ways = math.comb(count, half)
    if ways <= 2 * SPLITS:
        for first in itertools.combinations(range(count), half):
            rest = [one for one in range(count) if one not in first]
            if first[0] < rest[0]:  # each way once
                yield list(first), rest[:half]
        return
    rng = np.random.default_rng(SEED)
    for _ in range(SPLITS):
        order = [int(one) for one in rng.permutation(count)]
        yield order[:half], order[half : 2 * half]
