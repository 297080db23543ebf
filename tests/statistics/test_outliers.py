"""Outliers of activations: what they are by definition, and that order, batching and workers do not change a bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from qcompiler.data.samples import fingerprint
from qcompiler.ir.signature import Feeds
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.outliers import FOLDS, TOP, Outliers, Tokens, fold_of, kurtosis, records, top_channels
from tests.kit.planning.probing import feeds

RNG = np.random.default_rng(7)
# Few different values, so that ties are the rule
VALUES = st.floats(-4, 4, width=32).map(lambda x: np.float32(round(x)))


def seen(*values: NDArray[Any], axis: int = -1, feeds: list[Feeds] | None = None, **options: Any) -> Outliers:
    found = Outliers(axis)
    for i, value in enumerate(values):
        found.update(value, None if feeds is None else Tokens(feeds[i]), **options)
    return found


def sequences(count: int, length: int = 12, width: int = 16) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Activations [count, length, width] with one loud channel, and ids [count, length]."""
    x = RNG.standard_normal((count, length, width)).astype(np.float32)
    x[..., 5] *= 30
    return x, RNG.integers(0, 50, (count, length))


def test_channels_and_ratio_are_those_of_the_definition() -> None:
    x, _ = sequences(6)
    x[2, 7] *= 100
    found = seen(x)
    tokens = np.abs(x).max(axis=2)
    ratios = [float(a.max()) / float(np.median(a.astype(np.float64))) for a in tokens]
    assert found.channels.dtype == np.float32
    assert np.array_equal(found.channels, np.abs(x).max(axis=(0, 1)))
    assert found.ratio == pytest.approx(np.mean(ratios), rel=1e-12)
    assert (found.worst_ratio, found.samples) == (max(ratios), 6)
    assert (found.top[0].position, found.top[0].value) == (7, tokens.max())


def test_maps_have_their_channels_on_axis_1_and_pixels_as_positions() -> None:
    x = RNG.standard_normal((3, 8, 5, 7)).astype(np.float32)
    x[1, 6, 2, 3] = -400
    found = seen(x, axis=1)
    pixels = np.abs(x).max(axis=1).reshape(3, 35)
    ratios = [float(a.max()) / float(np.median(a.astype(np.float64))) for a in pixels]
    assert np.array_equal(found.channels, np.abs(x).max(axis=(0, 2, 3)))
    assert found.ratio == pytest.approx(np.mean(ratios), rel=1e-12)
    assert (found.top[0].position, found.top[0].channel, found.top[0].value) == (2 * 7 + 3, 6, 400)
    assert found.top[0].id is None


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -2])
def test_any_axis_gives_what_the_same_channels_at_the_end_give(axis: int) -> None:
    x = RNG.standard_normal((4, 6, 5, 3)).astype(np.float32)
    moved = np.moveaxis(x, axis, -1)
    assert np.array_equal(seen(x, axis=axis).channels, np.abs(moved).max(axis=(0, 1, 2)))
    assert seen(x, axis=axis) == seen(np.ascontiguousarray(moved))


