"""What the search trades accuracy for, and where it stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.planning.simulation.simulator import Use

Assignment = dict[str, "Use | None"]  # by group; None is high precision
HIGH = "high"  # the key of high precision among costs
FEW = 4  # samples for comparisons that are made often; less picks other ranges from one time to the next


@dataclass(frozen=True)
class Prices:
    """What the search trades accuracy for.

    Attributes:
        macs: multiply-accumulates of each group, by activation tensor.
        total: those of the whole model, groups or not.
        seconds: by activation tensor and format ("high" for high precision): time of the group; empty where
            multiply-accumulates in high precision are what is to be saved.
        weights: bytes of the weights of each group, quantized and in high precision; empty where nobody asks.
        by_size: these are what is to be saved.
    """

    macs: Mapping[str, int]
    total: int
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    by_size: bool = False

    def of(self, group: str, use: Use | None) -> float:
        """The cost of a group in a format, or in high precision."""
        if self.seconds:
            return self.seconds[group][HIGH if use is None else str(use.dtype)]
        if self.by_size:
            return float(self.weights[group][use is None])
        return float(max(self.macs[group], 1)) if use is None else 0.0

    def size(self, chosen: Mapping[str, Use | None]) -> int | None:
        """Bytes of the weights of all groups; None where nobody knows."""
        return sum(self.weights[group][use is None] for group, use in chosen.items()) if self.weights else None

    def share(self, chosen: Mapping[str, Use | None]) -> float:
        """Share of the model's multiply-accumulates that are quantized, 0..1."""
        return sum(self.macs[group] for group, use in chosen.items() if use) / self.total if self.total else 0.0

    def time(self, chosen: Mapping[str, Use | None]) -> float | None:
        """Seconds of all groups; None where nobody knows."""
        return sum(self.of(group, use) for group, use in chosen.items()) if self.seconds else None


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        target_db: SQNR of the outputs to reach.
        min_share: share of the model's MACs that stays quantized even where the target is not reached.
        doubtful_db: SQNR below which less than `min_share` may stay quantized: what the outputs lose is more than
            anybody would give for that speed. Minus infinity for no such line.
        least_share: what stays quantized then, 0..1.
        useless_db: SQNR below which both give way as well: fast and wrong is of no use to anybody.
        few: samples that single groups are measured on.
        high: whether groups may go to high precision at all.
        calm_db: SQNR from which no other calibrator's ranges are tried; None for the target.
        runs: of the model, that may be spent: half of them to tell what each group does, then as many on other ranges
            for the loudest groups as leave room for the changes.
    """

    target_db: float
    min_share: float
    useless_db: float
    few: int = FEW
    high: bool = True
    calm_db: float | None = None
    runs: int = 192
    doubtful_db: float = -math.inf
    least_share: float = 0.0
