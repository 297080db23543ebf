"""What noise takes from the likelihood of the next token: by the float model's own probabilities, without labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.judge.likelihood import Likelihood, roots_of, weighed


def rises(reference: object, got: object) -> float | None:
    found = Likelihood()
    found.add(np.asarray(reference, np.float32), np.asarray(got, np.float32))
    return found.rises()


def test_it_is_the_divergence_of_what_both_models_expect() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    expected = math.exp(float((p * np.log(p / q)).sum())) - 1
    assert rises([np.log(p)], [np.log(q)]) == pytest.approx(expected, rel=1e-5)
    assert rises([np.log(p)], [np.log(p) + 7]) == pytest.approx(0, abs=1e-9)  # a Softmax sees no constant


def test_a_first_choice_that_stays_may_be_less_likely() -> None:
    assert rises([[4.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]]) > 0.1  # type: ignore[operator]


def test_it_is_about_what_the_perplexity_of_drawn_tokens_rises_by() -> None:
    random = np.random.default_rng(3)
    logits = random.standard_normal((1, 40_000, 20)) * 2
    noisy = logits + random.standard_normal(logits.shape) * 0.3
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=-1)[..., None]

    def nats(rows: np.ndarray) -> float:
        spread = np.log(np.exp(rows).sum(axis=-1, keepdims=True))
        return float((spread - np.take_along_axis(rows, drawn, -1)).mean())

    assert rises(logits, noisy) == pytest.approx(math.expm1(nats(noisy) - nats(logits)), abs=0.005)


def test_weighed_logits_have_errors_that_add_up_to_twice_the_divergence() -> None:
    random = np.random.default_rng(5)
    logits = (2 * random.standard_normal((200, 30))).astype(np.float32)
    first, second = (0.05 * random.standard_normal((2, *logits.shape))).astype(np.float32)
    roots = roots_of(logits)
    np.testing.assert_allclose((roots**2).sum(axis=-1), 1, rtol=1e-5)

    def error(noise: np.ndarray) -> float:
        gap = weighed(logits + noise, roots) - weighed(logits, roots)
        return float((gap**2).sum()) / 2 / len(logits)

    assert error(first) == pytest.approx(math.log1p(rises(logits, logits + first) or 0), rel=0.05)
    assert error(first + second) == pytest.approx(error(first) + error(second), rel=0.1)


def test_samples_of_other_lengths_count_by_their_tokens_and_rows_without_end_do_not_count() -> None:
    found = Likelihood()
    found.add(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)))
    found.add(np.zeros((1, 1, 2)), np.array([[[np.log(3.0), 0.0]]]))
    found.add(np.array([[np.inf, 0.0]]), np.array([[np.inf, 0.0]]))
    one = -0.5 * math.log(0.75 * 0.25 * 4)
    assert found.rises() == pytest.approx(math.exp(one / 4) - 1)


def test_where_nothing_can_be_drawn_there_is_no_figure() -> None:
    assert rises(np.zeros((0, 3)), np.zeros((0, 3))) is None
    assert rises([[1.0]], [[2.0]]) is None
    assert rises([[0.0, 1.0]], [[0.0, 1.0, 2.0]]) is None
    assert rises(3.0, 3.0) is None
    assert rises([[0.0, 5000.0]], [[5000.0, 0.0]]) == math.inf
