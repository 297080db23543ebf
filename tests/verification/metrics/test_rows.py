"""Samples of a batch, each answered by another model: where they lie is seen, and what has none is left whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from qcompiler.errors import ModelError, UsageError
from qcompiler.verification.metrics.halves import CHOOSING, CHUNKS, JUDGING, MetricHalves
from qcompiler.verification.metrics.rows import BatchRows

RNG = np.random.default_rng(11)
X = RNG.standard_normal((16, 3)).astype(np.float32)
Answer = Mapping[str, Any]


def batched(feeds: Mapping[str, Any]) -> Answer:
    return {"y": 2 * feeds["x"], "kind": feeds["x"].argmax(1)}


def inner(feeds: Mapping[str, Any]) -> Answer:
    """The samples lie on the second axis."""
    return {"y": np.tanh(feeds["x"]).T}


def test_the_axis_of_the_samples_is_seen_for_each_output() -> None:
    assert BatchRows.of(batched, {"x": X}) == BatchRows(frozenset({"x"}), {"y": 0, "kind": 0})
    assert BatchRows.of(inner, {"x": X}) == BatchRows(frozenset({"x"}), {"y": 1})


def test_inputs_that_all_samples_share_stay_as_they_are() -> None:
    def scaled(feeds: Mapping[str, Any]) -> Answer:
        return {"y": feeds["x"] * feeds["scale"]}

    shared = {"x": X, "scale": np.array([1, 2, 3], np.float32)}
    assert BatchRows.of(scaled, shared) == BatchRows(frozenset({"x"}), {"y": 0})


@pytest.mark.parametrize(
    "model",
    [
        lambda feeds: {"y": feeds["x"].mean(axis=0)},
        lambda feeds: {"y": np.cumsum(feeds["x"], axis=0)},
        lambda feeds: {"y": feeds["x"], "found": feeds["x"][feeds["x"] > 0]},
    ],
    ids=["a mean over all", "time on the first axis", "what was detected in all of them"],
)
def test_what_is_no_batch_is_not_taken_apart(model: Callable[[Mapping[str, Any]], Answer]) -> None:
    assert BatchRows.of(model, {"x": X}) is None


def test_one_sample_and_nothing_have_no_rows() -> None:
    assert BatchRows.of(batched, {"x": X[:1]}) is None
    assert BatchRows.of(batched) is None


def test_an_order_that_the_model_refuses_is_the_only_one() -> None:
    def ordered(feeds: Mapping[str, Any]) -> Answer:
        if (np.diff(feeds["x"]) < 0).any():
            raise ModelError("offsets must rise")
        return {"y": feeds["x"]}

    assert BatchRows.of(ordered, {"x": np.arange(4.0)}) is None


def test_answers_are_mixed_sample_by_sample() -> None:
    rows = BatchRows.of(inner, {"x": X[:3]})
    assert rows is not None
    found = rows.mixed({"y": np.zeros((3, 3))}, {"y": np.ones((3, 3))}, [False, True, True])
    np.testing.assert_array_equal(found["y"], [[0, 1, 1]] * 3)
    with pytest.raises(UsageError, match="'y' has the shape"):
        rows.mixed({"y": np.zeros((3, 3))}, {"y": np.ones((3, 4))}, [True, False, False])


def mean_of(*sizes: int) -> Callable[[Callable[[Mapping[str, Any]], Any]], float]:
    """A metric of so many batches, whose score is a mean over all samples."""
    starts = [int(at) for at in np.cumsum([0, *sizes])]

    def metric(run: Callable[[Mapping[str, Any]], Any]) -> float:
        return float(np.concatenate([run({"x": WHOLE[at:end]})["y"] for at, end in pairwise(starts)]).mean())

    return metric


WHOLE = np.abs(RNG.standard_normal((64, 3))).astype(np.float32)


def float_model(feeds: Mapping[str, Any]) -> Answer:
    return {"y": feeds["x"].sum(axis=1)}


def wrong(samples: Any) -> Callable[[Mapping[str, Any]], Answer]:
    """A quantized model that gives 0 for some samples."""
    keys = {WHOLE[at].tobytes() for at in samples}

    def run(feeds: Mapping[str, Any]) -> Answer:
        found = float_model(feeds)["y"]
        found[[row.tobytes() in keys for row in feeds["x"]]] = 0
        return {"y": found}

    return run


@pytest.mark.parametrize("sizes", [(64,), (32, 32), (40, 20, 4), (9, 9, 9, 9, 9, 9, 10)], ids=str)
def test_few_large_batches_are_split_between_samples(sizes: tuple[int, ...]) -> None:
    halves = MetricHalves(mean_of(*sizes), float_model)
    assert halves.why == ""
    choosing = [at for at in range(64) if at * CHUNKS // 64 in CHOOSING]
    judging = [at for at in range(64) if at * CHUNKS // 64 in JUDGING]
    assert halves.loss(wrong(judging)).whole == 0
    assert halves.loss(wrong(choosing), JUDGING).whole == 0
    found = halves.loss(wrong(choosing))
    assert found.split
    assert found.margin is not None
    score = halves.score(wrong(choosing))
    assert score.halves is not None
    assert score.halves["choosing_loss"] == pytest.approx(score.drop)
    assert score.halves["judging_loss"] == 0


def test_a_batch_of_few_samples_is_told_to_be_in_sample() -> None:
    halves = MetricHalves(mean_of(4, 3), float_model)
    assert "runs the model on 7 parts" in halves.why
    assert not halves.loss(wrong([0])).split


def test_what_cannot_be_taken_apart_says_so() -> None:
    halves = MetricHalves(mean_of(64), lambda feeds: {"y": np.cumsum(feeds["x"].sum(axis=1))})
    assert "1 parts of its data with no batch that could be taken apart" in halves.why
