"""The noise of every group of layers alone; in blocks of groups where a model is too large for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Use


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring groups that were quantized together for one measurement.

    Attributes:
        groups: how many.
        noise: noise-to-signal power that they send to the outputs together.
    """

    groups: int
    noise: float


def each_alone(
    measure: Measure, plan: Mapping[str, Use], macs: Mapping[str, int], runs: int
) -> tuple[dict[str, float], dict[str, Block]]:
    """The noise of each group, and the block that it was measured in where it shares one.

    With fewer runs than groups, neighbours are measured together, the loudest block is halved again and again, and
    what a block sends is laid to its groups by their multiply-accumulates.
    """
    names = list(plan)
    count = len(names) if runs >= len(names) else max(1, runs // 3)
    edges = [len(names) * i // max(count, 1) for i in range(count + 1)]
    blocks = [names[low:high] for low, high in pairwise(edges)]
    measured = [(measure.noise({name: plan[name] for name in block}, few=True), block) for block in blocks]
    left = runs - len(measured)
    while left >= 2:
        loudest = max((one for one in measured if len(one[1]) > 1), key=lambda one: one[0], default=None)
        if loudest is None:
            break
        measured.remove(loudest)
        middle = len(loudest[1]) // 2
        halves = loudest[1][:middle], loudest[1][middle:]
        measured += [(measure.noise({name: plan[name] for name in half}, few=True), half) for half in halves]
        left -= 2
    noise, shared = dict[str, float](), dict[str, Block]()
    for total, block in measured:
        work = sum(max(macs[name], 1) for name in block)
        noise.update({name: total * max(macs[name], 1) / work for name in block})
        shared.update(dict.fromkeys(block, Block(len(block), total)) if len(block) > 1 else {})
    return {name: noise[name] for name in names}, shared
