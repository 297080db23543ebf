"""The samples of a batch that a metric feeds at once, told apart so that each may be answered by another model.

Which axis of an output the samples lie on is seen by feeding them in another order: along that axis, the answers come
in that order, too. Where an output has no such axis (what was detected in all of them, a mean), nothing is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.errors import ModelError, UsageError
from qcompiler.numerics.sqnr import relative_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.verification.metric import Feeds, Run

    Shapes = Sequence[tuple[str, tuple[int, ...]]]

SAME: Final = 1e-3  # of the largest value: more than float32 moves when sums are taken in another order


@dataclass(frozen=True)
class BatchRows:
    """Where the samples of a batch lie.

    Attributes:
        inputs: that have them, on their first axis; all others are the same for all samples.
        axes: by output, the axis of the samples.
    """

    inputs: frozenset[str]
    axes: Mapping[str, int]

    @staticmethod
    def of(run: Run, feeds: Feeds | None = None) -> BatchRows | None:
        """Looks for them; None where there are none, or they cannot be told apart.

        Args:
            run: runs the float model.
            feeds: a batch; None where nothing was fed.

        """
        count = 0 if feeds is None else _largest(feeds)
        if feeds is None or count < 2:
            return None
        inputs = frozenset(name for name, value in feeds.items() if np.shape(value)[:1] == (count,))
        other = {name: np.roll(value, 1, axis=0) if name in inputs else value for name, value in feeds.items()}
        try:
            first, second = run(feeds), run(other)
        except ModelError:  # it was run in the given order before: another one means something else to it
            return None
        found = {name: _axis(np.asarray(first[name]), np.asarray(second[name]), count) for name in first}
        axes = {name: axis for name, axis in found.items() if axis is not None}
        return BatchRows(inputs, axes) if len(axes) == len(found) else None

    def count(self, shapes: Shapes) -> int:
        """How many samples feeds of these shapes have."""
        return next((shape[0] for name, shape in shapes if name in self.inputs and shape), 1)

    def mixed(
        self, plain: Mapping[str, NDArray[Any]], quantized: Mapping[str, NDArray[Any]], chosen: Sequence[bool]
    ) -> dict[str, NDArray[Any]]:
        """An answer with the chosen samples quantized, and the others float.

        Raises:
            UsageError: the models answer in different shapes.
        """
        places = np.flatnonzero(chosen)
        found: dict[str, NDArray[Any]] = {}
        for name in plain:
            one, other = np.array(plain[name]), np.asarray(quantized[name])
            axis = self.axes[name]
            if one.shape != other.shape or one.shape[axis] != len(chosen):
                raise UsageError(f"output '{name}' has the shape {other.shape} quantized and {one.shape} in float")
            np.moveaxis(one, axis, 0)[places] = np.moveaxis(other, axis, 0)[places]
            found[name] = one
        return found


def _largest(feeds: Feeds) -> int:
    """The largest first axis of an input."""
    return max((np.shape(value)[0] for value in feeds.values() if np.ndim(value)), default=0)


def _axis(first: NDArray[Any], second: NDArray[Any], count: int) -> int | None:
    """The axis along which one is the other in another order; None for none."""
    if first.shape != second.shape:
        return None
    places = (axis for axis, size in enumerate(first.shape) if size == count)
    return next((axis for axis in places if _same(np.roll(first, 1, axis=axis), second)), None)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind != "f":
        return bool((one == other).all())
    return bool(relative_error(one, other) <= SAME)
