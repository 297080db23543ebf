"""What a range estimator is: a frozen dataclass with one pure method from statistics of a tensor to its range."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.statistics.histogram import Histogram


@dataclass(frozen=True)
class Calibrator(ABC):
    """Chooses the range of a tensor. Its fields are its options, its name is its class name in lower case.

    Attributes:
        SMALLEST: no range is below it, so that amax / 127 and amax / 448 stay normal FP32 numbers.
    """

    SMALLEST: ClassVar[float] = 2.0**-117

    @classmethod
    def name(cls) -> str:
        """The class name in lower case: what `--calibrator` takes."""
        return cls.__name__.lower()

    @classmethod
    def help(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def range(self, h: Histogram) -> float:
        """The range of a tensor: |x| above it will be clipped.

        Args:
            h: what was seen of the tensor.

        Returns:
            amax in the tensor's unit, positive.

        Raises:
            ValueError: only zeros, or nothing finite, were seen: no range follows from that, and none is made up.
        """
        if h.amax <= 0:
            raise ValueError("a range was asked of a tensor in which nothing but zeros was seen")
        return max(self.choose(h), self.SMALLEST)

    @abstractmethod
    def choose(self, h: Histogram) -> float:
        """The range of a tensor that has at least one value other than zero; positive."""

    def __str__(self) -> str:
        """`name` or `name{option=value,...}` with every option; `qcompiler.calibrators.parse` reads it back equal."""
        options = [f"{option.name}={getattr(self, option.name)}" for option in dataclasses.fields(self)]
        return self.name() + (f"{{{','.join(options)}}}" if options else "")
