"""Noise by view: the worst counts; padding, shared infinities and constants in front of a Softmax do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qcompiler.data.padding import Padding
from qcompiler.judge.cuts import Piece
from qcompiler.judge.likelihood import Likelihood
from qcompiler.judge.noise import Expected, Tally, compared, cut, judged, shares_of, squared_error
from qcompiler.judge.views import Role, View, weighed

RNG = np.random.default_rng(0)


def view(name: str = "y", role: Role = Role.OUTPUT, piece: Piece | None = None, level: int | None = None) -> View:
    return View(name, name, name, role, piece=piece, level=level)


def test_the_worst_view_counts_and_not_the_mean() -> None:
    loud, quiet = np.full((4, 8), 1000.0, np.float32), RNG.standard_normal((4, 8)).astype(np.float32)
    views = (view("a"), view("b"))
    tally = Tally()
    expected = Expected.of(views, {"a": loud, "b": quiet}, {})
    tally.add(expected, {"a": loud + 1, "b": quiet + 1})
    ratios = tally.ratios()
    assert ratios[views[0]] == pytest.approx(1e-6)
    assert tally.worst() == ratios[views[1]] == pytest.approx(32 / float((quiet**2).sum()), rel=1e-5)


def test_a_part_is_cut_out_of_its_output() -> None:
    boxes = view("y[:, 0:2]", piece=Piece(1, 0, 2))
    array = np.arange(12).reshape(2, 6)
    found = cut(boxes, array)
    assert found is not None
    np.testing.assert_array_equal(found, array[:, :2])
    assert cut(view(piece=Piece(1, 4, 9)), array) is None


def test_samples_add_up() -> None:
    one = view()
    tally = Tally()
    for scale in (1.0, 3.0):
        reference = np.full(4, scale, np.float32)
        tally.add(Expected.of((one,), {"y": reference}, {}), {"y": reference * np.float32(1.1)})
    assert tally.worst() == pytest.approx(0.01, rel=1e-4)


def test_a_constant_in_front_of_a_softmax_is_no_error() -> None:
    logits = RNG.standard_normal((3, 5)).astype(np.float32)
    before = view(level=-1)
    tally = Tally()
    tally.add(Expected.of((before,), {"y": logits}, {}), {"y": logits + np.arange(3, dtype=np.float32)[:, None]})
    assert tally.worst() < 1e-10


def test_a_weighed_view_errs_by_the_nats_that_the_next_token_loses() -> None:
    logits = (3 * RNG.standard_normal((2, 50, 40))).astype(np.float32)
    noisy = logits + (0.02 * RNG.standard_normal(logits.shape)).astype(np.float32)
    (drawn,) = weighed((replace(view(), drawn=True),))
    expected, likelihood = Expected.of((drawn,), {"y": logits}, {}), Likelihood()
    tally = Tally(shares_of([expected, expected]))
    tally.add(expected, {"y": noisy + 5})  # a constant is none
    likelihood.add(logits, noisy)
    assert math.expm1(tally.worst()) == pytest.approx(likelihood.rises(), rel=0.02)


def test_what_befalls_tokens_that_nobody_draws_takes_no_likelihood() -> None:
    logits = np.array([[4.0, 3.0, -np.inf, -60.0]], np.float32)
    (drawn,) = weighed((replace(view(), drawn=True),))
    expected = Expected.of((drawn,), {"y": logits}, {})
    assert expected.error(drawn, {"y": logits + np.array([0, 0, 0, 9], np.float32)}) < 1e-9
    assert expected.error(drawn, {"y": np.array([[4.0, np.nan, 0.0, 0.0]], np.float32)}) == math.inf
    assert expected.error(drawn, {"y": logits[:, :3]}) == math.inf


def test_padding_has_no_likelihood() -> None:
    logits = (3 * RNG.standard_normal((1, 4, 9))).astype(np.float32)
    (drawn,) = weighed((replace(view(), drawn=True),))
    expected = Expected.of((drawn,), {"y": logits}, {"attention_mask": np.array([[1, 1, 0, 0]])})
    wrong = logits.copy()
    wrong[:, 2:] = 0
    assert expected.error(drawn, {"y": wrong}) == 0
    assert expected.signals[drawn] == 4  # two rows


def test_infinities_that_both_have_are_no_error() -> None:
    reference = np.array([1.0, -np.inf, np.nan, 2.0], np.float32)
    assert squared_error(reference, reference + np.float32(1)) == pytest.approx(2)
    assert squared_error(reference, np.array([1, 0, np.nan, 2], np.float32)) == math.inf
    assert squared_error(reference, np.array([1, np.inf, np.nan, 2], np.float32)) == math.inf
    assert squared_error(reference, np.array([np.nan, -np.inf, np.nan, 2], np.float32)) == math.inf
    assert squared_error(reference, reference[:3]) == math.inf


def test_masked_logits_are_judged_less_the_mean_of_what_is_finite() -> None:
    logits = np.array([[1.0, 2.0, -np.inf], [4.0, 0.0, 1.0]], np.float32)
    one = view(level=-1)
    tally = Tally()
    tally.add(Expected.of((one,), {"y": logits}, {}), {"y": logits + np.float32(3)})
    assert tally.worst() < 1e-10


def test_any_mask_in_front_of_a_softmax_is_the_same_and_one_that_is_lost_is_not() -> None:
    logits = np.array([[1.0, 2.0, -np.inf], [-np.inf, -np.inf, -np.inf]], np.float32)
    one = view(level=-1)
    expected = Expected.of((one,), {"y": logits}, {})
    assert expected.error(one, {"y": np.maximum(logits, -30000)}) == 0
    assert expected.error(one, {"y": np.maximum(logits, 0)}) > 0.5
    assert expected.error(one, {"y": np.full((2, 3), np.nan, np.float32)}) == math.inf


def test_a_logit_at_the_edge_of_what_a_softmax_sees_makes_no_jump() -> None:
    one = view(level=-1)
    logits = np.array([[0.0, -50.0, -103.9]], np.float32)
    expected = Expected.of((one,), {"y": logits}, {})
    for below in (-0.2, 0.0, 0.2):
        assert expected.error(one, {"y": logits + np.array([0, 0, below], np.float32)}) < 0.1
    outside = Expected.of((one,), {"y": logits - np.array([0, 0, 0.2], np.float32)}, {})
    assert outside.error(one, {"y": logits}) < 0.1


def test_padding_counts_nowhere() -> None:
    reference = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    got = reference.copy()
    got[mask == 0] += 100
    feed = {"attention_mask": mask}
    tally = Tally()
    tally.add(Expected.of((view(),), {"y": reference}, feed), {"y": got})
    assert tally.worst() == 0
    found = compared(view(), reference, Padding(feed))
    assert found is not None
    assert found.shape == (3, 4)


def test_what_is_zero_or_no_float_has_no_figure() -> None:
    tally = Tally()
    views = (view("zeros"), view("ids"))
    arrays: dict[str, np.ndarray[Any, Any]] = {"zeros": np.zeros(4, np.float32), "ids": np.arange(4)}
    tally.add(Expected.of(views, arrays, {}), {"zeros": np.ones(4, np.float32), "ids": np.zeros(4)})
    assert tally.ratios() == {}
    assert tally.worst() == 0


def test_choices_go_by_what_is_judged() -> None:
    views = tuple(view(role.name, role) for role in Role)
    assert {one.role for one in judged(views)} == {Role.OUTPUT, Role.PART, Role.SOURCE}


def scores(count: int, view_: View) -> list[Expected]:
    values = 3 + 0.1 * RNG.standard_normal((count, 1, 3)).astype(np.float32)
    return [Expected.of((view_,), {"y": value}, {"x": RNG.standard_normal(5)}) for value in values]


def test_noise_beside_a_constant_is_held_against_what_varies() -> None:
    one = view()
    samples = scores(12, one)
    shares, told, own = shares_of(samples), Tally(shares_of(samples)), Tally()
    for expected in samples:
        for tally in (told, own):
            tally.add(expected, {"y": expected.values[one] + np.float32(0.1)})
    plain = sum(expected.signals[one] for expected in samples)
    assert shares[one] == pytest.approx(0.01 / 9.01, rel=0.5)
    assert told.signals() == {one: pytest.approx(plain * shares[one])}
    assert told.ratios()[one] == pytest.approx(36 * 0.01 / (plain * shares[one]), rel=1e-4)
    assert own.worst() == pytest.approx(told.worst())
    assert told.worst() > 0.4  # beside all of the power it is 0.001


def test_one_sample_of_those_that_are_known_is_held_against_what_varies_in_all() -> None:
    one = view()
    samples = scores(12, one)
    alone, beside = Tally(), Tally(shares_of(samples))
    for tally in (alone, beside):
        tally.add(samples[0], {"y": samples[0].values[one] + np.float32(0.1)})
    assert alone.signals() == samples[0].signals  # it cannot tell by itself
    assert beside.worst() == pytest.approx(alone.worst() / shares_of(samples)[one])
    assert shares_of([]) == {}
