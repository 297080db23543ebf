"""What accuracy is traded for: multiply-accumulates in high precision, or time where it is known."""

from __future__ import annotations

import pytest

from qcompiler.planning.search.prices import HIGH, Prices
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType

USE = Use(DType.INT8, 1.0)


def test_without_times_high_precision_costs_its_work() -> None:
    prices = Prices({"a": 10, "b": 0}, 40)
    assert prices.of("a", None) == 10
    assert prices.of("a", USE) == 0
    assert prices.of("b", None) == 1  # nothing is free
    assert prices.share({"a": USE, "b": None}) == pytest.approx(0.25)
    assert prices.time({"a": USE, "b": None}) is None


def test_with_times_everything_costs_its_time() -> None:
    prices = Prices({"a": 10}, 10, {"a": {"int8": 2.0, HIGH: 3.0}})
    assert (prices.of("a", USE), prices.of("a", None)) == (2.0, 3.0)
    assert prices.time({"a": None}) == 3.0


def test_by_size_everything_costs_its_bytes() -> None:
    weights = {"a": (100, 200), "b": (7, 14)}
    prices = Prices({"a": 1, "b": 50}, 51, weights=weights, by_size=True)
    assert (prices.of("a", USE), prices.of("a", None), prices.of("b", None)) == (100.0, 200.0, 14.0)
    assert prices.size({"a": USE, "b": None}) == 114
    by_work = Prices({"a": 1, "b": 50}, 51, weights=weights)
    assert (by_work.of("a", None), by_work.size({"a": None, "b": None})) == (1.0, 214)
    assert Prices({"a": 1}, 1).size({"a": None}) is None


def test_a_model_without_work_has_no_share() -> None:
    assert Prices({}, 0).share({}) == 0.0
