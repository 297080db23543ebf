"""What noise changes of decisions: by the float model's own probabilities, of rows along any axis."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.judge.decisions import Decisions


def lost(reference: object, got: object, axis: int = -1) -> float | None:
    found = Decisions(axis)
    found.add(np.asarray(reference, np.float32), np.asarray(got, np.float32))
    return found.lost()


def test_what_is_exchanged_counts_by_how_much_surer_the_float_model_was() -> None:
    sure, torn = [np.log(9.0), 0.0], [np.log(1.5), 0.0]  # probabilities of 0.9 and 0.6
    assert lost([sure], [sure]) == 0
    assert lost([sure], [sure[::-1]]) == pytest.approx((0.9 - 0.1) / 0.9)
    assert lost([torn], [torn[::-1]]) == pytest.approx((0.6 - 0.4) / 0.6)


def test_two_that_were_as_likely_are_exchanged_at_no_cost() -> None:
    assert lost([[3.0, 3.0, -9.0]], [[2.0, 3.0, -9.0]]) == 0


def test_noise_that_turned_nothing_here_is_held_against_other_rows() -> None:
    reference = [[9.0, 0.0], [0.5, 0.0]]
    got = [[9.0, 2.0], [0.5, 0.0]]  # a sure row had the noise, and the other one would be turned by it
    torn = 1 / (1 + np.exp(-0.5))
    right = 1 / (1 + np.exp(-9.0)) + torn
    assert lost(reference, got) == pytest.approx((2 * torn - 1) / (2 * right), rel=1e-6)


def test_what_is_rare_counts_as_much_as_what_there_is_most_of() -> None:
    blank, letter = [9.0, 0.0, 0.0], [0.0, 3.0, 0.0]
    right = np.exp(3.0) / (np.exp(3.0) + 2)
    found = Decisions(-1)
    for _ in range(3):
        found.add(
            np.array([blank] * 500 + [letter] * 10), np.array([blank] * 500 + [letter] * 8 + [[0.0, 0.0, 3.0]] * 2)
        )
    each = 0.2 * (right - (1 - right) / 2) / right  # of the letters; of the blanks nothing is lost
    assert found.lost() == pytest.approx(each / 2)


def test_the_loss_is_about_what_accuracy_loses_where_the_model_is_as_sure_as_it_says() -> None:
    random = np.random.default_rng(3)
    logits = random.standard_normal((40_000, 10)) * 2
    noisy = logits + random.standard_normal(logits.shape)
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # labels by the softmax of the logits
    right, still = (float((one.argmax(axis=1) == drawn).mean()) for one in (logits, noisy))
    found = Decisions(-1)
    for at in range(0, 300, 20):
        found.add(logits[at : at + 20], noisy[at : at + 20])
    assert found.lost() == pytest.approx(1 - still / right, abs=0.02)


def test_classes_lie_along_an_axis_and_large_samples_are_looked_at_in_places() -> None:
    random = np.random.default_rng(4)
    maps = random.standard_normal((1, 5, 64, 64)).astype(np.float32)
    noisy = maps + random.standard_normal(maps.shape).astype(np.float32) * 0.5
    rows, other = (np.moveaxis(one, 1, -1).reshape(-1, 5) for one in (maps, noisy))
    whole = lost(rows, other)
    assert whole is not None
    assert lost(maps, noisy, axis=-3) == pytest.approx(whole, abs=0.02)


def test_where_nothing_is_decided_there_is_no_figure() -> None:
    assert lost(np.zeros((0, 3)), np.zeros((0, 3))) is None
    assert lost([[1.0], [2.0]], [[1.0], [3.0]]) is None
    assert lost([[np.inf, 0.0]], [[np.inf, 0.0]]) is None
    assert lost([[0.0, 1.0]], [[0.0, 1.0, 2.0]]) is None
    assert lost(3.0, 3.0) is None
    assert lost([1.0, 0.0], [0.0, 1.0]) == pytest.approx((np.e - 1) / np.e)
