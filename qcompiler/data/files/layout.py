"""What the shape of an array says of why it does not fit: axes in another order, a batch axis too few or too many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from qcompiler.ir.signature import Array, Shape

_MOST_AXES = 5  # 120 orders
_CHANNELS = (1, 3, 4)


def fits(shape: Sequence[int], wanted: Shape) -> bool:
    """Whether an array of that shape can be an input; free axes take any size."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(size, int) or size == got for size, got in zip(wanted, shape, strict=True)
    )


def order(shape: Sequence[int], wanted: Shape) -> tuple[int, ...] | None:
    """The order of axes in which an array would fit, the nearest to its own; None where there is none."""
    if wanted is None or len(shape) != len(wanted) or not 2 <= len(shape) <= _MOST_AXES:
        return None
    own = tuple(range(len(shape)))
    usual = ((0, 3, 1, 2), (0, 2, 3, 1)) if len(own) == 4 else ((2, 0, 1), (1, 2, 0)) if len(own) == 3 else ()
    every = sorted(permutations(own), key=lambda axes: sum(axis != place for place, axis in enumerate(axes)))
    found = (axes for axes in (*usual, *every) if axes != own)
    return next((axes for axes in found if fits([shape[axis] for axis in axes], wanted)), None)


def channels_moved(shape: Sequence[int], wanted: Shape) -> tuple[int, ...] | None:
    """The order of axes that puts the channels of a picture where the model has them, whatever its size.

    Returns:
        None where the channels are not at the other end of a picture.
    """
    if wanted is None or len(shape) != len(wanted) or len(shape) not in (3, 4):
        return None
    front = len(shape) - 3
    batch = tuple(range(front))
    for here, there, axes in (
        (len(shape) - 1, front, (*batch, front + 2, front, front + 1)),
        (front, len(shape) - 1, (*batch, front + 1, front + 2, front)),
    ):
        if wanted[there] in _CHANNELS and shape[here] == wanted[there] and shape[there] != wanted[there]:
            return axes
    return None


def in_rank(array: Array, wanted: Shape) -> Array:
    """A single sample with its batch axis added or dropped where that alone is missing or too many, else as it is.

    It is added where all other sizes fit and the model's axis 0 takes a size of 1; it is dropped where it has a size
    of 1 and the rest fits.
    """
    if wanted is None or not wanted or fits(array.shape, wanted):
        return array
    takes_one = not isinstance(wanted[0], int) or wanted[0] == 1
    if array.ndim == len(wanted) - 1 and takes_one and fits(array.shape, wanted[1:]):
        return array[None]
    if array.ndim == len(wanted) + 1 and array.shape[0] == 1 and fits(array.shape[1:], wanted):
        return np.asarray(array[0])
    return array