@pytest.mark.parametrize("shape", [(70, 90), (3, 80, 33), (2, 40, 9, 11), (4, 65, 1), (8200,), (1, 1, 5000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_compiled_and_numpy_are_equal_to_the_bit(shape: tuple[int, ...], dtype: Any) -> None:
    x = (RNG.standard_normal(shape) * 10.0 ** RNG.integers(-3, 3, shape)).astype(dtype)
    for axis in {-1, 1 if len(shape) > 2 else -1}:
        one, other = seen(x, axis=axis, compiled=True), seen(x, axis=axis, compiled=False)
        assert one == other
        assert np.array_equal(one.channels, np.abs(x).astype(np.float32).max(axis=_others(shape, axis)))


def _others(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


@settings(max_examples=40)
@given(arrays.arrays(np.float32, (6, 4, 5), elements=VALUES), st.permutations(range(6)), st.integers(1, 5))
def test_order_batches_and_merging_change_nothing(x: NDArray[np.float32], order: list[int], cut: int) -> None:
    ids = (np.abs(x).sum(axis=2) % 3).astype(np.int64)
    feeds: list[Feeds] = [{"input_ids": ids[i : i + 1]} for i in range(6)]
    batch: Feeds = {"input_ids": ids}
    whole = Outliers()
    whole.update(x, Tokens(batch, feeds))
    singles = seen(*(x[i : i + 1] for i in order), feeds=[feeds[i] for i in order])
    assert singles == whole
    parts = (order[:cut], order[cut:])
    first, second = (seen(*(x[i : i + 1] for i in part), feeds=[feeds[i] for i in part]) for part in parts)
    other = seen(*(x[i : i + 1] for i in parts[1]), feeds=[feeds[i] for i in parts[1]])
    other.merge(first)
    first.merge(second)
    assert first == other == whole
    assert (first.ratio, first.worst_ratio) == (whole.ratio, whole.worst_ratio)


def test_flattened_batches_are_taken_apart_by_the_ids() -> None:
    x, ids = sequences(5)
    flat = Outliers()
    flat.update(x.reshape(-1, 16), Tokens({"input_ids": ids}))
    assert flat == seen(x, feeds=[{"input_ids": ids}])
    without = Outliers()
    without.update(x.reshape(-1, 16), Tokens({"x": x}, [{"x": one[None]} for one in x]))
    assert without.ratio == flat.ratio
    assert seen(x.reshape(-1, 16)).samples == 1


def test_top_tokens_have_position_id_and_the_feed_they_are_from() -> None:
    x, ids = sequences(4)
    x[3, 9, 2] = -5000
    feeds: list[Feeds] = [{"input_ids": one[None], "token_type_ids": one[None] * 0} for one in ids]
    found = Outliers()
    found.update(x, Tokens({"token_type_ids": ids * 0, "input_ids": ids}, feeds))
    first = found.top[0]
    assert (first.value, first.position, first.channel, first.id) == (5000, 9, 2, ids[3, 9])
    assert first.sample == fingerprint(feeds[3]).hex()[:12]
    assert len(found.top) == TOP
    values = np.sort(np.abs(x).max(axis=2).max(axis=0))[::-1]
    assert [one.value for one in found.top] == sorted((one.value for one in found.top), reverse=True)
    assert found.top[1].value == values[1]


def test_a_position_is_listed_once_with_its_largest_token() -> None:
    x, ids = sequences(20)
    x[:, 0] *= 100
    found = seen(x, feeds=[{"input_ids": ids}])
    largest = np.abs(x[:, 0]).max(axis=1)
    first = found.top[0]
    assert (first.position, first.value, first.id) == (0, largest.max(), ids[largest.argmax(), 0])
    assert len({one.position for one in found.top}) == TOP
    expected = np.sort(np.abs(x).max(axis=2).max(axis=0))[::-1][:TOP]
    assert [one.value for one in found.top] == expected.tolist()


def test_padding_is_left_out_of_everything() -> None:
    x, ids = sequences(4)
    mask = np.ones((4, 12), np.int64)
    for i, length in enumerate((12, 7, 3, 0)):
        mask[i, length:] = 0
    padded = np.where(mask[..., None] == 1, x, np.float32(1e6))
    found = seen(padded, feeds=[{"input_ids": ids, "attention_mask": mask}])
    alone = seen(
        x[:1], x[1:2, :7], x[2:3, :3], feeds=[{"input_ids": ids[i : i + 1, :n]} for i, n in enumerate((12, 7, 3))]
    )
    assert found.samples == 3  # the last one is nothing but padding
    assert (found.ratio, found.channels.tolist()) == (alone.ratio, alone.channels.tolist())
    assert [(one.value, one.position, one.id) for one in found.top] == [
        (one.value, one.position, one.id) for one in alone.top
    ]
    channels_first = seen(
        np.ascontiguousarray(padded.transpose(0, 2, 1)),
        axis=1,
        feeds=[{"input_ids": ids, "attention_mask": mask}],
    )
    assert channels_first == found


def test_a_mask_of_another_shape_and_one_of_floats_are_no_masks() -> None:
    x, _ = sequences(2)
    for mask in (np.zeros((2, 11), np.int64), np.zeros((2, 12), np.float32)):
        found = Outliers()
        found.update(x, Tokens({"attention_mask": mask}, [{"attention_mask": one[None]} for one in mask]))
        assert found.ratio == seen(x).ratio


@pytest.mark.parametrize("axis", [1, -1])
def test_of_a_feed_that_is_one_sample_axis_0_is_positions_like_the_others(axis: int) -> None:
    frames, _ = sequences(3, 8)
    frames[2, 5, 1] = 300
    whole = seen(frames.reshape(1, -1, 16))
    value = frames if axis == -1 else np.ascontiguousarray(frames.transpose(0, 2, 1))
    found = seen(value, axis=axis, feeds=[{"x": value}])
    assert found.samples == 1
    assert (found.ratio, found.channels.tolist()) == (whole.ratio, whole.channels.tolist())
    assert found.top[0].position == 2 * 8 + 5
    assert seen(value, axis=axis).samples == 3


def test_positions_of_zeros_count_in_no_median() -> None:
    x = np.zeros((1, 10, 4), np.float32)
    assert (seen(x).ratio, seen(x).top) == (1.0, ())
    x[0, 3], x[0, 6] = 2, 6
    assert seen(x).ratio == 6 / 4
    assert [one.position for one in seen(x).top] == [6, 3]


def test_a_number_of_channels_that_varies_leaves_no_channels() -> None:
    x = RNG.standard_normal((1, 4, 6)).astype(np.float32)
    found = seen(x, x[..., :5])
    assert (found.channels.size, found.samples) == (0, 2)
    merged = seen(x)
    merged.merge(seen(x[..., :5]))
    assert merged.channels.size == 0
    assert merged.top == found.top


def test_nothing_seen_is_nothing_special() -> None:
    empty = Outliers()
    empty.update(np.zeros((0, 3, 4), np.float32))
    assert (empty.ratio, empty.worst_ratio, empty.channels.size, empty.top, empty.samples) == (1.0, 1.0, 0, (), 0)
    x, _ = sequences(2)
    empty.merge(seen(x))
    assert empty == seen(x)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RNG.standard_normal(200_000), 3.0),
        (RNG.uniform(-1, 1, 200_000), 1.8),
        (np.array([1.0, -1.0] * 50), 1.0),
        (np.zeros(9), 1.0),
    ],
)
def test_kurtosis_is_the_one_of_known_distributions(values: NDArray[np.float64], expected: float) -> None:
    for scale in (1.0, 1e-15, 1e15):
        assert kurtosis(Histogram.of((values * scale).astype(np.float32))) == pytest.approx(expected, rel=0.03)


def test_kurtosis_agrees_with_the_moments_where_zeros_are_many() -> None:
    values = np.maximum(RNG.standard_normal(100_000), 0.5) - 0.5
    exact = (values**4).mean() / (values**2).mean() ** 2
    assert kurtosis(Histogram.of(values.astype(np.float32))) == pytest.approx(exact, rel=0.01)


def test_the_largest_channels_are_told_with_their_factor_over_the_median() -> None:
    found = top_channels(np.array([1, 50, 2, 2, 2, 9], np.float32), 2)
    assert found == [
        {"channel": 1, "amax": 50.0, "over_median": 25.0},
        {"channel": 5, "amax": 9.0, "over_median": 4.5},
    ]
    assert top_channels(np.zeros(3, np.float32), 1) == [{"channel": 0, "amax": 0.0, "over_median": None}]
    assert top_channels(np.zeros(0, np.float32)) == []


def test_records_are_json_and_follow_the_readers() -> None:
    x, ids = sequences(3)
    found = {"a": seen(x, feeds=[{"input_ids": ids}]), "b": seen(x * 0)}
    histograms = {"a": Histogram.of(x), "b": Histogram.of(x * 0)}
    listed = records(found, histograms, {"b": ["B"], "a": ["Q", "K"], "unseen": ["U"]})
    assert json.loads(json.dumps(listed, allow_nan=False)) == listed
    assert [one["tensor"] for one in listed] == ["b", "a"]
    assert listed[1]["readers"] == ["Q", "K"]
    assert listed[1]["top_channels"][0]["channel"] == 5
    assert listed[1]["top_tokens"][0]["id"] == found["a"].top[0].id
    assert listed[1]["ratio"] == found["a"].ratio
    assert listed[0]["top_tokens"] == []


def test_channels_are_kept_by_fold_whatever_the_batches() -> None:
    samples = [{"x": one["x"][None]} for one in feeds()]
    alone, together = Outliers(), Outliers()
    for one in samples:
        alone.update(one["x"], Tokens(one, [one]))
    batch = {"x": np.concatenate([one["x"] for one in samples])}
    together.update(batch["x"], Tokens(batch, samples))
    folds = {fold_of(one) for one in samples}
    assert len(folds) > 1
    for fold in range(FOLDS):
        assert (alone.without(fold) == together.without(fold)).all()
        others = [np.abs(one["x"]).max(axis=(0, 1)) for one in samples if fold_of(one) != fold]
        assert (alone.without(fold) == np.max(others, axis=0)).all()


def test_divided_channels_reach_what_all_samples_reached_divided() -> None:
    samples = [{"x": one["x"][None]} for one in feeds()]
    everything, few = Outliers(), Outliers()
    for one in samples:
        everything.update(one["x"], Tokens(one, [one]))
    scales = np.linspace(0.5, 8, everything.channels.size).astype(np.float32)
    for one in samples[:2]:
        few.update(one["x"] / scales, Tokens(one, [one]))
    after = everything.divided(scales, few)
    np.testing.assert_allclose(after.channels, everything.channels / scales, rtol=1e-6)
    for fold in range(FOLDS):
        np.testing.assert_allclose(after.without(fold), everything.without(fold) / scales, rtol=1e-6)
    assert (after.ratio, after.top) == (few.ratio, few.top)
    assert everything.divided(np.ones(1, np.float32), few) == few  # no factors for these channels
