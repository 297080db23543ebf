"""The noise of a plan: its definition, and that nothing is run twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Role, View
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.target import DType

WHOLE, NARROW = Use(DType.INT8, 4.0), Use(DType.INT8, 1.0)


class Doubling:
    """Two outputs, of which a quantized group changes the first by a tenth and the second not at all."""

    views = (View("y", "y", "y", Role.OUTPUT), View("z", "z", "z", Role.OUTPUT))

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Use]] = []

    def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
        self.asked.append(uses)
        wrong = 1 + 0.1 * len(uses)
        return {"y": 2 * feed["x"] * wrong, "z": feed["x"]}


def feeds(*sizes: int) -> list[Feeds]:
    return [{"x": np.full(size, index + 1.0, np.float32)} for index, size in enumerate(sizes)]


def measured(samples: list[Feeds], few: int = 1, **options: Any) -> tuple[Measure, Doubling]:
    simulator = Doubling()
    return Measure(cast(Simulator, simulator), samples, few, options.pop("advance", None), **options), simulator


def test_noise_is_error_power_over_signal_power_at_the_worst_view() -> None:
    measure, _ = measured(feeds(4, 2, 3))
    assert measure.noise({}) == 0.0
    assert measure.noise({"x": WHOLE}) == pytest.approx(0.1**2, rel=1e-5)
    assert measure.noise({"x": WHOLE, "r": WHOLE}) == pytest.approx(0.2**2, rel=1e-5)


def test_a_view_of_zeros_does_not_count() -> None:
    measure, _ = measured([{"x": np.zeros(3, np.float32)}])
    assert measure.noise({"x": WHOLE}) == 0.0


def test_what_is_known_is_not_run_again() -> None:
    seen: list[int] = []
    measure, simulator = measured(feeds(1, 1, 1), advance=seen.append)
    first = measure.noise({"x": WHOLE, "r": NARROW})
    runs = len(simulator.asked)
    assert measure.noise({"r": NARROW, "x": WHOLE}) == first  # whatever the order
    assert len(simulator.asked) == runs
    measure.noise({"x": NARROW, "r": NARROW})
    assert len(simulator.asked) == runs + 3
    assert sum(seen) == 6
    assert measure.runs == 3 + 6


def test_few_samples_are_the_first_ones_or_those_that_are_given() -> None:
    measure, simulator = measured(feeds(4, 4, 4), few=2)
    runs = len(simulator.asked)
    measure.noise({"x": WHOLE}, few=True)
    assert len(simulator.asked) == runs + 2 == runs + measure.few
    brief, simulator = measured(feeds(4, 4, 4), few=2, brief=feeds(1))
    assert brief.few == 1
    assert brief.runs == 4
    assert brief.shortness == pytest.approx(1 / 4)
    assert measured(feeds(4, 4))[0].shortness == 1
