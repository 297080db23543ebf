"""How sure a pooled SQNR is: what other samples of the same kind would give, 95 times in 100, is no worse than this.

The noise of a view is a ratio of sums over samples, sum e / sum s. The spread of its logarithm over samples follows
from how much each of n samples moves it (the infinitesimal jackknife):

    var(ln ratio) = n / (n - 1) * sum over samples of (e_i / sum e - s_i / sum s)^2
    margin in dB = t * 10 / ln(10) * sqrt(var)

with t the one-sided 95 % point of Student's distribution with n - 1 degrees of freedom, but 3 at least: fewer samples
say too little of their spread to multiply it by more. Samples that all have the same ratio have no margin; where one of
them has all the error, it is 4.3 dB times t. A single sample has none: nothing is known of a spread.

With skewed errors (log-normal, a standard deviation of 0.6) 8 samples keep it 89 times in 100, and 16 samples 92 times.

Sources: Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapters 11 and 21; of the quantiles of t Cornish,
Fisher 1938.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcompiler.judge.noise import Expected
from qcompiler.judge.views import View
from qcompiler.numerics.sqnr import NOTHING, decibel

if TYPE_CHECKING:
    from qcompiler.judge.noise import Arrays

NORMAL: Final = 1.6449  # one-sided 95 % point of the normal distribution
LEAST_FREEDOM: Final = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure and how much worse it may be.

    Attributes:
        sqnr_db: SQNR in dB, pooled over the samples; infinite where nothing differs.
        margin_db: what other samples may take from it, in dB, 0 and more.
        samples: how many were compared; with one, the margin is 0 because nothing is known of it.
    """

    sqnr_db: float
    margin_db: float
    samples: int

    @property
    def least_db(self) -> float:
        """What is reached with the margin."""
        return self.sqnr_db - self.margin_db


class SampleTally:
    """Errors and signals of each view, sample by sample.

    Args:
        shares: of the power of a view, how much errors are held against (see `judge.noise.shares_of`); None for all.
    """

    def __init__(self, shares: Mapping[View, float] | None = None) -> None:
        self._sums: dict[View, list[tuple[float, float]]] = {}
        self._samples, self._shares = 0, shares or {}

    def add(self, expected: Expected, got: Arrays) -> None:
        """One sample."""
        self.add_errors(expected, expected.errors(got))

    def add_errors(self, expected: Expected, errors: Mapping[View, float]) -> None:
        """One sample, by its sums of squared errors."""
        self._samples += 1
        for view, signal in expected.signals.items():
            self._sums.setdefault(view, []).append((errors[view], signal * self._shares.get(view, 1.0)))

    def surely_louder(self, other: SampleTally) -> bool:
        """Whether the worst view has more noise than that of the same samples elsewhere, 95 times in 100.

        Pairs say more than two figures with their margins: what makes a sample loud makes it so in both. The spread of
        the logarithm of the quotient of both ratios follows as that of one does.

        Args:
            other: of another plan, on the same samples in the same order.
        """
        (errors, signals), (others, beside) = self._loudest(), other._loudest()
        error, least = math.fsum(errors), math.fsum(others)
        if not error > least * math.fsum(signals) / max(math.fsum(beside), NOTHING):
            return False
        if not math.isfinite(error) or least <= 0:
            return True
        moves = zip(_moves(errors, signals), _moves(others, beside), strict=True)
        deviation = _deviation([one - two for one, two in moves])
        apart = math.log(error / math.fsum(signals)) - math.log(least / math.fsum(beside))
        return apart > student(len(errors) - 1) * deviation

    def _loudest(self) -> tuple[Sequence[float], Sequence[float]]:
        """Errors and signals of the view with the most noise; nothing where no view has a signal."""
        found = [sums for sums in self._sums.values() if sum(s for _, s in sums) > 0]
        loudest = max(found, key=lambda sums: math.fsum(e for e, _ in sums) / math.fsum(s for _, s in sums), default=[])
        return [error for error, _ in loudest], [signal for _, signal in loudest]

    def worst(self, *, margin: bool = True) -> Bound:
        """Of all views with a signal, the one that reaches least, with its margin; endless where there is none.

        Args:
            margin: it counts which view that is.
        """
        found = [bound_of(*zip(*sums, strict=True)) for sums in self._sums.values() if sum(s for _, s in sums) > 0]
        return min(
            found, key=lambda one: one.least_db if margin else one.sqnr_db, default=Bound(math.inf, 0.0, self._samples)
        )


def bound_of(errors: Sequence[float], signals: Sequence[float]) -> Bound:
    """The SQNR of samples together, with its margin.

    Args:
        errors: sum of squared errors of each sample; infinite where a value is not finite that should be.
        signals: sum of squares of each; together above 0.
    """
    count, error, signal = len(errors), math.fsum(errors), math.fsum(signals)
    if not math.isfinite(error):
        return Bound(-math.inf, 0.0, count)
    if error <= 0:
        return Bound(math.inf, 0.0, count)
    pooled = decibel(error / signal)
    if count < 2:
        return Bound(pooled, 0.0, count)
    deviation = _deviation(_moves(errors, signals))
    return Bound(pooled, student(count - 1) * 10 / math.log(10) * deviation, count)


def _moves(errors: Sequence[float], signals: Sequence[float]) -> list[float]:
    """By how much each sample moves the logarithm of the ratio; both sums above 0."""
    error, signal = math.fsum(errors), math.fsum(signals)
    return [e / error - s / signal for e, s in zip(errors, signals, strict=True)]


def _deviation(moves: Sequence[float]) -> float:
    """The spread that follows from what each of two samples and more moves."""
    count = len(moves)
    return math.sqrt(math.fsum(one * one for one in moves) * count / (count - 1))


def student(freedom: int) -> float:
    """The one-sided 95 % point of Student's distribution, to a hundredth; of 3 degrees of freedom at least."""
    n, z = max(freedom, LEAST_FREEDOM), NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
