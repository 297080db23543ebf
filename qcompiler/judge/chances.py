"""What noise changes of chances, the results of a Sigmoid: by the float model's own, of what is made of them.

    p = sigmoid(float), q = sigmoid(quantized); who goes by them says yes above a half, or orders by them

    right answers    sum max(p, 1 - p), of which max - min is lost where yes and no are exchanged; the mean of both
                     answers counts where that is more (most frames of a recording hold nobody who speaks)
    F1               2 sum of p where yes / (how many yes + sum p)
    order (AUC)      the share of pairs, weighed by p of one and 1 - p of the other, that stand in the right order

If the float model is as sure as it says, these are its scores, and what is lost of them with q, the most of the three,
is what a metric will say. Detectors of voices, classifiers with several labels and masks are read so.

A Sigmoid may as well give a number: a gain, the side of a box, a pixel. Such numbers lie anywhere between 0 and 1,
where chances are near the ends. So they are chances where they explain more than half of the variance that yes and no
have by them, `1 - mean p (1 - p) / (m (1 - m))`, m the mean of p. Numbers spread evenly over 0 to 1 explain a third.

Few samples have few answers near the edge, and what they lose is chance. So the errors of a sample are held against the
others as well, place by place, until there are enough; and what is told is what is lost at most, 95 times in 100: by
the spread over samples (the jackknife of as many as `GROUPS`), and no less than the 3 / n that may be wrong where none
of n answers is, n of the answer that is given less often. Where that alone is more than a hundredth, nothing is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.judge.decisions import ENOUGH
from qcompiler.judge.margin import student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]  # [values]

PLACES: Final = 1 << 14  # of a sample; evenly spaced ones stand for more
WIDEST: Final = 1 << 19  # of all samples
EXPLAINED: Final = 0.5  # of the variance of yes and no
NEAREST: Final = 1e-7  # to 0 and 1, as FP32 tells them apart
GROUPS: Final = 16  # of samples, each of which is left out once
NONE_OF: Final = 3.0  # over how many: what may be wrong where none of them is, 95 times in 100
FEWEST: Final = 300  # answers of either kind, of which that is a hundredth
_LARGEST: Final = 500.0  # of a logit, beyond which exp overflows


class Chances:
    """Chances of both models, as a Sigmoid gives them or as what it reads.

    Args:
        logits: what it reads is added; else what it gives.
    """

    def __init__(self, *, logits: bool) -> None:
        self._logits, self._held = logits, 0
        self._samples: list[tuple[Numbers, Numbers]] = []  # what the Sigmoid reads, and the errors of that

    def add(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        """One sample; values that are not finite are left out, and samples that there is no more room for."""
        if reference.shape != got.shape or not reference.size or self._held + min(reference.size, PLACES) > WIDEST:
            return
        first, second = self._values(reference), self._values(got)
        seen = np.isfinite(first) & np.isfinite(second)
        self._held += int(seen.sum())
        self._samples.append((first[seen], (second - first)[seen]))

    def lost(self) -> float | None:
        """The share that is lost of the three scores, 0..1; None where the results are no chances."""
        return _lost(self._samples) if self._are() else None

    def at_most(self) -> float | None:
        """The share that is lost at most, 95 times in 100; None where these are no chances, or too few to tell."""
        count = min(len(self._samples), GROUPS)
        if count < 2 or not self._are():
            return None
        told = np.concatenate([one for one, _ in self._samples]) > 0
        rarer = min(int(told.sum()), int((~told).sum()))
        if rarer < FEWEST:
            return None
        without = [_lost([one for at, one in enumerate(self._samples) if at % count != out]) for out in range(count)]
        deviation = math.sqrt((count - 1) * float(np.var(without)))
        return min(1.0, _lost(self._samples) + max(student(count - 1) * deviation, NONE_OF / rarer))

    def _are(self) -> bool:
        """Whether these are chances."""
        if not self._held:
            return False
        chance = _sigmoid(np.concatenate([one for one, _ in self._samples]))
        mean = float(chance.mean())
        whole = mean * (1 - mean)
        return whole > 0 and 1 - float((chance * (1 - chance)).mean()) / whole > EXPLAINED

    def _values(self, array: NDArray[Any]) -> Numbers:
        """What the Sigmoid reads, [values]."""
        flat = array.reshape(-1)
        places = np.linspace(0, flat.size - 1, min(flat.size, PLACES)).astype(np.intp)
        values = np.asarray(flat[places], np.float64)
        if self._logits:
            return values
        inside = np.clip(values, NEAREST, 1 - NEAREST)
        return np.asarray(np.where(np.isfinite(values), np.log(inside) - np.log1p(-inside), values))


def _lost(samples: Sequence[tuple[Numbers, Numbers]]) -> float:
    """The share that is lost of the score that loses most, 0..1."""
    reference = np.concatenate([one for one, _ in samples])
    if not reference.size:
        return 0.0
    chance = _sigmoid(reference)
    tries = [reference + error for error in _errors([error for _, error in samples])]
    turned = np.mean([(one > 0) != (reference > 0) for one in tries], axis=0)
    whole, left = _scores(chance, reference), np.mean([_scores(chance, one) for one in tries], axis=0)
    of_scores = [1 - float(now) / was for was, now in zip(whole, left, strict=True) if was > 0]
    return max(0.0, _exchanged(chance, turned), *of_scores)


def _errors(errors: Sequence[Numbers]) -> list[Numbers]:
    """Errors of all samples, and of each held against others, where all have as many values."""
    alike, held = len({one.size for one in errors}) == 1, sum(one.size for one in errors)
    times = min(len(errors), math.ceil(ENOUGH / held)) if alike else 1
    return [np.concatenate([errors[at - by] for at in range(len(errors))]) for by in range(times)]


def _exchanged(chance: Numbers, turned: Numbers) -> float:
    """The share of right answers that is lost, of all or by answer; `turned` is how often each is exchanged."""
    right = np.maximum(chance, 1 - chance)
    missed, yes = (2 * right - 1) * turned, chance > 0.5
    each = [float(missed[one].sum() / right[one].sum()) for one in (yes, ~yes) if one.any()]
    return max(float(missed.sum() / right.sum()), float(np.mean(each)))


def _scores(chance: Numbers, told: Numbers) -> tuple[float, float]:
    """F1 of yes and no, and the order, by the chances of the float model."""
    yes = told > 0
    f1 = 2 * float(chance[yes].sum()) / (int(yes.sum()) + float(chance.sum()))
    order = np.argsort(told, kind="stable")
    some, none = chance[order], 1 - chance[order]
    below = np.cumsum(none) - none
    pairs = float(chance.sum()) * float(none.sum())
    return f1, float((some * below).sum()) / pairs if pairs > 0 else 0.0


def _sigmoid(logits: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST, _LARGEST))))
