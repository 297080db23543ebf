"""Which positions of a sample are padding: what an attention mask of the feed excludes.

What stands there is arbitrary: nobody reads it. It counts in no range, no mean, no Hessian and no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MASKS = ("attention_mask", "attn_mask", "input_mask")  # 1 and True stand for a token
PADDINGS = ("padding_mask",)  # True stands for padding


class Padding:
    """What the masks of a feed say.

    Args:
        feed: masks are inputs [samples, positions] of whole numbers or booleans; others are added to scores.
    """

    def __init__(self, feed: Mapping[str, Any]) -> None:
        found = [_kept(name, array) for name, array in feed.items()]
        self._masks = [mask for mask in found if mask is not None and mask.any() and not mask.all()]

    def __bool__(self) -> bool:
        """Whether there is any padding."""
        return bool(self._masks)

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """The positions of an activation that are none, [kept, ...]; the array itself where no mask fits.

        Args:
            array: [samples, positions, ...], [samples · positions, ...] or, of heads and channels,
                [samples, heads, positions, ...].
                Where a mask has more positions, as with a cache in front, its last ones are meant.
        """
        found = self._of(array.shape)
        if found is None:
            return array
        mask, axis = found
        return np.asarray((array if axis < 2 else np.moveaxis(array, axis, 1))[mask])

    def spread(self, shape: Sequence[int]) -> NDArray[np.bool_] | None:
        """What `keep` keeps of an array of this shape, as a mask that broadcasts to it; None for all of it."""
        found = self._of(tuple(shape))
        if found is None:
            return None
        mask, axis = found
        wide = [1] * len(shape)
        wide[0], wide[axis] = mask.shape[0], mask.shape[-1]
        return mask.reshape(wide)

    def _of(self, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], int] | None:
        """The mask that fits an array of this shape, and the axis of the positions; 0 where samples are among them."""
        for mask in self._masks:
            if shape[:2] == mask.shape:
                return mask, 1
            if len(shape) >= 3 and (shape[0], shape[2]) == mask.shape:
                return mask, 2
            if len(shape) == 2 and shape[0] == mask.size and mask.size > mask.shape[0]:
                return mask.reshape(-1), 0
            last = _last(mask, shape)
            if last is not None and last.shape == shape[:2]:
                return last, 1
        return None


def _kept(name: str, array: Any) -> NDArray[np.bool_] | None:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iub":
        return None
    if any(word in name for word in PADDINGS):
        return np.asarray(array == 0) if array.dtype.kind == "b" else None
    return np.asarray(array != 0) if any(word in name for word in MASKS) else None


def _last(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The last positions of a longer mask: of the new tokens behind a cache."""
    if len(shape) < 3 or shape[0] != len(mask) or shape[1] >= mask.shape[1]:
        return None
    return mask[:, -shape[1] :]
