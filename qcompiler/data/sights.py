"""What all samples have shown of each input, whatever their order: whether it ever changed, or was one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.ir.signature import Array

_NUMBERS = "fiubV"  # V: bfloat16 and the like


@dataclass(frozen=True, slots=True)
class Sight:
    """What the samples have shown of one input.

    Attributes:
        samples: how many there were.
        elements: of the largest of them.
        value: the one number that all elements of all samples had; None where there were several, or none.
        same: every sample had the same content.
        counts: its content counts up along the last axis, as positions do, which are the same in all samples by nature.
    """

    samples: int
    elements: int
    value: float | None
    same: bool
    counts: bool = False

    @property
    def fixed(self) -> bool:
        """Whether the data says nothing of what another content would do; False where that is the input's nature."""
        return self.elements > 0 and not self.counts and (self.value is not None or self.same)

    @property
    def hollow(self) -> bool:
        """Whether no sample had a single element of it."""
        return self.samples > 0 and self.same and not self.elements


class Sights:
    """Watches samples. It keeps the first of them, and looks no further at an input that has changed."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def watch(self, sample: Mapping[str, Array]) -> None:
        """Takes in one sample; sequences, optionals and texts count as changing."""
        for name, array in sample.items():
            if name not in self._seen:
                self._seen[name] = _Seen(array)
            self._seen[name].add(array)

    @property
    def found(self) -> dict[str, Sight]:
        """By input name."""
        return {name: seen.sight() for name, seen in self._seen.items()}


class _Seen:
    def __init__(self, first: Array) -> None:
        self._numeric = isinstance(first, np.ndarray) and first.dtype.kind in _NUMBERS
        self._first = np.array(first) if self._numeric else None
        self._samples = self._elements = 0
        self._same = self._uniform = self._numeric
        self._value: float | None = None

    def add(self, array: Array) -> None:
        self._samples += 1
        if not self._numeric or not (self._same or self._uniform):
            return
        self._elements = max(self._elements, array.size)
        self._same = self._same and np.array_equal(array, self._first)  # type: ignore[arg-type]
        if not self._uniform or not array.size:
            return
        value = float(array.reshape(-1)[0]) if self._value is None else self._value
        self._uniform = bool(np.all(array == array.dtype.type(value)))
        self._value = value if self._uniform else None

    def sight(self) -> Sight:
        return Sight(self._samples, self._elements, self._value, self._same, self._same and self._counts())

    def _counts(self) -> bool:
        first = self._first
        if first is None or first.dtype.kind not in "iu" or not first.ndim or first.shape[-1] < 2:
            return False
        return bool(np.all(np.diff(first.astype(np.int64), axis=-1) == 1))
