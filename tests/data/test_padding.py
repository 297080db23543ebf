"""Padding is found in the masks of a feed and left out of activations of any layout."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.data.padding import Padding

MASK = np.array([[1, 1, 0], [1, 0, 0]])
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "feed",
    [{"attention_mask": MASK}, {"encoder_attention_mask": MASK.astype(bool)}, {"key_padding_mask": MASK == 0}],
)
def test_positions_that_a_mask_excludes_are_left_out(
    feed: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
) -> None:
    padding = Padding(feed)
    assert padding
    np.testing.assert_array_equal(padding.keep(X), X[[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(padding.keep(X.reshape(6, 4)), X[[0, 0, 1], [0, 1, 0]])
    heads = np.stack([X, X], axis=1)
    assert padding.keep(heads).shape == (3, 2, 4)


def test_behind_a_cache_the_last_positions_are_meant() -> None:
    padding = Padding({"attention_mask": np.array([[0, 1, 1, 1], [1, 1, 1, 0]])})
    new = X[:, :2, :3]
    np.testing.assert_array_equal(padding.keep(new), new[[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    "feed",
    [
        {"attention_mask": np.ones((2, 3), np.int64)},
        {"attention_mask": np.zeros((2, 3), np.float32)},
        {"attention_mask": np.ones((2, 1, 3, 3), np.int64)},
        {"token_type_ids": MASK},
        {"x": X},
    ],
)
def test_without_such_a_mask_nothing_is(feed: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> None:
    padding = Padding(feed)
    assert not padding
    assert padding.keep(X) is X
    assert padding.spread(X.shape) is None


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (2, 5, 3, 4), (2, 3), (2, 2, 5), (7, 3, 4), (4,), ()])
def test_a_mask_that_is_spread_keeps_the_same(shape: tuple[int, ...]) -> None:
    padding, x = Padding({"attention_mask": MASK}), np.arange(np.prod(shape, dtype=int), dtype=np.float32)
    x = x.reshape(shape)
    mask = padding.spread(shape)
    kept = x if mask is None else x[np.broadcast_to(mask, shape)]
    assert sorted(kept.reshape(-1)) == sorted(padding.keep(x).reshape(-1))


def test_other_shapes_stay_whole() -> None:
    padding = Padding({"attention_mask": MASK})
    pooled = np.ones((2, 8), np.float32)
    assert padding.keep(pooled) is pooled


def test_channels_may_stand_in_front_of_positions() -> None:
    padding = Padding({"attention_mask": MASK})
    channels_first = np.moveaxis(X, 2, 1)
    np.testing.assert_array_equal(padding.keep(channels_first), X[[0, 0, 1], [0, 1, 0]])
