"""Tensors of an edited graph that hold what tensors of the original held, whatever they are called: found by running.

A folded normalisation leaves its values under the name of the convolution, and a pass that moves axes makes names of
its own. What is known of a tensor of the user's file is then known of another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.runtime.stream import fill

if TYPE_CHECKING:
    from qcompiler.ir.signature import Feeds
    from qcompiler.runtime.stream import Part

_CLOSE = 1e-4  # relative: folding rounds anew


@dataclass(frozen=True, slots=True)
class Holding:
    """What a tensor held in one run, whatever the order of its elements.

    Attributes:
        size: number of elements.
        low: smallest.
        high: largest.
        total: their sum.
        power: sum of their squares.
    """

    size: int
    low: float
    high: float
    total: float
    power: float

    @property
    def tells(self) -> bool:
        """Whether it tells one tensor from another: it holds several numbers, all finite."""
        return bool(np.isfinite(self.power)) and self.size > 1 and self.low < self.high

    def like(self, other: Holding) -> bool:
        """Whether both are of the same numbers, but for rounding."""
        reach, own = max(-self.low, self.high), float(np.sqrt(self.power * self.size))
        return (
            self.size == other.size
            and abs(self.low - other.low) <= _CLOSE * reach
            and abs(self.high - other.high) <= _CLOSE * reach
            and abs(self.total - other.total) <= _CLOSE * own
            and abs(self.power - other.power) <= _CLOSE * self.power
        )


class _Traces:
    """The traces of some tensors, filled by `fill`."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._names = list(tensors)
        self.found: dict[str, Holding] = {}

    @property
    def tensors(self) -> Sequence[str]:
        return self._names

    def update(self, part: Part) -> None:
        for name in self._names:
            if name not in part.values or name in self.found:
                continue
            value = np.asarray(part.values[name]).astype(np.float64)
            if value.size:
                ends = float(value.min()), float(value.max())
                self.found[name] = Holding(value.size, *ends, float(value.sum()), float(np.square(value).sum()))


def follow(before: gs.Graph, after: gs.Graph, names: Iterable[str], feed: Feeds) -> Mapping[str, str]:
    """For tensors of the edited graph the names under which the original had their values.

    Args:
        before: the original.
        after: what became of it.
        names: of tensors of the original's main graph that something is known of.
        feed: one sample for both.

    Returns:
        By name in `after`; its own name where it still has these values.

    Raises:
        ModelError: a model cannot be run.
    """
    old, new = _Traces(names), _Traces(_floats(after))
    fill(before, [old], [feed], quick=True)
    fill(after, [new], [feed], quick=True)
    telling = {name: one for name, one in old.found.items() if one.tells}
    found: dict[str, str] = {}
    for name, trace in new.found.items():
        if name in telling and telling[name].like(trace):
            found[name] = name
            continue
        same = next((known for known, one in telling.items() if one.like(trace)), None)
        if same is not None:
            found[name] = same
    return found


def _floats(graph: gs.Graph) -> list[str]:
    return list(dict.fromkeys(one.name for one in graphs.tensors(graph) if _float(one)))


def _float(tensor: gs.Tensor) -> bool:
    return not graphs.is_constant(tensor) and graphs.is_float(tensor)
