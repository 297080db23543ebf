"""Which positions of a sample are padding: what an attention mask of the feed excludes.

What stands there is arbitrary: nobody reads it. It counts in no range, no mean, no Hessian and no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        for mask in self._masks:
            if _fits(mask, array):
                return np.asarray(array[mask])
            if array.ndim >= 3 and (array.shape[0], array.shape[2]) == mask.shape:
                return np.asarray(np.moveaxis(array, 2, 1)[mask])
            if array.ndim == 2 and array.shape[0] == mask.size and mask.size > mask.shape[0]:
                return np.asarray(array[mask.reshape(-1)])
            last = _last(mask, array)
            if last is not None and _fits(last, array):
                return np.asarray(array[last])
        return array


def _kept(name: str, array: Any) -> NDArray[np.bool_] | None:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iub":
        return None
    if any(word in name for word in PADDINGS):
        return np.asarray(array == 0) if array.dtype.kind == "b" else None
    return np.asarray(array != 0) if any(word in name for word in MASKS) else None


def _fits(mask: NDArray[np.bool_], array: NDArray[Any]) -> bool:
    return array.ndim >= 2 and array.shape[:2] == mask.shape


def _last(mask: NDArray[np.bool_], array: NDArray[Any]) -> NDArray[np.bool_] | None:
    """The last positions of a longer mask: of the new tokens behind a cache."""
    if array.ndim < 3 or array.shape[0] != len(mask) or array.shape[1] >= mask.shape[1]:
        return None
    return mask[:, -array.shape[1] :]
