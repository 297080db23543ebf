"""Feeds are joined and taken apart along the axes that are known to be a batch, and stay whole where none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.data.batches import NO_BATCH, BatchAxes, batched, samples_of
from qcompiler.ir.signature import Feeds
from tests.data.samples import same

X = BatchAxes({"x": 0})


def test_a_feed_is_taken_apart_along_the_batch_axes_and_stays_whole_without() -> None:
    batch: Feeds = {"x": np.arange(6).reshape(3, 2)}
    assert [one["x"].tolist() for one in samples_of(batch, X)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert [one["x"].tolist() for one in samples_of(batch, BatchAxes({"x": 1}))] == [[[0], [2], [4]], [[1], [3], [5]]]
    (whole,) = samples_of(batch, NO_BATCH)
    assert whole is batch


def test_what_has_no_batch_axis_is_shared_by_all_samples() -> None:
    feed: Any = {"x": np.ones((3, 2)), "table": np.arange(4), "rate": np.array(8), "s": [np.ones(2)], "o": None}
    found = list(samples_of(feed, X))
    assert [one["x"].shape for one in found] == [(1, 2)] * 3
    assert all(one[name] is feed[name] for one in found for name in ("table", "rate", "s", "o"))


@pytest.mark.parametrize(
    "feed",
    [
        {"x": np.ones((3, 2)), "z": np.ones((2, 2))},
        {"x": np.ones((3, 2)), "z": [np.ones(2)] * 3},
        {"x": np.ones((1, 2)), "z": np.ones((1, 2))},
        {"x": np.ones((0, 2)), "z": np.ones((0, 2))},
        {"x": np.ones((3, 2)), "z": np.array(1)},
        {"x": np.ones((3, 2))},
    ],
)
def test_a_feed_whose_inputs_do_not_agree_on_several_samples_is_one(feed: Any) -> None:
    axes = BatchAxes({"x": 0, "z": 0})
    assert axes.count(feed) == 1
    assert list(samples_of(feed, axes)) == [feed]


def test_some_samples_of_a_feed_can_be_taken() -> None:
    feed: Feeds = {"x": np.arange(12).reshape(2, 3, 2), "rate": np.array(8)}
    axes = BatchAxes({"x": 1})
    assert axes.count(feed) == 3
    found = axes.take(feed, [2, 0])
    assert found["x"].tolist() == [[[4, 5], [0, 1]], [[10, 11], [6, 7]]]
    assert found["rate"] is feed["rate"]
    assert not np.shares_memory(found["x"], feed["x"])


def test_feeds_that_differ_in_shape_stay_apart() -> None:
    feeds: list[Feeds] = [{"x": np.ones((1, n))} for n in (3, 3, 4, 4, 4, 3)]
    found = list(batched(iter(feeds), 2, X))
    assert [one["x"].shape for one in found] == [(2, 3), (2, 4), (1, 4), (1, 3)]


def test_what_samples_share_must_be_equal_to_be_joined() -> None:
    feeds: list[Feeds] = [{"x": np.ones((1, 4)), "rate": np.array(hertz)} for hertz in (8, 8, 16)]
    found = list(batched(iter(feeds), 3, X))
    assert [(one["x"].shape, int(one["rate"])) for one in found] == [((2, 4), 8), ((1, 4), 16)]
    sequences: Any = [{"x": np.ones((1, 4)), "s": [np.ones(2)]}] * 2
    assert list(batched(iter(sequences), 2, X)) == sequences
    assert list(batched(iter([{"x": np.ones((1, 4))}] * 2), 2, NO_BATCH)) == [{"x": pytest.approx(np.ones((1, 4)))}] * 2


def test_batches_are_joined_along_any_axis() -> None:
    (found,) = batched(iter([{"x": np.full((4, 1, 2), i)} for i in range(3)]), 8, BatchAxes({"x": 1}))
    assert found["x"].shape == (4, 3, 2)
    assert found["x"][0, :, 0].tolist() == [0, 1, 2]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), max_size=12), st.integers(1, 5))
def test_batches_taken_apart_are_the_samples_in_their_order(sizes: list[tuple[int, int]], size: int) -> None:
    axes = BatchAxes({"x": 0, "n": 0})
    feeds: list[Feeds] = [
        {"x": np.full((rows, length), i, np.float32), "n": np.arange(rows) + 10 * i}
        for i, (rows, length) in enumerate(sizes)
    ]
    joined = list(batched(iter(feeds), size, axes))
    same(
        [one for feed in joined for one in samples_of(feed, axes)],
        [one for feed in feeds for one in samples_of(feed, axes)],
    )
    assert all(len({row[0] for row in feed["x"]}) <= size for feed in joined)


def test_a_feed_that_stays_alone_is_not_copied() -> None:
    feed: Feeds = {"x": np.ones((1, 4), np.float32)}
    (found,) = batched(iter([feed]), 8, X)
    assert found is feed


def test_nothing_gives_no_batch() -> None:
    assert list(batched(iter([]), 4, X)) == []


def test_samples_are_views_of_their_batch() -> None:
    batch: Feeds = {"x": np.zeros((3, 2), np.float32)}
    for one in samples_of(batch, X):
        assert np.shares_memory(one["x"], batch["x"])


def test_inputs_of_one_feed_that_count_differently_are_not_joined() -> None:
    axes = BatchAxes({"x": 0, "n": 0})
    feed: Feeds = {"x": np.ones((1, 2), np.float32), "n": np.arange(2)}
    assert list(batched(iter([feed, feed]), 2, axes)) == [feed, feed]
    even: Feeds = {"x": np.ones((2, 2), np.float32), "n": np.arange(2)}
    (joined,) = batched(iter([even, even]), 2, axes)
    assert (joined["x"].shape, joined["n"].tolist()) == ((4, 2), [0, 1, 0, 1])


def test_axes_say_how_they_are_known() -> None:
    assert NO_BATCH.to_json() == {"axes": {}, "how": "not known"}
    assert BatchAxes({"x": 1}, "run").to_json() == {"axes": {"x": 1}, "how": "run"}
