"""The scales of one group of layers: their exponent, and what they cost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.numerics.rounding import Format
from qcompiler.outliers.smooth_quant.alpha import ALPHAS, SHARE, SMALLEST, Layers, rounded, smooth_scales
from qcompiler.statistics.rows import Rows
from tests.kit.planning.probing import FIRST, feeds, layers, probe


def test_scales_without_a_fold_do_not_see_its_samples() -> None:
    one = probe(feeds())
    group = layers("x", one, FIRST)
    fold = sorted({*one.folds})[0]
    mine = group.rows.folds == fold
    changed = group.rows.values.copy()
    changed[mine] *= 1000
    reached = np.abs(changed[~mine]).max(axis=0).astype(np.float64)
    assert (reached == group.others[fold]).all()
    assert not (group.scales(0.5, fold) == group.scales(0.5)).all()


@given(
    channels=st.lists(st.floats(0, 1e4), min_size=1, max_size=12),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_scales_are_positive_with_a_geometric_mean_of_one(channels: list[float], alpha: float, seed: int) -> None:
    weights = np.abs(np.random.default_rng(seed).standard_normal(len(channels)))
    scales = smooth_scales(np.asarray(channels), weights, alpha)
    assert (scales > 0).all()
    assert np.log(scales.astype(np.float64)).mean() == pytest.approx(0, abs=1e-3)


def test_an_alpha_of_one_flattens_the_activation_and_of_zero_the_weights() -> None:
    channels, weights = np.array([100.0, 1.0, 10.0]), np.array([0.5, 2.0, 1.0])
    flat = channels / smooth_scales(channels, weights, 1.0)
    assert flat == pytest.approx(np.full(3, flat[0]), rel=1e-5)
    flat = weights * smooth_scales(channels, weights, 0.0)
    assert flat == pytest.approx(np.full(3, flat[0]), rel=1e-5)


def test_channels_that_are_tied_share_a_scale() -> None:
    classes = np.array([0, 0, 1])
    scales = smooth_scales(np.array([100.0, 1.0, 10.0]), np.ones(3), 0.5, classes)
    assert scales[0] == scales[1] != scales[2]
    assert scales[0] / scales[2] == pytest.approx(np.sqrt(10), rel=1e-5)


def test_dead_channels_are_not_blown_up() -> None:
    scales = smooth_scales(np.array([0.0, 1.0]), np.ones(2), 1.0)
    assert scales[1] / scales[0] == pytest.approx(1 / SMALLEST, rel=1e-4)


def with_outliers(*, outlier: float = 60.0) -> Layers:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((64, 16)).astype(np.float32)
    values[:, 0] *= outlier
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    weight[0] *= 1 / outlier
    return Layers(Rows(values, np.ones(64, np.float32)), [weight], [True], np.abs(values).max(axis=0).astype(float))


def test_an_outlier_channel_is_worth_an_alpha_and_the_gain_is_that_of_the_products() -> None:
    group = with_outliers()
    choice = group.choose(ALPHAS)
    assert choice.alpha is not None
    assert choice.gain_db > 3
    assert (choice.scales == group.scales(choice.alpha)).all()
    assert choice.errors[choice.alpha] == min(choice.errors.values())


def test_the_best_alpha_may_lie_between_two_of_the_grid() -> None:
    group = with_outliers()
    choice = group.choose(ALPHAS)
    assert set(choice.errors) - set(ALPHAS)
    assert len(choice.errors) <= len(ALPHAS) + 2


def test_what_lies_behind_an_alpha_that_is_no_better_is_not_tried() -> None:
    group = with_outliers()
    errors = group.choose(ALPHAS).errors
    tried = sorted(set(errors) & set(ALPHAS))
    assert len(tried) < len(ALPHAS)
    lowest = min(tried, key=lambda alpha: errors[alpha])
    for one, other in pairwise(tried):  # from the lowest outwards, errors rise
        assert (errors[one] > errors[other]) == (other <= lowest)


def test_the_errors_are_those_of_the_products_as_they_would_be_computed() -> None:
    group = with_outliers()
    choice = group.choose(ALPHAS)
    assert choice.alpha is not None
    exact = group.rows.values @ group.weights[0]
    for scales, error in ((np.ones(16, np.float32), choice.plain), (choice.scales, choice.error)):
        x, (stored,) = group.rows.values / scales, group.stored(scales)
        gap = rounded(x, float(np.abs(x).max()), "int8") @ stored - exact
        power = np.sum(exact**2, axis=1)
        least = float(np.mean(np.sum(gap**2, axis=1) / (power + SHARE * power.mean())))
        assert 0.3 * least < error <= least * 1.001  # in the whole range; one that clips may be better


def test_without_outliers_nothing_is_gained_and_nothing_is_done() -> None:
    even = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16)).astype(np.float32)
    even[0, 0], even[1, :, 0] = 1, 1  # every channel reaches as far as any other, in the activation and in the weight
    group = Layers(Rows(even[0], np.ones(16, np.float32)), [even[1]], [True], np.ones(16))
    choice = group.choose(ALPHAS)
    assert (choice.alpha, choice.gain_db) == (None, 0.0)
    assert (choice.scales == 1).all()


def test_one_alpha_is_taken_whatever_it_gains_and_none_is_none() -> None:
    group = with_outliers(outlier=1.0)
    assert group.choose([0.5]).alpha == 0.5
    assert not group.choose([0.5]).errors
    assert group.choose([]).alpha is None


def test_a_row_that_spikes_shows() -> None:
    group = with_outliers()
    group.rows.values[3] *= 100
    assert group.choose([0.5]).spike > 1000
    assert with_outliers().choose([0.5]).spike < 100


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_rounded_values_lie_on_a_grid_within_the_range(format: Format) -> None:
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    once = rounded(x, 2.0, format)
    assert np.abs(once).max() <= 2.0 * (128 / 127 if format == "int8" else 1) * (1 + 1e-6)
    assert rounded(once, 2.0, format) == pytest.approx(once, rel=1e-5)
    assert np.abs(once - np.clip(x, -2, 2)).max() <= 2.0 / (127 if format == "int8" else 14)
