"""The data is dealt by content: exact shares, each sample in one part, whatever the order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from qcompiler.data.batches import BatchAxes
from qcompiler.data.deal import Parts, deal
from qcompiler.data.samples import fingerprint
from qcompiler.data.source import Source, open_source
from qcompiler.errors import DataError
from qcompiler.ir.signature import Feeds
from tests.data.samples import INPUTS, feeds


def prints(source: Source | None) -> set[bytes]:
    return set() if source is None else {fingerprint(feed) for feed in source}


def parts_of(samples: list[Feeds], *, judged_apart: bool = False) -> Parts:
    return deal(open_source(samples, INPUTS), judged_apart=judged_apart)


@pytest.mark.parametrize(
    ("count", "apart", "expected"),
    [
        (1, False, (1, 0, 0)), (3, False, (3, 0, 0)), (4, False, (3, 0, 1)), (7, False, (6, 0, 1)),
        (8, False, (4, 2, 2)), (15, False, (9, 3, 3)), (16, False, (10, 3, 3)), (64, False, (38, 13, 13)),
        (100, False, (60, 20, 20)),
        (3, True, (3, 0, 0)), (4, True, (3, 1, 0)), (100, True, (75, 25, 0)),
    ],
)  # fmt: skip
def test_shares(count: int, apart: bool, expected: tuple[int, int, int]) -> None:
    found = parts_of(feeds(count), judged_apart=apart)
    assert found.samples == expected
    assert tuple(len(prints(one)) for one in (found.calibrate, found.choose, found.judge)) == expected
    assert found.to_json() == dict(zip(("calibrate", "choose", "judge"), expected, strict=True))


def test_every_sample_is_in_one_part_and_order_changes_none() -> None:
    samples = feeds(40)
    found = parts_of(samples)
    shuffled = parts_of(random.Random(1).sample(samples, len(samples)))
    each = [prints(one) for one in (found.calibrate, found.choose, found.judge)]
    assert each == [prints(one) for one in (shuffled.calibrate, shuffled.choose, shuffled.judge)]
    assert set.union(*each) == {fingerprint(feed) for feed in samples}
    assert all(not one & other for one, other in itertools.combinations(each, 2))


def test_equal_samples_stay_together() -> None:
    found = parts_of([*feeds(20), *feeds(20)])
    assert sum(found.samples) == 40
    assert found.judge is not None
    assert len(list(found.judge)) == found.samples[2] == 2 * len(prints(found.judge))


@pytest.mark.parametrize("batch", [None, 3])
def test_each_feed_of_a_part_knows_its_place_in_the_whole(batch: int | None) -> None:
    samples = feeds(20)
    whole = open_source(samples, INPUTS, batch=batch).along(BatchAxes(dict.fromkeys(INPUTS, 0)))
    parts = deal(whole)
    for part in (parts.calibrate, parts.choose, parts.judge):
        assert part is not None
        for index, feed in enumerate(part):
            assert_first(feed, samples[part.place(index)])


def assert_first(feed: Feeds, sample: Feeds) -> None:
    for name, value in sample.items():
        np.testing.assert_array_equal(feed[name][: len(value)], value)


def test_batches_are_made_within_a_part() -> None:
    found = deal(open_source(feeds(20), INPUTS, batch=4).along(BatchAxes({"x": 0, "n": 0})))
    assert [len(feed["x"]) for feed in found.calibrate] == [4, 4, 4]
    assert found.samples == (12, 4, 4)


def test_data_that_is_made_anew_each_time_is_refused() -> None:
    rng = np.random.default_rng(0)

    def made() -> Iterator[Feeds]:
        for _ in range(20):
            yield {"x": rng.standard_normal((1, 4), np.float32), "n": np.array([1])}

    found = deal(open_source(made, INPUTS))
    with pytest.raises(DataError, match="with a fixed random seed"):
        list(found.calibrate)


def test_parts_can_be_read_in_another_way() -> None:
    found = parts_of(feeds(20)).through(lambda source: Source(f"{source.name} twice", lambda: source, INPUTS))
    assert found.calibrate.name.endswith("twice")
    assert [one.name for one in found.rest] == ["a list of samples twice"] * 2
    assert found.samples == (12, 4, 4)


def test_each_part_has_its_share_of_the_loud_samples_and_the_loudest_judges() -> None:
    scales = np.geomspace(1, 1024, 50)
    samples = [{"x": np.full((1, 4), scale, np.float32), "n": np.array([i])} for i, scale in enumerate(scales)]
    found = parts_of(random.Random(2).sample(samples, len(samples)))
    assert found.choose is not None
    assert found.judge is not None
    parts = [sorted(int(feed["n"][0]) for feed in one) for one in (found.calibrate, found.choose, found.judge)]
    assert (parts[2][-1], parts[1][-1], parts[0][-1]) == (49, 48, 47)
    for part, share in zip(parts, (3, 1, 1), strict=True):
        assert [sum(low <= one < low + 5 for one in part) for low in range(0, 50, 5)] == [share] * 10


def test_few_large_feeds_are_dealt_by_their_samples() -> None:
    whole = feeds(60)
    batches: list[Feeds] = [
        {name: np.concatenate([one[name] for one in whole[i : i + 30]]) for name in INPUTS} for i in (0, 30)
    ]
    axes = BatchAxes({"x": 0, "n": 0}, "told")
    found = deal(open_source(batches, INPUTS).along(axes))
    assert found.samples == (36, 12, 12)
    assert found.apart
    assert [len(feed["x"]) for feed in found.calibrate] == [30, 6]
    assert not parts_of(whole).apart
    assert deal(open_source(batches, INPUTS)).samples == (2, 0, 0)  # no batch axis is known
