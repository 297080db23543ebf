"""What the inputs of a language model get for a window of token ids: ids, mask, positions, types and the cache.

Names are those of the ecosystem. `seen` is how many positions the cache already holds, T how many tokens come now.

    input_ids, decoder_input_ids or the only other integer input   [batch, T]         the window
    attention_mask, decoder_attention_mask                         [batch, seen + T]  ones
    position_ids                                                   [batch, T]         seen, seen + 1, ...
    cache_position                                                 [T]                the same
    token_type_ids                                                 [batch, T]         zeros
    past_key_values.*, past*, cache*                               [batch, heads, seen, size]  the cache, empty at first
    use_cache_branch                                               [1]                whether there is a cache
    num_logits_to_keep, logits_to_keep                             scalar             0: all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.errors import DataError
from qcompiler.ir.signature import Feeds, Inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray


IDS: Final = ("input_ids", "decoder_input_ids")
MASKS: Final = ("attention_mask", "decoder_attention_mask")
_SINGLE: Final = ("use_cache_branch", "num_logits_to_keep", "logits_to_keep")
_KNOWN: Final = (*MASKS, *_SINGLE, "position_ids", "decoder_position_ids", "cache_position", "token_type_ids")
_PRESENT: Final = ("present", "present_key_values", "new", "updated")


def is_past(name: str) -> bool:
    """Whether an input of that name holds keys and values of earlier tokens."""
    return name.startswith(("past", "cache.", "cache_k", "cache_v"))


class Filler:
    """Makes feeds for one model.

    Attributes:
        ids: name of the input that takes token ids.
        length: tokens that it takes, where that is fixed; None where it is free.
        rows: windows that go into one feed: the batch where that is fixed, else 1.
        past: names of the inputs that hold the cache, in the model's order.
    """

    def __init__(self, inputs: Inputs) -> None:
        """`inputs` as in `qcompiler.data.source.open_source`.

        Raises:
            DataError: some input is none that text can fill.
        """
        self._inputs = inputs
        self.past = tuple(name for name in inputs if is_past(name))
        self.ids = self._ids()
        shape = inputs[self.ids][1] or (None, None)
        self.length = shape[-1] if len(shape) > 1 and isinstance(shape[-1], int) else None
        self.rows = shape[0] if len(shape) > 1 and isinstance(shape[0], int) else 1
        for name, (dtype, _) in inputs.items():
            if dtype is None or (name != self.ids and name not in (*_KNOWN, *self.past)):
                raise DataError(
                    f"text cannot fill input '{name}' of the model: known are token ids ({', '.join(IDS)}), masks "
                    "(attention_mask), position_ids, token_type_ids and past_key_values. Give --data with a function "
                    "that makes whole feeds instead of --text."
                )

    def _ids(self) -> str:
        named = [name for name in IDS if name in self._inputs]
        kinds = {name: dtype.kind for name, (dtype, _) in self._inputs.items() if dtype is not None}
        others = [name for name, kind in kinds.items() if kind in "iu" and name not in (*_KNOWN, *self.past)]
        if named or len(others) == 1:
            return (named or others)[0]
        listed = ", ".join(f"'{name}'" for name in self._inputs)
        raise DataError(
            f"the model takes no token ids: its inputs are {listed}, and none of them is called input_ids or is the "
            "only integer among them. --text is for language models; give --data for this one."
        )

    def feed(
        self, windows: Sequence[Sequence[int]], past: Mapping[str, NDArray[Any]] | None = None, seen: int = 0
    ) -> Feeds:
        """Feeds for windows of equal length, `rows` of them.

        Args:
            windows: token ids.
            past: the cache by input name; None for an empty one.
            seen: positions that it holds.
        """
        ids = np.asarray(windows, np.int64)
        return {name: self._one(name, ids, past or {}, seen) for name in self._inputs}

    def _one(self, name: str, ids: NDArray[np.int64], past: Mapping[str, NDArray[Any]], seen: int) -> NDArray[Any]:
        dtype, shape = self._inputs[name]
        rows, length = ids.shape
        if dtype is None:
            raise DataError(f"text cannot fill input '{name}' of the model, which takes no tensor; give --data.")
        if name == self.ids:
            return ids.reshape(-1).astype(dtype) if shape is not None and len(shape) == 1 else ids.astype(dtype)
        if name in past:
            return past[name]
        if name in self.past:
            return _empty(dtype, shape, rows)
        if name in MASKS:
            total = shape[-1] if shape and isinstance(shape[-1], int) else seen + length
            mask = np.zeros((rows, total), dtype)
            mask[:, total - seen - length :] = 1
            return mask
        if name in _SINGLE:
            value = seen > 0 if name == "use_cache_branch" else 0
            return np.full([1] * len(shape or ()), value, dtype)
        if name == "token_type_ids":
            return np.zeros((rows, length), dtype)
        positions = np.arange(seen, seen + length).astype(dtype)
        return positions if name == "cache_position" else np.tile(positions, (rows, 1))


def _empty(dtype: np.dtype[Any], shape: Sequence[int | str | None] | None, rows: int) -> NDArray[Any]:
    """No cache yet: the batch in front, no position where their number is free, zeros where it is fixed."""
    sizes = [
        size if isinstance(size, int) else rows if axis == 0 else 0 for axis, size in enumerate(shape or (None,) * 4)
    ]
    return np.zeros(sizes, dtype)


def present_of(past: str, outputs: Sequence[str]) -> str | None:
    """The output that continues an input of the cache: `present.0.key` for `past_key_values.0.key`; None if absent."""
    stem = next((one for one in ("past_key_values", "past_key", "past", "cache") if past.startswith(one)), "past")
    rest = past.removeprefix(stem)
    tail = f"_key{rest}" if stem == "past_key" else rest
    return next((name for name in (f"{new}{tail}" for new in _PRESENT) if name in outputs), None)
