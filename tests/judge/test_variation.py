"""What varies: by position, by channel where sizes differ, and nothing where samples do not tell."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from qcompiler.judge import variation
from qcompiler.judge.cuts import Piece
from qcompiler.judge.variation import Variation, Varying, asked
from qcompiler.judge.views import Role, View

RNG = np.random.default_rng(4)
Y = View("y", "y", "y", Role.OUTPUT)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, in whatever order tests run."""
    RNG.bit_generator.state = np.random.default_rng(4).bit_generator.state


def over(samples: list[Any]) -> Variation:
    found = Variation()
    for one in samples:
        found.add(np.asarray(one))
    return found


def share(samples: list[Any]) -> float:
    found = over(samples).share()
    assert found is not None
    return found


def defined(samples: Any) -> float:
    """As the definition says, of samples of one shape."""
    values = np.asarray(samples, np.float64)
    n = len(values)
    return float(((values - values.mean(0)) ** 2).sum() * n / (n - 1) / (values**2).sum())


def test_it_is_what_the_definition_says() -> None:
    scores = 3 + 0.4 * RNG.standard_normal((40, 1, 3)).astype(np.float32)
    assert share(list(scores)) == pytest.approx(defined(scores), rel=1e-6)
    assert share(list(scores)) == pytest.approx(0.16 / 9.16, rel=0.3)


def test_a_pattern_that_all_samples_share_is_no_signal() -> None:
    pattern = 10 * RNG.standard_normal((5, 7))
    samples = [pattern + 0.1 * RNG.standard_normal((5, 7)) for _ in range(20)]
    assert share(samples) == pytest.approx(1e-4, rel=0.3)


def test_few_samples_estimate_it_without_bias() -> None:
    found = [share(list(5 + RNG.standard_normal((4, 6)))) for _ in range(400)]
    assert np.mean(found) == pytest.approx(1 / 26, rel=0.05)


NINE = range(9)


@pytest.mark.parametrize("shapes", [[(2, 3)] * 9, [(1, k % 4 + 2, 3) for k in NINE], [(1, 2, 4, k + 1) for k in NINE]])
def test_any_division_and_order_give_the_same(shapes: list[tuple[int, ...]]) -> None:
    samples = [2 + RNG.standard_normal(shape).astype(np.float32) for shape in shapes]
    whole = share(samples)
    for order in itertools.islice(itertools.permutations(samples), 0, None, 40321):
        first, second = over(list(order[:2])), over(list(order[2:]))
        first.merge(second)
        assert first.share() == pytest.approx(whole, rel=1e-9)
        assert first.samples == 9


def test_texts_of_many_lengths_have_a_mean_for_each_channel() -> None:
    channels = np.array([20.0, 0.0, -5.0, 0.0])
    texts = [channels + RNG.standard_normal((1, length, 4)) for length in (3, 9, 5, 12)]
    rows = np.concatenate([text[0] for text in texts])
    assert share(texts) == pytest.approx(defined(rows), rel=1e-9)
    # padding that is left out takes an axis with it: [kept, channels] beside [1, positions, channels]
    mixed = [texts[0], texts[1][0], texts[2], texts[3][0]]
    assert share(mixed) == pytest.approx(share(texts), rel=1e-9)


def test_pictures_of_many_sizes_have_a_mean_for_each_channel_and_what_no_axis_shares_has_one() -> None:
    channels = np.array([8.0, -3.0])[:, None, None]
    pictures = [channels + RNG.standard_normal((1, 2, side, side + 1)) for side in (4, 6, 8)]
    columns = np.concatenate([np.moveaxis(one[0], 0, -1).reshape(-1, 2) for one in pictures])
    assert share(pictures) == pytest.approx(defined(columns), rel=1e-9)
    squares = [6 + RNG.standard_normal((side, side)) for side in (3, 4, 5)]
    flat = np.concatenate([one.reshape(-1) for one in squares])
    assert share(squares) == pytest.approx(defined(flat[:, None]), rel=1e-9)


def test_what_is_large_is_kept_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variation, "LARGEST", 40)
    monkeypatch.setattr(variation, "_BLOCK", 7)
    logits = [np.arange(10) + RNG.standard_normal((1, 6, 10)).astype(np.float32) for _ in range(3)]
    assert share(logits) == pytest.approx(defined(np.concatenate(logits, axis=1)[0]), rel=1e-6)
    maps = [RNG.standard_normal((1, 3, 6, 5)).astype(np.float32) + 4 for _ in range(3)]
    rows = np.concatenate([one[0].transpose(1, 0, 2) for one in maps]).reshape(18, 15)
    assert share(maps) == pytest.approx(defined(rows), rel=1e-6)


