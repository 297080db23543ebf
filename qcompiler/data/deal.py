"""The data dealt by content into three parts: to calibrate, to choose, to judge.

A figure that was measured on the data that a model was fitted to is too good. So ranges and weights are fitted to one
part, whatever is chosen by a loss is chosen on another, and what a user reads is measured on the third. Which sample
goes where is told by its content: neither the order of the data nor batching changes it, and equal samples stay
together.

    8 samples and more: 60 % calibrate, 20 % choose, 20 % judge
    4 to 7:             80 % calibrate and choose, 20 % judge, one at least
    1 to 3:             all do everything; figures are *in sample*

Where other data judges, it takes no part of this: 75 % calibrate and 25 % choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from qcompiler.data.source import Source

THREE = 8  # distinct samples from which on three parts are made: two of them choose, two judge
TWO = 4  # from which on two parts are made


@dataclass(frozen=True, eq=False)
class Parts:
    """The data, dealt.

    Attributes:
        calibrate: what ranges, scales and weights are fitted to.
        choose: what choices are made by; None where that is the same samples.
        judge: what results are judged by; None where that is the same samples, or other data.
        samples: how many samples each part has, repeated ones counted: calibrate, choose, judge.
        apart: feeds were taken apart, so that those of the parts have other sizes than the data.
    """

    calibrate: Source
    choose: Source | None = None
    judge: Source | None = None
    samples: tuple[int, int, int] = (0, 0, 0)
    apart: bool = False

    @property
    def rest(self) -> tuple[Source, ...]:
        """The parts that nothing is fitted to."""
        return tuple(one for one in (self.choose, self.judge) if one is not None)

    def through(self, change: Callable[[Source], Source]) -> Parts:
        """The same samples, each part changed by a function that keeps their number and order."""
        choose, judge = (None if one is None else change(one) for one in (self.choose, self.judge))
        return Parts(change(self.calibrate), choose, judge, self.samples, self.apart)

    def to_json(self) -> dict[str, int]:
        """For the manifest: samples of each part; those of a part that is not there are 0."""
        return dict(zip(("calibrate", "choose", "judge"), self.samples, strict=True))


def deal(source: Source, *, judged_apart: bool = False) -> Parts:
    """Deals all samples of a source; it is read once for it.

    Where it has too few feeds for three parts, the samples in them are dealt, as far as their batch axes are known.

    Args:
        source: the calibration data.
        judged_apart: other data judges.

    Raises:
        DataError: as of reading the source.
    """
    whole = source
    if len(set(source.prints())) < THREE:
        source = source.apart()
    prints, loud = source.prints(), source.loudness()
    judge, choose = _sizes(len(set(prints)), judged_apart=judged_apart)
    judging, choosing, fitting = _hands(dict(zip(prints, loud, strict=True)), judge, choose)
    return Parts(
        source.part(fitting),
        source.part(choosing) if choosing else None,
        source.part(judging) if judging else None,
        (_count(prints, fitting), _count(prints, choosing), _count(prints, judging)),
        apart=source is not whole,
    )


def _sizes(count: int, *, judged_apart: bool) -> tuple[int, int]:
    """How many samples judge, and how many choose."""
    if judged_apart:
        return 0, (round(count / 4) if count >= TWO else 0)
    if count >= THREE:
        return round(count / 5), round(count / 5)
    return (max(1, round(count / 5)), 0) if count >= TWO else (0, 0)


def _hands(loudness: Mapping[bytes, float], judge: int, choose: int) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """What judges, what chooses, and the others.

    Args:
        loudness: of each sample, by its fingerprint.
        judge: how many judge.
        choose: how many choose.
    """
    # from the last byte on: the first ones say which samples are kept
    order = sorted(loudness, key=lambda one: (-loudness[one], one[::-1]))
    rounds = max(judge, choose, 1)
    edges = [len(order) * i // rounds for i in range(rounds + 1)]
    judging, choosing, fitting = list[bytes](), list[bytes](), list[bytes]()
    for low, high in pairwise(edges):
        hand = order[low:high] if low == 0 else sorted(order[low:high], key=lambda one: one[::-1])
        for part, most in ((judging, judge), (choosing, choose)):
            if len(part) < most:
                part.append(hand.pop(0))
        fitting += hand
    return judging, choosing, fitting


def _count(prints: Iterable[bytes], part: Iterable[bytes]) -> int:
    chosen = frozenset(part)
    return sum(one in chosen for one in prints)
