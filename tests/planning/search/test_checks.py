"""Plans held against a goal: by all samples that choose, or by the choosing half of a metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Role, View
from qcompiler.planning.search.checks import Samples, by_metric, by_sqnr
from qcompiler.planning.search.goal import Check
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.target import DType
from qcompiler.verification.metrics.halves import UNKNOWN_MARGIN, MetricHalves

WHOLE = {"x": Use(DType.INT8, 4.0)}


class Wrong:
    """Quantized, the output of a sample is wrong by as much as its second value says."""

    views = (View("y", "y", "y", Role.OUTPUT),)

    def run(self, feeds: Feeds, uses: Mapping[str, Use]) -> dict[str, Any]:
        x = np.asarray(feeds["x"], np.float32)
        return {"y": x[:, :1] * (1 + x[:, 1:] * len(uses))}

    infer = run


SIMULATOR = cast(Simulator, Wrong())


def samples(*wrong: float) -> Samples:
    return Samples(SIMULATOR, [{"x": np.array([[1.0, one]], np.float32)} for one in wrong])


def test_samples_that_are_alike_have_no_margin() -> None:
    check = by_sqnr(samples(0.1, 0.1, 0.1, 0.1), 19.9)(WHOLE)
    assert check.holds
    assert check.figure == pytest.approx(20.0, abs=1e-3)
    assert check.margin == pytest.approx(0.0, abs=1e-3)


def test_what_holds_on_average_misses_where_samples_differ() -> None:
    mixed = samples(0.04, 0.04, 0.04, 0.1)
    found = mixed.bound(WHOLE)
    assert found.sqnr_db > 24
    assert found.margin_db > 3
    assert not by_sqnr(mixed, 24.0)(WHOLE).holds
    assert by_sqnr(mixed, found.least_db - 0.1)(WHOLE).holds


def test_neither_the_float_model_nor_a_plan_runs_twice() -> None:
    told: list[int] = []
    feeds: list[Feeds] = [{"x": np.array([[1.0, 0.1]], np.float32)} for _ in range(3)]
    simulator = cast(Simulator, Wrong())
    counting = Samples(simulator, feeds, told.append)
    first = counting.bound(WHOLE)
    assert counting.runs == sum(told) == 3 + 3
    assert counting.bound(WHOLE) == first
    assert sum(told) == 3 + 3
    counting.bound({**WHOLE, "y": Use(DType.INT8, 1.0)})
    assert sum(told) == 3 + 2 * 3
    assert counting.runs == 3 + 3 * 3


def test_what_the_search_has_run_is_not_run_again() -> None:
    feeds: list[Feeds] = [{"x": np.array([[1.0, one]], np.float32)} for one in (0.1, 0.2, 0.1)]
    simulator = cast(Simulator, Wrong())
    searched = Measure(simulator, feeds[:2], 1, None).noise(WHOLE)
    told: list[int] = []
    bound = Samples(simulator, feeds, told.append).bound(WHOLE)
    assert sum(told) == 2  # float and quantized, of the one sample that the search did not look at
    assert bound == Samples(cast(Simulator, Wrong()), feeds).bound(WHOLE)
    assert searched == pytest.approx((0.1**2 + 0.2**2) / 2)


def metric(run: Any) -> float:
    """The mean of 16 outputs, of which those of the choosing half are wrong by a percent."""
    wrong = [0.01 if call // 2 % 2 else 0.0 for call in range(16)]
    return float(np.mean([run({"x": np.array([[1.0, one]], np.float32)})["y"][0, 0] for one in wrong]))


metric.__dict__["higher_is_better"] = False


def test_a_metric_is_held_against_what_the_whole_would_lose() -> None:
    halves = MetricHalves(metric, lambda feeds: SIMULATOR.infer(dict(feeds), {}))
    check = by_metric(halves, SIMULATOR, 0.011)(WHOLE)
    assert check.holds
    assert check.figure == pytest.approx(0.01, rel=1e-3)  # half of the calls, each with a percent, twice that in all
    assert check.margin == pytest.approx(0.0, abs=1e-5)
    missed = by_metric(halves, SIMULATOR, 0.009)(WHOLE)
    assert not missed.holds
    assert missed.margin == UNKNOWN_MARGIN * 0.009
    assert by_metric(halves, SIMULATOR, 0.0)({}).holds


def test_a_gate_of_decibels_must_hold_too() -> None:
    halves = MetricHalves(metric, lambda feeds: SIMULATOR.infer(dict(feeds), {}))
    asked: list[Mapping[str, Use]] = []

    def least(uses: Mapping[str, Use]) -> Check:
        asked.append(uses)
        return Check(False, 10.0, 0.0)

    assert not by_metric(halves, SIMULATOR, 0.011, least)(WHOLE).holds
    assert not by_metric(halves, SIMULATOR, 0.001, least)(WHOLE).holds
    assert asked == [WHOLE]  # not where the metric misses already
