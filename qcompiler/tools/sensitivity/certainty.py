"""How certain a ranking of layers is that was measured on some of the samples.

Samples differ, and so does what an error of a layer does to them. With e(s, g) the squared error that group g makes at
the outputs for sample s, and x(s) what varies of the signal:

    noise(g) = max over views of  Σs e(s, g) / Σs x(s)

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
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from qcompiler.numerics.sqnr import decibel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


SPLITS: Final = 20  # into halves, at most
SEED: Final = 44
SURE: Final = 2.0  # standard errors between two figures whose order is certain


def noise_of(errors: Floats, signals: Floats) -> Floats:
    """Noise-to-signal power of each group, the worst view's: [groups]; views without a signal count nowhere.

    Args:
        errors: sums of squared errors, [samples, groups, views].
        signals: of what varies of the signal, [samples, views].
    """
    power = signals.sum(axis=0)
    known = power > 0
    if not known.any():
        return np.zeros(errors.shape[1])
    return np.asarray((errors.sum(axis=0)[:, known] / power[known]).max(axis=1), np.float64)


def figures_db(errors: Floats, signals: Floats) -> Floats:
    """The same as SQNR in dB: [groups]; 200 stands for no error."""
    return np.array([decibel(float(one)) for one in noise_of(errors, signals)])


def standard_error_db(errors: Floats, signals: Floats, total: int) -> Floats:
    """Of each group's figure, in dB: [groups]; NaN where a single sample tells nothing of that.

    Args:
        errors: as of `noise_of`.
        signals: as of `noise_of`.
        total: samples that there are.
    """
    return _jackknife(_left_out(errors, signals), total)


def sure_of_next(errors: Floats, signals: Floats, order: list[int], total: int) -> list[bool]:
    """For each place in an order of groups, whether the next one has certainly less noise; the last one has no next.

    Args:
        errors: as of `noise_of`.
        signals: as of `noise_of`.
        order: groups, the most noise first.
        total: samples that there are.
    """
    if len(order) < 2:
        return [True] * len(order)
    if len(errors) >= total:
        return [True] * len(order)
    left_out, figures = _left_out(errors, signals), figures_db(errors, signals)
    first, second = np.array(order[:-1]), np.array(order[1:])
    apart = figures[second] - figures[first]
    doubt = SURE * _jackknife(left_out[:, second] - left_out[:, first], total)
    return [*(bool(one) for one in apart > doubt), True]  # NaN is no certainty


def expected_correlation(errors: Floats, signals: Floats, total: int) -> float | None:
    """The rank correlation to be expected with what all samples would give; None where that cannot be told.

    Args:
        errors: as of `noise_of`.
        signals: as of `noise_of`.
        total: samples that there are.
    """
    count = len(errors)
    if count >= total or errors.shape[1] < 2:
        return 1.0
    alone = _reliability(errors, signals)
    if alone is None:
        return None
    return math.sqrt(_of_many(alone, count) / _of_many(alone, total)) if alone > 0 else 0.0


def samples_for(aim: float, errors: Floats, signals: Floats, total: int) -> int:
    """How many samples a rank correlation takes, by what those that were run show; all of them where that is nothing.

    Args:
        aim: the rank correlation, below 1.
        errors: as of `noise_of`.
        signals: as of `noise_of`.
        total: samples that there are.
    """
    if errors.shape[1] < 2:
        return 1
    alone = _reliability(errors, signals)
    if not alone or alone <= 0:
        return total
    wanted = aim * aim * _of_many(alone, total)
    return min(total, math.ceil(wanted * (1 - alone) / (alone * (1 - wanted)))) if wanted < 1 else total


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


def _left_out(errors: Floats, signals: Floats) -> Floats:
    """Figures in dB with each sample left out once: [samples, groups]; no rows of a single sample."""
    if len(errors) < 2:
        return np.zeros((0, errors.shape[1]))
    every = np.arange(len(errors))
    return np.stack([figures_db(errors[every != one], signals[every != one]) for one in every])


def _jackknife(left_out: Floats, total: int) -> Floats:
    """Standard errors of columns, a sample left out in each row."""
    count = len(left_out)
    if not count:
        return np.full(left_out.shape[1], math.nan)
    with np.errstate(invalid="ignore"):  # two infinities differ by no number
        apart = left_out - left_out.mean(axis=0)
        spread = (count - 1) / count * (apart * apart).sum(axis=0)
    return np.asarray(np.sqrt(spread * max(0.0, 1 - count / max(total, 1))), np.float64)


def _reliability(errors: Floats, signals: Floats) -> float | None:
    """How far a sample agrees with another one in its ranking, -1..1; None of a single sample."""
    count = len(errors)
    half = count // 2
    if not half:
        return None
    found = []
    for first, second in _halves(count):
        one, other = (noise_of(errors[part], signals[part]) for part in (first, second))
        found.append(rank_correlation(one, other))
    agreed = float(np.mean(found))
    return agreed / (half - (half - 1) * agreed) if agreed < 1 else 1.0


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
