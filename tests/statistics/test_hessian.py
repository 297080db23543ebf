"""Hessians of activations: sums of x·xᵀ over all rows of the data, streamed, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import DataError
from qcompiler.ir import model as models
from qcompiler.runtime.session import Session
from qcompiler.statistics import hessian
from tests.kit.rewrite import model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


DEPTHS = {"x": 12, "h": 20, "r": 20}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    """x [batch, rows, 12] → h → r [batch, rows, 20] → y."""
    rng = np.random.default_rng(0)
    path: Path = tmp_path_factory.mktemp("hessian") / "m.onnx"
    weights = {"w1": rng.standard_normal((12, 20)), "w2": rng.standard_normal((20, 8))}
    proto = model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("batch", "rows", 12)},
        weights={name: value.astype(np.float32) for name, value in weights.items()},
    )
    onnx.save(proto, path)
    return models.load(path)


def feeds(count: int = 5) -> list[Feeds]:
    """Samples of different shapes, one of more rows than are multiplied at a time, with a token that spikes."""
    rng = np.random.default_rng(1)
    found: list[Feeds] = []
    for index in range(count):
        x = rng.standard_normal((1 + index % 2, 700 if index == 1 else 30 + index, 12)).astype(np.float32)
        x[0, 0, 3] = 300
        found.append({"x": x})
    return found


def exact(network: models.Model, samples: list[Feeds]) -> dict[str, NDArray[np.float64]]:
    session = Session(network, outputs=["h", "r"])
    sums = {name: np.zeros((depth, depth)) for name, depth in DEPTHS.items()}
    for feed in samples:
        for name, value in {**feed, **session.run(feed)}.items():
            rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
            sums[name] += rows.T @ rows
    return sums


def joined(found: Iterator[dict[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {name: one for part in found for name, one in part.items()}


@pytest.mark.parametrize("budget", [0, 8 * (12 * 12 + 20 * 20), hessian.BUDGET], ids=["one", "two", "all at a time"])
def test_it_is_the_sum_over_all_rows_of_all_samples(budget: int, network: models.Model) -> None:
    found = joined(hessian.hessians(network, DEPTHS, feeds(), budget=budget))
    assert list(found) == list(DEPTHS)
    for name, wanted in exact(network, feeds()).items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        np.testing.assert_array_equal(found[name], found[name].T)


def test_the_data_runs_once_for_each_group_and_no_more_than_the_budget_is_held(network: models.Model) -> None:
    runs: list[int] = []
    parts = hessian.hessians(network, DEPTHS, feeds(), budget=8 * (12 * 12 + 20 * 20), advance=runs.append)
    assert [list(part) for part in parts] == [["x", "h"], ["r"]]
    assert runs == [1] * 2 * len(feeds())


@pytest.mark.parametrize(
    ("budget", "groups"), [(0, [["a"], ["b"], ["c"]]), (8 * 5, [["a", "b"], ["c"]]), (1 << 20, [["a", "b", "c"]])]
)
def test_at_least_one_is_summed_at_a_time(budget: int, groups: list[list[str]]) -> None:
    assert hessian.batches({"a": 1, "b": 2, "c": 40}, budget) == groups


def test_samples_add_up(network: models.Model) -> None:
    few, rest = (joined(hessian.hessians(network, DEPTHS, part)) for part in (feeds()[:2], feeds()[2:]))
    for name, whole in joined(hessian.hessians(network, DEPTHS, feeds())).items():
        np.testing.assert_allclose(few[name] + rest[name], whole, rtol=1e-9, atol=1e-6)
        assert np.trace(few[name]) < np.trace(whole)


def test_nothing_is_given_out_of_a_run_that_is_interrupted(network: models.Model) -> None:
    def until_somebody_stops_it() -> Iterator[Feeds]:
        yield from islice(feeds(), 2)
        raise KeyboardInterrupt

    runs: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        next(hessian.hessians(network, DEPTHS, until_somebody_stops_it(), advance=runs.append))
    assert runs == [1, 1]


def test_a_sample_that_does_not_fit_is_named(network: models.Model) -> None:
    with pytest.raises(DataError, match=r"x float32\[1, 4, 11\]"):
        joined(hessian.hessians(network, {"h": 20}, [{"x": np.ones((1, 4, 11), np.float32)}]))


def test_recorded_rows_count_as_often_as_they_stand_for() -> None:
    rng = np.random.default_rng(2)
    rows, counts = rng.standard_normal((9, 6)).astype(np.float32), rng.integers(1, 5, 9).astype(np.float32)
    repeated = np.repeat(rows, counts.astype(int), axis=0).astype(np.float64)
    np.testing.assert_allclose(hessian.of_rows(rows, counts), repeated.T @ repeated, rtol=1e-5, atol=1e-5)


def test_the_error_is_that_of_the_outputs_relative_to_their_power() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((50, 6)).astype(np.float32), rng.standard_normal((6, 4)).astype(np.float32)
    gap = 0.1 * rng.standard_normal((6, 4)).astype(np.float32)
    wanted = np.sum((x @ gap) ** 2) / np.sum((x @ w) ** 2)
    assert hessian.error(w, hessian.of_rows(x, np.ones(50, np.float32)), gap) == pytest.approx(float(wanted), rel=1e-4)
    assert hessian.error(np.zeros_like(w), np.eye(6), gap) == 0.0
