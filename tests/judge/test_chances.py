"""What noise changes of chances: against labels that are drawn by them, and where a Sigmoid gives numbers instead."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.judge.chances import Chances


def lost(reference: object, got: object, *, logits: bool = True, samples: int = 1) -> float | None:
    return held(reference, got, logits=logits, samples=samples).lost()


def held(reference: object, got: object, *, logits: bool = True, samples: int = 1) -> Chances:
    found = Chances(logits=logits)
    pairs = zip(np.array_split(np.asarray(reference), samples), np.array_split(np.asarray(got), samples), strict=True)
    for one, other in pairs:
        found.add(one, other)
    return found


def chance(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def order(told: np.ndarray, labels: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(told)) + 1
    yes = int(labels.sum())
    return float((ranks[labels].sum() - yes * (yes + 1) / 2) / (yes * (labels.size - yes)))


def f1(yes: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * (yes & labels).sum() / (yes.sum() + labels.sum()))


@pytest.mark.parametrize(("middle", "noise"), [(0.0, 0.5), (0.0, 1.5), (-3.0, 1.0), (-5.0, 2.0)])
def test_it_is_what_labels_say_where_the_model_is_as_sure_as_it_says(middle: float, noise: float) -> None:
    rng = np.random.default_rng(1)
    logits = middle + 5 * rng.standard_normal(200_000)
    other = logits + noise * rng.standard_normal(logits.size)
    labels = rng.random(logits.size) < chance(logits)
    classes = [[np.mean((one > 0)[labels == of] == of) for of in (True, False)] for one in (logits, other)]
    said = max(
        1 - f1(other > 0, labels) / f1(logits > 0, labels),
        1 - order(other, labels) / order(logits, labels),
        1 - float(np.mean(classes[1]) / np.mean(classes[0])),
    )
    found = lost(logits, other, samples=10)
    assert found is not None
    assert found == pytest.approx(said, abs=0.01, rel=0.2)


def test_what_is_exchanged_costs_by_how_sure_it_was() -> None:
    sure, torn = np.array([9.0, -9.0, 9.0, -9.0]), np.array([0.1, -9.0, 9.0, -9.0])
    assert lost(sure, sure) == 0
    turned = [lost(one, one * [-1, 1, 1, 1]) for one in (sure, torn)]
    assert turned[0] is not None
    assert turned[1] is not None
    assert turned[0] > 3 * turned[1] > 0


def test_order_is_lost_without_a_single_answer_turned() -> None:
    rng = np.random.default_rng(2)
    logits = np.where(rng.random(4000) < 0.1, rng.uniform(0.5, 3, 4000), -9 + 3 * rng.random(4000))
    one = lost(logits, np.where(logits > 0, 1.0, logits))  # all that are likely are so alike
    other = lost(logits, np.where(logits > 0, logits, -0.1))  # and all that are not
    assert one is not None
    assert other is not None
    assert min(one, other) > 1e-3


def test_the_results_of_the_sigmoid_say_the_same_as_what_it_reads() -> None:
    rng = np.random.default_rng(3)
    logits = 4 * rng.standard_normal((8, 300))
    other = logits + rng.standard_normal(logits.shape)
    read = lost(logits, other, samples=8)
    assert lost(chance(logits), chance(other), logits=False, samples=8) == pytest.approx(read, abs=1e-3)


@pytest.mark.parametrize("middle", [0.3, 0.5])
def test_gains_boxes_and_pixels_are_numbers_and_no_chances(middle: float) -> None:
    rng = np.random.default_rng(4)
    numbers = np.clip(rng.uniform(-0.4, 0.4, 5000) + middle, 0.001, 0.999)
    assert lost(numbers, numbers + 0.01, logits=False) is None
    assert lost(np.full(50, 0.01), np.full(50, 0.3), logits=False) is None  # nothing ever happened
    assert Chances(logits=True).lost() is None


def test_noise_that_turned_nothing_here_is_held_against_other_samples() -> None:
    logits = np.array([[9.0, -9.0, 0.3, -9.0], [9.0, -9.0, 9.0, -9.0]])
    got = logits + np.array([[0, 0, 0, 0], [0, 0, -2.0, 0]])  # the sure one had the noise
    alone = lost(logits, got)
    assert lost(logits, got, samples=2) > (alone or 0.0)  # type: ignore[operator]


def test_samples_of_other_shapes_and_values_without_end_are_left_out() -> None:
    found = Chances(logits=True)
    found.add(np.array([9.0, -9.0]), np.array([9.0]))
    assert found.lost() is None
    found.add(np.array([9.0, -9.0, np.inf]), np.array([9.0, -9.0, 0.0]))
    found.add(np.array([9.0, -9.0, 9.0, -9.0]), np.array([9.0, -9.0, 9.0, -9.0]))
    assert found.lost() == 0
    large = np.tile([9.0, -9.0], 1 << 20)
    found.add(large, large)
    assert found.lost() == 0


def test_few_answers_and_a_single_sample_say_little_of_what_may_be_lost() -> None:
    few, some, many = (np.tile([9.0, -9.0], count) for count in (299, 300, 2500))
    bounds = [held(one, one, samples=10).at_most() for one in (few, some, many)]
    assert bounds == [None, pytest.approx(0.01), pytest.approx(3 / 2500)]
    assert held(few, few, samples=10).lost() == 0
    assert held(many, many).at_most() is None
    assert held(np.full(50, 0.3), np.full(50, 0.3), logits=False, samples=5).at_most() is None


def test_the_bound_holds_for_other_samples_of_the_kind_mostly() -> None:
    rng = np.random.default_rng(5)

    def drawn(samples: int) -> Chances:
        found = Chances(logits=True)
        for _ in range(samples):  # some are noisy, most are not
            logits = 5 * rng.standard_normal(200)
            found.add(logits, logits + rng.choice([0.2, 1.5]) * rng.standard_normal(200))
        return found

    whole = drawn(200).lost()
    bounds = [drawn(12).at_most() for _ in range(20)]
    assert whole is not None
    assert np.mean([bound is not None and bound >= whole for bound in bounds]) >= 0.85
    assert np.median([bound or 0.0 for bound in bounds]) < 3 * whole
