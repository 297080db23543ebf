"""The margin of a pooled SQNR: exact where it can be known, and kept by other samples as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.judge.margin import Bound, SampleTally, bound_of, student
from qcompiler.judge.noise import Expected, Tally
from qcompiler.judge.views import Role, View
from qcompiler.numerics.sqnr import decibel

VIEWS = tuple(View(name, name, name, Role.OUTPUT) for name in "ab")


def test_samples_with_one_ratio_have_no_margin() -> None:
    found = bound_of([0.1, 0.2, 0.4], [10.0, 20.0, 40.0])
    assert found.sqnr_db == pytest.approx(20.0)
    assert found.margin_db == pytest.approx(0.0)
    assert found.samples == 3


def test_all_error_in_one_sample_is_the_largest_margin() -> None:
    found = bound_of([1.0, 0.0, 0.0, 0.0], [10.0] * 4)
    assert found.margin_db == pytest.approx(student(3) * 10 / math.log(10))
    assert found.least_db == found.sqnr_db - found.margin_db


@pytest.mark.parametrize(
    ("errors", "bound"),
    [
        ([0.0, 0.0], Bound(math.inf, 0.0, 2)),
        ([math.inf, 0.1], Bound(-math.inf, 0.0, 2)),
        ([math.nan, 0.1], Bound(-math.inf, 0.0, 2)),
    ],
)
def test_what_has_no_figure_has_no_margin(errors: list[float], bound: Bound) -> None:
    assert bound_of(errors, [1.0, 1.0]) == bound


def test_one_sample_has_no_margin() -> None:
    assert bound_of([0.1], [10.0]) == Bound(decibel(0.01), 0.0, 1)


@pytest.mark.parametrize(("freedom", "point"), [(1, 2.353), (3, 2.353), (7, 1.895), (15, 1.753), (1000, 1.646)])
def test_the_quantile_is_students(freedom: int, point: float) -> None:
    assert student(freedom) == pytest.approx(point, abs=0.02)


@pytest.mark.parametrize(("samples", "often"), [(8, 0.89), (16, 0.92)])
def test_other_samples_reach_the_bound_as_often_as_it_says(samples: int, often: float) -> None:
    random = np.random.default_rng(5)
    true_db = decibel(math.exp(0.6**2 / 2) * 1e-2)
    kept = 0
    for _ in range(2000):
        signals = random.uniform(0.5, 1.5, samples)
        errors = signals * 1e-2 * np.exp(random.normal(0, 0.6, samples))
        kept += bound_of(list(errors), list(signals)).least_db <= true_db
    assert kept / 2000 == pytest.approx(often, abs=0.02)


def test_the_view_that_reaches_least_counts() -> None:
    random, shares = np.random.default_rng(0), dict.fromkeys(VIEWS, 1.0)
    tally, plain = SampleTally(), Tally(shares)
    for _ in range(4):
        reference = {name: random.normal(size=100).astype(np.float32) for name in "ab"}
        got = {"a": reference["a"] * np.float32(1.1), "b": reference["b"] * np.float32(1 + random.choice([0.01, 0.15]))}
        tally.add(Expected.of(VIEWS, reference, {}), got)
        plain.add(Expected.of(VIEWS, reference, {}), got)
    ratios = plain.ratios()
    found = tally.worst()
    assert found.sqnr_db == pytest.approx(decibel(ratios[VIEWS[1]]))
    assert found.margin_db > 1
    assert found.samples == 4
    assert decibel(ratios[VIEWS[0]]) > found.least_db


def test_where_nothing_has_a_signal_nothing_is_missed() -> None:
    tally = SampleTally()
    zeros = {name: np.zeros(3, np.float32) for name in "ab"}
    tally.add(Expected.of(VIEWS, zeros, {}), zeros)
    assert tally.worst() == Bound(math.inf, 0.0, 1)


def test_errors_are_held_against_what_varies_where_that_is_asked_for() -> None:
    reference = {name: np.ones(4, np.float32) for name in "ab"}
    got = {"a": np.full(4, 1.1, np.float32), "b": reference["b"]}
    plain, varying = SampleTally(), SampleTally({VIEWS[0]: 0.01})
    for tally in (plain, varying):
        tally.add(Expected.of(VIEWS, reference, {}), got)
    assert plain.worst().sqnr_db == pytest.approx(20, abs=1e-3)
    assert varying.worst(margin=False).sqnr_db == pytest.approx(0, abs=1e-3)


def tally_of(ratios: list[float], signals: list[float]) -> SampleTally:
    """One view whose samples have these noise-to-signal ratios."""
    found = SampleTally()
    for ratio, signal in zip(ratios, signals, strict=True):
        value = np.full(1, np.sqrt(signal), np.float32)
        expected = Expected.of(VIEWS[:1], {"a": value}, {})
        found.add(expected, {"a": value + np.float32(np.sqrt(ratio * signal))})
    return found


@pytest.mark.parametrize(
    ("louder", "quieter", "sure"),
    [
        ([0.2, 0.02, 0.002], [0.1, 0.01, 0.001], True),  # figures lie far apart, and all of the same sign
        ([0.2, 0.01, 0.1], [0.1, 0.02, 0.1], False),
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], False),
        ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], False),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], True),
        ([math.inf, 0.1, 0.1], [0.1, 0.1, 0.1], True),
        ([math.inf, 0.1, 0.1], [math.inf, 0.1, 0.1], False),
    ],
)
def test_what_is_louder_on_every_sample_is_surely_louder(louder: list[float], quieter: list[float], sure: bool) -> None:
    signals = [1.0, 2.0, 1.0]
    assert tally_of(louder, signals).surely_louder(tally_of(quieter, signals)) is sure


def test_of_two_that_are_alike_one_is_seldom_called_louder() -> None:
    random = np.random.default_rng(7)
    called = 0
    for _ in range(1000):
        signals = list(random.uniform(0.5, 1.5, 4))
        common = random.normal(0, 0.5, 4)  # what makes a sample loud does so in both
        one, other = (list(1e-2 * np.exp(common + random.normal(0, 0.5, 4))) for _ in range(2))
        called += tally_of(one, signals).surely_louder(tally_of(other, signals))
    assert called < 100  # of few and skewed samples, twice as often as of many