def test_where_nothing_varies_there_is_no_figure() -> None:
    constant = [np.full(3, 7.0, np.float32) for _ in range(8)]
    assert over(constant).share() is None
    rounded = [np.full(3, 7.0, np.float32) * (1 + 1e-6 * k) for k in range(8)]  # other threads add in another order
    assert over(rounded).share() is None
    assert over([np.zeros(3)] * 8).share() is None
    assert over([RNG.standard_normal(3)]).share() is None
    assert over([]).share() is None
    assert over([np.zeros(0)] * 5).share() is None
    assert share([np.full(3, 7.0) * (1 + 1e-3 * k) for k in range(8)]) > 1e-6


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_samples_have_no_figure_unless_each_has_many_values_of_a_channel(count: int) -> None:
    assert over(list(9 + RNG.standard_normal((count, 4)))).share() is None
    texts = [9 + RNG.standard_normal((1, 20 + k, 4)) for k in range(count)]
    assert share(texts) == pytest.approx(1 / 82, rel=0.5)
    assert over(texts[:1]).share() is None  # one text says nothing of others


def test_constant_positions_and_rare_events() -> None:
    rest = np.full((64, 5), 1e-3)
    rest[[3, 20, 41, 60], 2] = 1.0
    assert share(list(rest)) == pytest.approx(1.0, abs=0.1)  # what is reported four times is nearly all of the power
    beside = np.concatenate([np.full((20, 30), 2.0), RNG.standard_normal((20, 3))], axis=1)
    assert share(list(beside)) == pytest.approx(defined(beside), rel=1e-9)


def test_a_position_that_is_not_finite_counts_nowhere() -> None:
    samples = 2 + RNG.standard_normal((6, 4))
    holed = samples.copy()
    holed[2, 1], holed[4, 3] = -np.inf, np.nan
    assert share(list(holed)) == pytest.approx(defined(samples[:, [0, 2]]), rel=1e-9)
    assert over([np.full(3, -np.inf)] * 6).share() is None


def spread(values: list[Any], inputs: list[Any], *views: View) -> dict[View, float]:
    found = Varying(views or (Y,))
    for value, given in zip(values, inputs, strict=True):
        found.add({"x": np.asarray(given)}, {view: np.asarray(value, np.float32) for view in views or (Y,)})
    return found.shares()


def test_copies_of_one_sample_do_not_tell() -> None:
    outputs = list(50 + 0.1 * RNG.standard_normal((6, 3)))
    frame = RNG.standard_normal((8, 8))
    assert spread(outputs, [frame + 0.01 * RNG.standard_normal((8, 8)) for _ in range(6)]) == {}
    assert set(spread(outputs, [RNG.standard_normal((8, 8)) for _ in range(6)])) == {Y}
    assert set(spread(outputs, list(290 + 10 * RNG.standard_normal((6, 4))))) == {Y}  # kelvins
    assert set(spread(outputs, list(RNG.integers(0, 900, (6, 12))))) == {Y}
    assert spread(outputs, [np.arange(12)] * 6) == {}


def test_many_samples_in_two_halves() -> None:
    values, inputs = 5 + RNG.standard_normal((10, 3)), RNG.standard_normal((10, 4))
    one, other = Varying([Y]), Varying([Y])
    for index, (value, given) in enumerate(zip(values, inputs, strict=True)):
        (one if index < 3 else other).add({"x": given}, {Y: value})
    one.merge(other)
    assert one.shares()[Y] == pytest.approx(defined(values), rel=1e-9)


def test_it_is_never_more_than_all() -> None:
    assert spread(list(RNG.standard_normal((4, 3))), list(RNG.standard_normal((4, 3))))[Y] <= 1.0


def test_what_has_a_scale_of_its_own_is_not_asked_for_and_parts_stand_for_what_was_joined() -> None:
    heat = View("h", "h", "h", Role.OUTPUT, "Sigmoid")
    logits = View("l (before Sigmoid)", "h", "l", Role.SOURCE, "Sigmoid")
    part = View("p[:, 0:2]", "p", "p", Role.PART, piece=Piece(1, 0, 2))
    chance = View("p[:, 2]", "p", "p", Role.PART, "Sigmoid", Piece(1, 2, 3))
    joined, cache = View("p", "p", "p", Role.OUTPUT), View("c", "c", "c", Role.CACHE)
    assert asked([Y, heat, logits, joined, part, chance, cache]) == [Y, logits, part]
