"""What is remembered of data that streams by does not depend on its order, its batches or its workers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.data.batches import BatchAxes
from qcompiler.data.samples import Fingerprint, Keep, ShapeRange, fingerprint, loudness, mixed
from qcompiler.data.source import open_source
from qcompiler.ir.signature import Feeds, Inputs
from tests.data.samples import F32, refused, same


def seen(found: Iterable[Feeds]) -> ShapeRange:
    shapes = ShapeRange()
    for one in found:
        shapes.watch(one)
    return shapes


def test_sequences_and_optionals_pass_through_and_can_be_kept() -> None:
    inputs: Inputs = {"s": (None, None), "o": (None, None), "x": (F32, ("batch", 4))}
    x = np.ones((1, 4), np.float32)
    samples: list[Any] = [{"s": [x, x], "o": None, "x": x}, {"s": [x], "o": x, "x": x}, {"s": [x], "o": x, "x": x}]
    found = list(open_source(samples, inputs, batch=2).along(BatchAxes({"x": 0})))
    assert [len(one["s"]) for one in found] == [2, 1, 1]
    keep = Keep(5)
    for feed in found:
        keep.offer(feed)
    assert sorted(len(feed["s"]) for feed in keep.feeds) == [1, 2]
    assert set(seen(found).seen) == {(("x", (1, 4)),), (("o", (1, 4)), ("x", (1, 4)))}
    assert "'random' cannot make" in refused("random", inputs)


ARRAYS = hnp.arrays(st.sampled_from([np.float32, np.int64, np.bool_]), hnp.array_shapes(max_dims=2, max_side=3))
SAMPLES = st.lists(st.fixed_dictionaries({"x": ARRAYS, "y": ARRAYS}), max_size=12)


@given(SAMPLES, st.integers(0, 6), st.randoms(use_true_random=False))
def test_what_is_kept_does_not_depend_on_order_copies_or_workers(
    samples: list[Feeds], k: int, shuffle: random.Random
) -> None:
    whole = Keep(k)
    for feed in samples:
        whole.offer(feed)
    shuffled = [*samples, *samples[:3]]
    shuffle.shuffle(shuffled)
    half, rest = Keep(k), Keep(k)
    for index, feed in enumerate(shuffled):
        (half if index % 2 else rest).offer(feed)
    half.merge(rest)
    same(half.feeds, whole.feeds)
    assert len(whole.feeds) == min(k, len({fingerprint(feed) for feed in samples}))
    assert [fingerprint(feed) for feed in whole.feeds] == sorted(fingerprint(feed) for feed in whole.feeds)


def test_kept_feeds_do_not_change_with_the_buffer_they_came_from() -> None:
    keep, buffer = Keep(1), np.zeros(3)
    keep.offer({"x": buffer})
    buffer[:] = 1
    assert not keep.feeds[0]["x"].any()


def test_fingerprints_see_names_types_shapes_and_values_but_not_order_and_layout() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = fingerprint({"a": x, "b": x})
    assert fingerprint({"b": x, "a": np.asfortranarray(x)}) == base
    others: list[Feeds] = [
        {"a": x, "c": x},
        {"a": x.view(np.int32), "b": x},
        {"a": x.reshape(3, 2), "b": x},
        {"a": -x, "b": x},
        {"a": x},
        {"a": np.array(["t"], object)},
        {"a": np.array(["u"], object)},
    ]
    assert len({base, *(fingerprint(other) for other in others)}) == len(others) + 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1), st.randoms(use_true_random=False))
def test_shapes_are_remembered_together_whatever_their_order(
    shapes: list[tuple[int, int]], shuffle: random.Random
) -> None:
    def feed(shape: tuple[int, int]) -> Feeds:
        return {"x": np.zeros((*shape, 3)), "ids": np.zeros(shape[1])}

    found = seen(map(feed, shapes)).seen
    one, two = ShapeRange(), ShapeRange()
    for index, shape in enumerate(shuffle.sample(shapes, len(shapes))):
        (one if index % 3 else two).watch(feed(shape))
    one.merge(two)
    assert one.seen == found
    assert found == Counter((("ids", (length,)), ("x", (rows, length, 3))) for rows, length in shapes)


@settings(max_examples=25)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_fingerprint_of_all_data_does_not_depend_on_its_order(samples: list[Feeds], shuffle: random.Random) -> None:
    def of(feeds: Iterable[Feeds]) -> Fingerprint:
        found = Fingerprint()
        for feed in feeds:
            found.add(feed)
        return found

    whole = of(samples)
    assert str(of(shuffle.sample(samples, len(samples)))) == str(whole)
    assert whole.feeds == len(samples)
    assert len(str(whole)) == 64
    if samples:
        assert str(of(samples[1:])) != str(whole)
        assert str(of([*samples, samples[0]])) != str(whole)  # how often a sample comes counts


def test_no_samples_are_kept_where_none_are_wanted() -> None:
    keep = Keep(0)
    keep.offer({"x": np.ones(2)})
    assert keep.feeds == []


def test_the_loudest_samples_come_first_and_every_fourth() -> None:
    samples: list[Feeds] = [{"x": np.full((1, 4), 2.0**i, np.float32), "n": np.array([i])} for i in range(12)]
    assert [loudness(one) for one in samples] == list(range(12))
    assert loudness({"n": np.array([3])}) == 0
    loud, quiet = Keep(8, key=loudness), Keep(8)
    for one in random.Random(0).sample(samples, 12):
        loud.offer(one)
        quiet.offer(one)
    assert [int(one["n"][0]) for one in loud.feeds] == list(range(11, 3, -1))
    found = mixed(loud.feeds, quiet.feeds, 8)
    assert len({fingerprint(one) for one in found}) == 8
    assert int(found[0]["n"][0]) == 11
    assert [fingerprint(one) for one in found[1:4]] == [fingerprint(one) for one in quiet.feeds[:3]]
