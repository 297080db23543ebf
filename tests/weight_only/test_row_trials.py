"""Rows to fit to and rows to judge by: never the same, where the data has others."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.data.batches import BatchAxes
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.statistics.observe import Observations
from qcompiler.weight_only.row_trials import CROSS_FITTED, HELD_OUT, IN_SAMPLE, RowTrials, deal, record
from tests.kit.rewrite import model, to_graph

BATCH = BatchAxes({"x": 0}, "told")
SAMPLES: list[Feeds] = [{"x": np.full((1, 4, 8), number, np.float32)} for number in range(12)]


def network() -> models.Model:
    proto = model(("Relu", "x", "y"), inputs={"x": ("batch", "rows", 8)}, outputs=("y",))
    return models.Model(to_graph(proto), {}, None, 8)


def of(source: list[Feeds], kept: list[Feeds], held: list[Feeds]) -> RowTrials:
    observed = Observations(axes=BATCH, kept=tuple(kept), held=tuple(held), feeds=len(source))
    return record(network(), {"y": -1}, deal(source, observed))["y"]


def numbers(values: object) -> set[float]:
    return set(np.asarray(values).ravel().tolist())


def test_what_is_held_out_judges() -> None:
    found = of(SAMPLES[:8], SAMPLES[:8], SAMPLES[8:])
    (trial,) = found.trials
    assert found.how == HELD_OUT
    assert numbers(trial.fitted.values) == numbers(found.rows.values) == set(range(8))
    assert numbers(trial.judge.values) == {8, 9, 10, 11}


def test_without_it_one_half_of_the_samples_judges_the_other() -> None:
    found = of(SAMPLES, SAMPLES, [])
    assert found.how == CROSS_FITTED
    assert numbers(found.rows.values) == set(range(12))
    for trial in found.trials:
        assert numbers(trial.fitted.values).isdisjoint(numbers(trial.judge.values))
        assert len(numbers(trial.judge.values)) == 6
    one, two = found.trials
    assert numbers(one.judge.values) == numbers(two.fitted.values)


def test_neither_order_nor_batches_change_the_halves() -> None:
    batch = {"x": np.concatenate([one["x"] for one in SAMPLES])}
    first = of(SAMPLES, SAMPLES, [])
    for other in (of(SAMPLES[::-1], SAMPLES, []), of([batch], SAMPLES, [])):
        for mine, theirs in zip(first.trials, other.trials, strict=True):
            assert numbers(mine.judge.values) == numbers(theirs.judge.values)


def test_many_samples_in_few_feeds_are_dealt_by_feed() -> None:
    batches = [{"x": np.concatenate([one["x"] for one in SAMPLES[at : at + 4]])} for at in (0, 4, 8)]
    dealt = deal(batches, Observations(axes=BATCH, kept=tuple(SAMPLES[:2]), feeds=3))
    assert sorted(len(feed["x"]) for feed in dealt.fitting) == [4, 4, 4]
    assert dealt.how == CROSS_FITTED


def test_a_single_sample_is_cut_and_its_figures_are_in_sample() -> None:
    single: Feeds = {"x": np.arange(10, dtype=np.float32).repeat(8).reshape(1, 10, 8)}
    found = of([single], [single], [])
    assert found.how == IN_SAMPLE
    assert [numbers(trial.judge.values) for trial in found.trials] == [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}]


def test_a_single_row_judges_itself_and_that_is_said() -> None:
    row: Feeds = {"x": np.ones((1, 1, 8), np.float32)}
    found = of([row], [row], [])
    assert found.how == IN_SAMPLE
    assert len(found.trials) == 1


def test_scales_divide_all_rows() -> None:
    found = of(SAMPLES, SAMPLES, [])
    scales = np.arange(1, 9, dtype=np.float32)
    divided = found.divided(scales)
    np.testing.assert_array_equal(divided.rows.values, found.rows.values / scales)
    np.testing.assert_array_equal(divided.trials[1].judge.values, found.trials[1].judge.values / scales)
    assert found.divided(None) is found


@pytest.mark.parametrize("held", [[], SAMPLES[8:]])
def test_what_no_sample_reaches_is_not_there(held: list[Feeds]) -> None:
    observed = Observations(axes=BATCH, kept=tuple(SAMPLES[:8]), held=tuple(held), feeds=8)
    assert record(network(), {}, deal(SAMPLES[:8], observed)) == {}
