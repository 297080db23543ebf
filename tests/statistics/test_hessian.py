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
from qcompiler.runtime.stream import Part
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


def joined(found: Iterator[dict[str, tuple[hessian.Moments, ...]]]) -> dict[str, NDArray[np.float64]]:
    """Of all folds together."""
    return {name: sum(folds[1:], folds[0]).hessian for part in found for name, folds in part.items()}


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


@pytest.mark.parametrize("folds", [hessian.Folds(2), hessian.Folds(3), hessian.Folds(2, by_rows=True)])
def test_folds_are_parts_of_the_whole(folds: hessian.Folds, network: models.Model) -> None:
    whole = joined(hessian.hessians(network, DEPTHS, feeds()))
    (found,) = hessian.hessians(network, DEPTHS, feeds(), folds=folds)
    for name, parts in found.items():
        assert len(parts) == folds.count
        assert all(part.rows > 0 for part in parts)
        assert sum(part.rows for part in parts) == sum(one["x"].shape[0] * one["x"].shape[1] for one in feeds())
        together = sum(parts[1:], parts[0]).hessian
        np.testing.assert_allclose(together, whole[name], rtol=1e-4, atol=1e-5 * np.abs(whole[name]).max())


def test_a_sample_is_in_one_fold_only(network: models.Model) -> None:
    (found,) = hessian.hessians(network, {"h": 20}, feeds(), folds=hessian.Folds(2))
    for fold, part in enumerate(found["h"]):
        np.testing.assert_allclose(part.hessian, exact(network, feeds()[fold::2])["h"], rtol=1e-5, atol=1e-3)


def test_folds_count_in_the_budget() -> None:
    assert hessian.batches({"a": 1, "b": 2}, 8 * 5) == [["a", "b"]]
    assert hessian.batches({"a": 1, "b": 2}, 8 * 5, folds=2) == [["a"], ["b"]]


def test_padding_is_no_row(network: models.Model) -> None:
    x = np.random.default_rng(4).standard_normal((2, 9, 12)).astype(np.float32)
    mask = np.ones((2, 9), np.int64)
    mask[1, 4:] = 0
    seen = hessian.Hessians({"x": 12})
    seen.update(Part(0, {"x": x, "attention_mask": mask}, {"x": x}, last=True))
    kept = x[mask == 1].astype(np.float64)
    assert seen.moments("x").rows == len(kept) == 13
    np.testing.assert_allclose(seen.moments("x").hessian, kept.T @ kept, rtol=1e-5)


def moments(x: NDArray[Any], each: int) -> hessian.Moments:
    """Of rows [n, K] that come in samples of some rows."""
    seen = hessian.Hessians({"x": x.shape[1]})
    for index, start in enumerate(range(0, len(x), each)):
        part = x[None, start : start + each].astype(np.float32)
        seen.update(Part(index, {}, {"x": part}, last=True))
    return seen.moments("x")


def test_what_is_all_chance_is_shrunk_away_and_what_is_sure_stays() -> None:
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((16, 64))
    white, mixed = rng.standard_normal((4096, 64)), rng.standard_normal((4096, 16)) @ mix
    assert moments(white, 8).shrinkage > 0.95
    shares = [moments(mixed[:rows], 8).shrinkage for rows in (16, 64, 256, 4096)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.3
    assert shares[-1] < 0.01


def test_rows_of_a_sample_that_are_all_alike_count_as_one() -> None:
    rng = np.random.default_rng(6)
    few = rng.standard_normal((32, 16)) @ rng.standard_normal((16, 64))
    assert moments(np.repeat(few, 8, axis=0), 8).shrinkage == pytest.approx(moments(few, 1).shrinkage, rel=1e-3)


def test_samples_of_many_lengths_that_agree_leave_nothing_to_chance() -> None:
    row = np.random.default_rng(7).standard_normal(8).astype(np.float32)
    seen = hessian.Hessians({"x": 8})
    for index, length in enumerate((3, 50, 7, 20)):
        seen.update(Part(index, {}, {"x": np.tile(row, (1, length, 1))}, last=True))
    assert seen.moments("x").shrinkage == pytest.approx(0.0, abs=1e-5)


def test_of_a_single_piece_only_the_number_of_rows_is_known() -> None:
    x = np.random.default_rng(8).standard_normal((24, 8))
    assert moments(x, 24).shrinkage == pytest.approx(8 / (8 + 24))
    assert hessian.Hessians({"x": 8}).moments("x").shrinkage == 1.0
