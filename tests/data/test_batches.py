"""Feeds are joined to batches only where they fit together, and taken apart along a free first axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.data.batches import batched, samples_of
from qcompiler.data.source import open_source
from qcompiler.ir.signature import Feeds, Inputs
from tests.data.samples import F32, I64, same


def test_a_batch_is_taken_apart_only_along_a_free_first_axis() -> None:
    batch = {"x": np.arange(6).reshape(3, 2)}
    free: Inputs = {"x": (np.dtype(np.int64), (None, 2))}
    fixed: Inputs = {"x": (np.dtype(np.int64), (3, 2))}
    assert [one["x"].tolist() for one in samples_of(batch, free)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert [one["x"].shape for one in samples_of(batch, fixed)] == [(3, 2)]
    two: Inputs = {**free, "s": (np.dtype(np.float32), ())}
    assert len(list(samples_of({**batch, "s": np.float32(1)}, two))) == 1  # type: ignore[dict-item]
    uneven = {"x": np.ones((3, 2)), "z": np.ones((2, 2))}
    assert len(list(samples_of(uneven, {"x": free["x"], "z": free["x"]}))) == 1


def test_a_sequence_input_is_passed_on_whole() -> None:
    inputs: Inputs = {"x": (None, None)}
    feed: Any = {"x": [np.ones(2), np.ones(3)]}
    assert list(samples_of(feed, inputs)) == [feed]


def test_feeds_that_differ_in_shape_stay_apart() -> None:
    inputs: Inputs = {"x": (F32, ("batch", "length"))}
    lengths = [3, 3, 4, 4, 4, 3]
    found = list(open_source([{"x": np.ones((1, n), np.float32)} for n in lengths], inputs, batch=2))
    assert [one["x"].shape for one in found] == [(2, 3), (2, 4), (1, 4), (1, 3)]


def test_inputs_with_a_fixed_first_axis_are_not_joined_unless_they_are_one_equal_number() -> None:
    x = np.ones((1, 4), np.float32)
    fixed: Inputs = {"x": (F32, ("batch", 4)), "state": (F32, (1, 2))}
    found = list(open_source([{"x": x, "state": np.ones((1, 2), np.float32)}] * 3, fixed, batch=3))
    assert [one["x"].shape for one in found] == [(1, 4)] * 3
    rate: Inputs = {"x": (F32, ("batch", 4)), "rate": (I64, ())}
    rates = [{"x": x, "rate": np.array(hertz)} for hertz in (8, 8, 16)]
    found = list(open_source(rates, rate, batch=3))
    assert [(one["x"].shape, one["rate"].shape) for one in found] == [((2, 4), ()), ((1, 4), ())]
    found = list(open_source([{"x": x}] * 3, {"x": (F32, (1, 4))}, batch=3))
    assert [one["x"].shape for one in found] == [(1, 4)] * 3


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), max_size=12), st.integers(1, 5))
def test_batches_taken_apart_are_the_samples_in_their_order(sizes: list[tuple[int, int]], size: int) -> None:
    inputs: Inputs = {"x": (F32, ("batch", "length")), "n": (I64, ("batch",))}
    feeds: list[Feeds] = [
        {"x": np.full((rows, length), i, np.float32), "n": np.arange(rows) + 10 * i}
        for i, (rows, length) in enumerate(sizes)
    ]
    joined = list(batched(iter(feeds), size, inputs))
    same(
        [one for feed in joined for one in samples_of(feed, inputs)],
        [one for feed in feeds for one in samples_of(feed, inputs)],
    )
    assert all(len({row[0] for row in feed["x"]}) <= size for feed in joined)


def test_a_feed_that_stays_alone_is_not_copied() -> None:
    feed: Any = {"x": np.ones((1, 4), np.float32)}
    assert list(batched(iter([feed]), 8, {"x": (F32, ("batch", 4))})) == [feed]
    (found,) = batched(iter([feed]), 8, {"x": (F32, ("batch", 4))})
    assert found is feed


def test_nothing_gives_no_batch() -> None:
    assert list(batched(iter([]), 4, {"x": (F32, ("batch",))})) == []


def test_samples_are_views_of_their_batch() -> None:
    batch = {"x": np.zeros((3, 2), np.float32)}
    for one in samples_of(batch, {"x": (F32, (None, 2))}):
        assert np.shares_memory(one["x"], batch["x"])


def test_inputs_of_one_feed_that_count_differently_are_not_joined() -> None:
    inputs: Inputs = {"x": (F32, ("batch", 2)), "n": (I64, ("boxes",))}
    feed: Feeds = {"x": np.ones((1, 2), np.float32), "n": np.arange(2)}
    assert list(batched(iter([feed, feed]), 2, inputs)) == [feed, feed]
    even: Feeds = {"x": np.ones((2, 2), np.float32), "n": np.arange(2)}
    (joined,) = batched(iter([even, even]), 2, inputs)
    assert (joined["x"].shape, joined["n"].tolist()) == ((4, 2), [0, 1, 0, 1])
