"""What the data has not shown of a tensor: without that no range can be known, and none is made up.

A tensor that held nothing, or one number throughout, says nothing of what it will hold when it is used. One that had
fewer elements than its grid has levels says too little: of n + 1 values of one distribution each is the largest with
the same probability, so a new one lies beyond the n that were seen with probability 1 / (n + 1). With fewer elements
than levels, clipping at the largest one seen happens more often than a value falls on a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcompiler.numerics.rounding import LEVELS
from qcompiler.runtime.stream import fill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.ir import model as models
    from qcompiler.ir.signature import Feeds
    from qcompiler.runtime.stream import Part
    from qcompiler.statistics.histogram import Histogram


UNSEEN: Final = "unseen"
ZERO: Final = "zero"
ALWAYS_ZERO: Final = "always-zero"  # whatever is fed: no data would show more
CONSTANT: Final = "constant"
FEW: Final = "few-elements"
FEWEST: Final = int(LEVELS)
SMALLEST: Final = float(np.finfo(np.float32).tiny)  # what is below is flushed to 0 by every target
SAME: Final = 1e-5  # of a value: more than sums in another order move


@dataclass(frozen=True, slots=True)
class Lack:
    """What the data lacks of a tensor.

    Attributes:
        rule: `unseen`, `zero`, `always-zero`, `constant` or `few-elements`: the rule that keeps its readers in high
            precision.
        what: a clause that the name of the tensor stands in front of.
        sources: names of the tensors, inputs first of all, that never changed and that it is computed from alone;
            itself where it is computed from others.
    """

    rule: str
    what: str
    sources: frozenset[str] = frozenset()


def lack_of(histogram: Histogram, samples: int) -> Lack | None:
    """What a histogram lacks; None where a range can be known.

    Args:
        histogram: of all samples.
        samples: how many they were.
    """
    among = "the one calibration sample" if samples == 1 else f"all {samples} calibration samples"
    if not histogram.finite:
        return Lack(UNSEEN, f"held nothing in {among}")
    if histogram.amax < SMALLEST:
        return Lack(ZERO, f"was 0 in {among}")
    if histogram.finite < FEWEST:
        only = f"held {histogram.finite} element{'s' * (histogram.finite != 1)} in {among}"
        return Lack(FEW, f"{only}, fewer than the {FEWEST} levels of its grid")
    if histogram.minimum == histogram.maximum:
        return Lack(CONSTANT, f"was {histogram.maximum:g} throughout in {among}")
    return None


def alike(
    model: models.Model, axes: Mapping[str, int], feeds: Sequence[Feeds], histograms: Mapping[str, Histogram]
) -> set[str]:
    """Tensors in which every position is like every other: each channel held one number, up to float32's rounding.

    That is what a bias makes of zeros. A few samples show that a channel changes; where none did, the extremes over
    all data must be theirs.

    Args:
        model: the float model.
        axes: of the channels, by tensor name.
        feeds: a few samples.
        histograms: of the tensors, over all data.
    """
    seen = _Ends(axes)
    fill(model, [seen], feeds, quick=True)
    found = set()
    for name, (low, high) in seen.found.items():
        known, slack = histograms[name], SAME * histograms[name].amax
        allowed = np.maximum(SAME * np.maximum(-low, high), np.finfo(np.float32).eps * known.amax)
        whole = known.minimum >= low.min() - slack and known.maximum <= high.max() + slack
        if whole and seen.rows[name] > 1 and np.all(high - low <= allowed):
            found.add(name)
    return found


class Flags:
    """Which truth values the conditions of Ifs had, filled like a histogram; a branch is run only under its own.

    Attributes:
        found: by name of the condition.
    """

    def __init__(self, tensors: Iterable[str]) -> None:
        """`tensors` are names."""
        self.found: dict[str, frozenset[bool]] = dict.fromkeys(tensors, frozenset())

    @property
    def tensors(self) -> Sequence[str]:
        """Their names."""
        return list(self.found)

    def update(self, part: Part) -> None:
        """Looks at those that are in the part."""
        for name in (name for name in self.found if name in part.values):
            self.found[name] |= {bool(one) for one in np.asarray(part.values[name]).reshape(-1)}

    def merge(self, other: Flags) -> None:
        """Adds what another one has seen."""
        for name, seen in other.found.items():
            self.found[name] |= seen


class _Ends:
    """Smallest and largest value of each channel of some tensors, by name; none of tensors whose channels vary."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._axes = axes
        self.found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self.rows = dict.fromkeys(axes, 0)
        self._varies: set[str] = set()

    @property
    def tensors(self) -> Sequence[str]:
        return list(self._axes)

    def update(self, part: Part) -> None:
        for name in (name for name in self._axes if name in part.values and name not in self._varies):
            value = np.asarray(part.values[name], np.float32)
            if not value.size:
                continue
            flat = np.moveaxis(value, self._axes[name], -1).reshape(-1, value.shape[self._axes[name]])
            ends = flat.min(axis=0), flat.max(axis=0)
            known = self.found.get(name, ends)
            if known[0].shape != ends[0].shape:
                self._varies.add(name)
                del self.found[name]
                continue
            self.found[name] = np.minimum(known[0], ends[0]), np.maximum(known[1], ends[1])
            self.rows[name] += len(flat)
