"""What values inputs get: figures of all elements, whatever the order and the batches, and how many samples differ."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qcompiler.data.batches import BatchAxes
from qcompiler.data.spread import ENOUGH, Spreads

X = (np.random.default_rng(0).standard_normal((40, 5)) * 3 + 1000).astype(np.float32)


def watched(*feeds: dict[str, np.ndarray]) -> Spreads:
    spreads = Spreads(BatchAxes({"x": 0}))
    for feed in feeds:
        spreads.watch(feed)
    return spreads


def test_figures_are_those_of_all_elements_together() -> None:
    found = watched(*({"x": X[i : i + 1]} for i in range(40))).found()["x"]
    assert (found.kind, found.bits, found.count) == ("f", 32, 200)
    assert (found.minimum, found.maximum) == (X.min(), X.max())
    assert found.mean == pytest.approx(X.astype(np.float64).mean(), rel=1e-9)
    assert found.std == pytest.approx(X.astype(np.float64).std(), rel=1e-9)


def test_kurtosis_tells_how_much_single_elements_count() -> None:
    noise = np.random.default_rng(1).standard_normal((1, 20_000)).astype(np.float32)
    spreads = Spreads()
    spreads.watch({"noise": noise + 5, "spike": np.eye(1, 1000, dtype=np.float32)})
    assert spreads.found()["noise"].kurtosis == pytest.approx(3, rel=0.05)
    assert spreads.found()["spike"].kurtosis == pytest.approx(1000, rel=0.01)


def test_order_and_batches_change_nothing_that_is_told() -> None:
    first = watched(*({"x": X[i : i + 1]} for i in range(40))).found()["x"].to_json()
    other = watched({"x": X[30:]}, {"x": X[:30]}).found()["x"].to_json()
    assert first == other
    assert json.loads(json.dumps(first))["elements"] == 200


def test_large_arrays_are_added_up_in_parts() -> None:
    large = np.arange(600_001, dtype=np.float32).reshape(1, -1)
    found = watched({"x": large}).found()["x"]
    assert (found.count, found.minimum, found.maximum) == (600_001, 0, 600_000)
    assert found.mean == pytest.approx(300_000)


def test_what_is_no_number_or_not_finite_or_empty_is_left_out() -> None:
    x = np.array([[1, np.inf, 3, np.nan, 2]], np.float32)
    spreads = Spreads()
    spreads.watch({"x": x, "text": np.array(["a"], object), "flag": np.array([True]), "none": np.empty((0, 2), "f")})
    found = spreads.found()
    assert list(found) == ["x"]
    assert (found["x"].count, found["x"].maximum) == (3, 3)


def test_a_constant_has_no_spread() -> None:
    assert watched({"x": np.full((1, 5), 0.1, np.float32)}).found()["x"].std == 0.0


def test_different_samples_are_counted_also_out_of_batches_up_to_enough() -> None:
    assert watched().different == 0
    assert watched({"x": X[:1]}, {"x": X[:1]}, {"x": X[1:4]}).different == 4
    assert watched({"x": X}).different == ENOUGH
