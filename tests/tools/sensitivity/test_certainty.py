"""How certain a ranking is: what few samples promise is what all of them give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.tools.sensitivity.certainty import SampleEvidence, rank_correlation

ONES = np.ones((64, 1))


def errors(samples: int, groups: int = 24, apart_db: float = 2.0, seed: int = 0) -> np.ndarray:
    """Squared errors at a single output, [samples, groups, 1]: squares of normal numbers, groups so many dB apart."""
    rng = np.random.default_rng(seed)
    scale = 10 ** (-apart_db * np.arange(groups) / 20)
    return np.asarray((rng.standard_normal((samples, groups)) * scale)[:, :, None] ** 2)


def shown(made: np.ndarray, total: int = 64, loud: int = 0) -> SampleEvidence:
    return SampleEvidence(made, ONES[: len(made)] if len(made) <= 64 else np.ones((len(made), 1)), loud, total)


def test_the_worst_view_counts_and_views_without_a_signal_do_not() -> None:
    made = np.array([[[1.0, 5.0, 7.0]], [[3.0, 5.0, 7.0]]])
    signals = np.array([[4.0, 100.0, 0.0], [4.0, 100.0, 0.0]])
    np.testing.assert_allclose(SampleEvidence(made, signals, 0, 2).noise(), [0.5])
    np.testing.assert_allclose(SampleEvidence(made, signals, 0, 2).figures_db(), [10 * math.log10(2)])
    np.testing.assert_array_equal(SampleEvidence(made, 0 * signals, 0, 2).noise(), [0.0])


def test_loud_samples_stand_for_themselves_and_the_others_for_the_rest() -> None:
    made = np.array([[[100.0]], [[1.0]], [[3.0]]])
    signals = np.array([[10.0], [2.0], [2.0]])
    np.testing.assert_allclose(SampleEvidence(made, signals, 1, 11).noise(), [(100 + 10 * 2) / (10 + 10 * 2)])
    np.testing.assert_allclose(SampleEvidence(made, signals, 1, 3).noise(), [104 / 14])
    assert SampleEvidence(made, signals, 1, 3).standard_error_db().tolist() == [0.0]
    assert (
        SampleEvidence(made, signals, 1, 11).standard_error_db()[0]
        < SampleEvidence(made, signals, 0, 11).standard_error_db()[0]
    )


def test_the_standard_error_is_the_spread_of_what_other_samples_give() -> None:
    every = errors(6400, groups=1)
    figures = [shown(every[at : at + 16]).figures_db()[0] for at in range(0, 6400, 16)]
    told = [shown(every[at : at + 16], 10**6).standard_error_db()[0] for at in range(0, 6400, 16)]
    assert float(np.mean(told)) == pytest.approx(float(np.std(figures)), rel=0.15)


def test_all_samples_leave_no_doubt_and_one_says_nothing_of_it() -> None:
    made = errors(8)
    np.testing.assert_array_equal(shown(made, 8).standard_error_db(), np.zeros(24))
    assert np.isnan(shown(made[:1], 8).standard_error_db()).all()
    assert shown(made[:1], 8).expected_correlation() is None
    assert shown(made, 8).expected_correlation() == 1.0
    assert shown(made[:1], 64).samples_for(0.97) == 64


@pytest.mark.parametrize("apart_db", [0.5, 1.0, 3.0])
def test_the_promised_correlation_is_what_comes(apart_db: float) -> None:
    promised, came = [], []
    for seed in range(20):
        made = errors(64, apart_db=apart_db, seed=seed)
        told = shown(made[:12], 64).expected_correlation()
        assert told is not None
        promised.append(told)
        came.append(rank_correlation(shown(made[:12]).noise(), shown(made).noise()))
    assert float(np.mean(promised)) == pytest.approx(float(np.mean(came)), abs=0.04)


def test_the_number_of_samples_is_what_the_aim_takes() -> None:
    near, far = errors(8, apart_db=0.5), errors(8, apart_db=6.0)
    assert shown(far, 64).samples_for(0.97) <= 4
    assert 16 <= shown(near, 64).samples_for(0.97) < 64
    assert shown(errors(8, apart_db=0.0), 64).samples_for(0.97) == 64
    assert shown(errors(8, groups=1), 64).samples_for(0.97) == 1


def test_the_order_is_certain_where_groups_are_further_apart_than_samples_make_them() -> None:
    scale = np.array([1.0, 0.98, 0.2])
    hard = np.random.default_rng(3).uniform(0.5, 30, (8, 1))  # samples differ by far more than the groups do
    noisy = np.random.default_rng(4).uniform(0.8, 1.2, (8, 3))
    made = np.asarray(hard * scale * noisy)[:, :, None]
    order = [0, 1, 2]
    assert shown(made, 64).sure_of_next(order) == [False, True, True]
    assert shown(made, 8).sure_of_next(order) == [True, True, True]
    assert shown(made[:1], 64).sure_of_next(order) == [False, False, True]
    assert shown(made[:, :1], 64).sure_of_next([0]) == [True]
    assert shown(made, 64).standard_error_db().max() > 1  # the figures themselves are not certain


def test_an_error_that_is_not_finite_ranks_first_and_is_no_certainty() -> None:
    made = errors(6, groups=3, apart_db=10)
    made[2, 1, 0] = math.inf
    assert shown(made).figures_db()[1] == -math.inf
    assert shown(made, 64).sure_of_next([1, 0, 2])[0] is False
    assert shown(made, 64).expected_correlation() is not None


def test_ranks_are_correlated_and_equal_values_share_theirs() -> None:
    one = np.array([3.0, 1.0, 2.0, 2.0])
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, np.array([3.0, 1.0, 2.5, 2.0])) == pytest.approx(0.9486833)
    assert rank_correlation(np.ones(4), np.ones(4)) == 1.0
    assert rank_correlation(np.ones(4), one) == 0.0
