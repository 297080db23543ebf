"""Figures of views: pooled SQNR, the worst sample, agreement, and what could not be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.judge.figures import Figures, worst_view
from qcompiler.judge.views import Role, View

Y = View("y", "y", "y", Role.OUTPUT)
CLASSES = View("c", "c", "c", Role.RESULT, "ArgMax")
PICKED = View("b", "b", "b", Role.RESULT, "TopK", selected=True)


def test_the_worst_sample_is_named() -> None:
    figures = Figures([Y])
    for error in (0.1, 1.0, 0.01):
        figures.add({}, {"y": np.full(4, 10, np.float32)}, {"y": np.full(4, 10 + error, np.float32)})
    (found,) = figures.result()
    assert found.sqnr_db == pytest.approx(10 * math.log10(1200 / (4 * (0.01 + 1 + 0.0001))), abs=1e-3)
    assert (found.worst_sample, found.samples) == (1, 3)
    assert found.worst_sample_db == pytest.approx(20, abs=1e-3)
    assert found.counts


def test_classes_have_an_agreement_and_no_sqnr() -> None:
    figures = Figures([CLASSES])
    figures.add({}, {"c": np.array([1, 2])}, {"c": np.array([1, 2])})
    figures.add({}, {"c": np.array([1, 2])}, {"c": np.array([1, 3])})
    (found,) = figures.result()
    assert (found.agreement, found.sqnr_db, found.worst_sample, found.counts) == (0.75, None, 1, False)


def test_another_number_of_rows_is_counted_and_compared_as_a_set() -> None:
    figures = Figures([PICKED])
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    figures.add({}, {"b": boxes}, {"b": boxes[:2]})
    (found,) = figures.result()
    assert found.agreement == pytest.approx(2 / 3)
    assert (found.reshaped, found.sqnr_db) == (1, None)


def test_what_is_ignored_or_missing_has_no_figure() -> None:
    ignored, hidden = View("d", "d", "d", Role.IGNORED), View("h (before ArgMax)", "c", "h", Role.SOURCE)
    figures = Figures([ignored, hidden], missing=["h"])
    figures.add({}, {"d": np.ones(2, np.float32)}, {"d": np.zeros(2, np.float32)})
    one, other = figures.result()
    assert (one.sqnr_db, one.samples, one.missing) == (None, 0, False)
    assert (other.sqnr_db, other.missing) == (None, True)


def test_a_value_that_is_not_finite_any_more_is_as_bad_as_it_gets() -> None:
    figures = Figures([Y])
    figures.add({}, {"y": np.ones(2, np.float32)}, {"y": np.array([1, np.inf], np.float32)})
    assert figures.result()[0].sqnr_db == -math.inf


def test_weak_views_do_not_count() -> None:
    figures = Figures([View("p", "p", "p", Role.CACHE)])
    figures.add({}, {"p": np.ones(2, np.float32)}, {"p": np.zeros(2, np.float32)})
    (found,) = figures.result()
    assert found.sqnr_db == 0
    assert not found.counts
    assert not found.judged


def moved(figures: Figures, count: int, offset: float = 8.0, error: float = 0.5) -> Figures:
    rng = np.random.default_rng(count)
    for _ in range(count):
        reference = (offset + rng.standard_normal((1, 4))).astype(np.float32)
        figures.add({"x": rng.standard_normal(3)}, {"y": reference}, {"y": reference + np.float32(error)})
    return figures


def test_an_offset_is_no_signal() -> None:
    (found,) = moved(Figures([Y]), 50).result()
    assert found.sqnr_db == pytest.approx(10 * math.log10(65 / 0.25), abs=0.3)
    assert found.varying_db == pytest.approx(10 * math.log10(1 / 0.25), abs=0.8)
    assert found.least_db == found.varying_db


def test_what_varies_is_told_by_other_samples_too() -> None:
    figures = moved(Figures([Y]), 2)
    assert figures.result()[0].varying_db is None
    assert figures.result()[0].least_db == figures.result()[0].sqnr_db
    before = figures.result()[0].sqnr_db
    figures.learn(moved(Figures([Y]), 40, error=9.0))
    (found,) = figures.result()
    assert (found.sqnr_db, found.samples) == (before, 2)  # their errors are not counted
    assert found.varying_db == pytest.approx(10 * math.log10(1 / 0.25), abs=1.5)


def test_the_worst_view_by_either_figure() -> None:
    offset, plain = View("o", "o", "o", Role.OUTPUT), View("p", "p", "p", Role.OUTPUT)
    figures, rng = Figures([offset, plain]), np.random.default_rng(1)
    for _ in range(12):
        x = rng.standard_normal(6).astype(np.float32)
        figures.add({"x": x}, {"o": x + 20, "p": x}, {"o": x + np.float32(20.5), "p": x + np.float32(0.2)})
    worst, varying = worst_view(figures.result()), worst_view(figures.result(), varying=True)
    assert (worst and worst.name, varying and varying.name) == ("p", "o")
    assert worst_view([]) is None


def test_what_the_next_token_is_drawn_by_has_a_perplexity() -> None:
    logits = View("l", "l", "l", Role.OUTPUT, drawn=True)
    figures = Figures([logits, Y])
    values = {"l": np.zeros((1, 2, 2), np.float32), "y": np.ones(2, np.float32)}
    figures.add({}, values, {**values, "l": np.full((1, 2, 2), [np.log(3.0), 0.0], np.float32)})
    drawn, other = figures.result()
    assert drawn.perplexity == pytest.approx((0.75 * 0.25 * 4) ** -0.5 - 1, rel=1e-5)
    assert other.perplexity is None


@pytest.mark.parametrize(
    ("role", "sure", "decides"),
    [(Role.SOURCE, 6.0, True), (Role.OUTPUT, 6.0, True), (Role.PART, 6.0, True), (Role.SOURCE, 0.5, False)],
)
def test_what_chances_lose_is_told_and_gains_have_their_noise_alone(role: Role, sure: float, decides: bool) -> None:
    rng = np.random.default_rng(7)
    figures = Figures([View("y", "y", "y", role, "Sigmoid"), Y])
    for _ in range(6):
        reads = sure * rng.choice([-1.0, 1.0], (1, 200)) + 0.1 * rng.standard_normal((1, 200))
        found = [reads, reads + 0.3 * rng.standard_normal(reads.shape)]
        given = [one if role is Role.SOURCE else 1 / (1 + np.exp(-one)) for one in found]
        figures.add({}, {"y": given[0].astype(np.float32)}, {"y": given[1].astype(np.float32)})
    told, plain = figures.result()
    assert (told.lost is not None) is decides
    assert not decides or told.lost == pytest.approx(0.0, abs=0.01)
    assert told.sqnr_db == plain.sqnr_db
    assert plain.lost is None
